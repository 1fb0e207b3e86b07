"""700 mutated inputs: each gives the right result, a refusal in words, or a result with a word about what was
left out.

    python benchmarks/faults/mutate.py --out results.json [--group images] [--only images-017] [--jobs 2]

Offline, with the bundled micro backbone and tiny seeded data, a forked process for each input. A traceback, a
hang, harm (a pickle that ran, an escape that was printed, a file outside the folder, a key that got out) and
a result that differs without a word are faults; each is listed under an id for `--only`."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from forked import OFFLINE, STACKS, Ended, Job, command, patience, prepare, run_all, run_one
from inputs import Input, calls, folders, images, runs, servers, tables, tars, texts
from seen import seen, told, verdict_of
from tiny import AAPE, PAIRED, ZERO_SHOT, write_base

QUOTAS = {
    "images": 100,
    "folders": 80,
    "tables": 100,
    "tars": 80,
    "texts": 120,
    "runs": 90,
    "cache": 30,
    "calls": 60,
    "servers": 40,
}
GOOD = ("right", "words", "told")
LIMIT = 45.0  # seconds an input may take on an idle machine


def all_inputs(base: Path) -> dict[str, Input]:
    """Every input by its id."""
    made = {
        "images": images.inputs(),
        "folders": folders.inputs(),
        "tables": tables.inputs(),
        "tars": tars.inputs(),
        "texts": texts.inputs(base),
        "runs": runs.inputs(base),
        "cache": runs.cache_inputs(base),
        "calls": calls.inputs(),
        "servers": servers.inputs(),
    }
    return {f"{group}-{row:03d}": one for group, inputs in made.items() for row, one in enumerate(inputs)}


def drawn(inputs: dict[str, Input], quotas: dict[str, int]) -> dict[str, Input]:
    """As many of each group as its quota says, the same ones on every day."""
    kept: set[str] = set()
    for group, quota in quotas.items():
        names = [name for name in inputs if name.rpartition("-")[0] == group]
        kept |= set(random.Random(group).sample(names, min(quota, len(names))))
    return {name: one for name, one in inputs.items() if name in kept}


# -- the base: data in every form, runs of it, warm caches --


def build_base() -> dict[str, Any]:
    here = Path.cwd()
    write_base(here)
    for words in (
        ("fit", "data=ph0", *ZERO_SHOT, "out=r0"),
        ("eval", "r0", "data=ph"),
        ("fit", "data=ph", *AAPE, "out=r"),
        ("fit", "data=pairs.csv", *PAIRED, "out=tw"),
    ):
        ended = command(words)
        if ended["code"] != 0:
            raise RuntimeError(f"{' '.join(words)}: {ended['err']}")
    return {}


def build_half() -> dict[str, Any]:
    """The run `r` once more, in `h`, killed after a few saves of its state."""
    import wordsight.train as train

    save, count = train._save, []

    def then_die(*given: Any, **named: Any) -> None:
        save(*given, **named)
        count.append(1)
        if len(count) == 5:
            os.kill(os.getpid(), 9)

    train._save = then_die
    return command(("fit", "data=ph", *AAPE, "out=h"))


def make_base(work: Path) -> Path:
    base = work / "base"
    base.mkdir(parents=True)
    ended = run_one(Job("base", base, build_base, patience(200)))
    if ended.how != "ended":
        raise SystemExit(
            (base / "harness.txt").read_text() if (base / "harness.txt").exists() else str(ended)
        )
    if run_one(Job("half", base, build_half, patience(100))).how != "killed":
        raise SystemExit("the fit that was to be killed was not: does wordsight.train._save still exist?")
    return base


# -- one input --


def play(one: Input, base: Path, mutated: bool) -> dict[str, Any]:
    """Copy what it needs, do the mutation (or what its control does), run its command, look at what came."""
    here = Path.cwd()
    for name in one.needs:
        source = base / "here" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, here / name)
    shutil.copytree(base / "cache", here.parent / "cache", dirs_exist_ok=True)
    make = one.make if mutated else one.plain
    if make is not None:
        make(here)
    os.chdir(here)
    words = one.words if mutated else one.control or one.words
    address = servers.serve(one.server if mutated else "plain") if one.server else ""
    words = [word.replace("{server}", address).replace("{here}", str(here)) for word in words]
    words += ["timeout=3"] if one.server else []
    before = {str(path) for path in here.parent.iterdir()}
    result = command(words)
    return seen(result, here, before, OFFLINE["OPENAI_API_KEY"])


def control_key(one: Input) -> tuple:
    return (one.control or one.words, one.needs, id(one.plain) if one.plain else 0, bool(one.server))


def jobs_of(pairs: Iterable[tuple[Any, Input, bool]], base: Path, work: Path) -> Iterator[Job]:
    for number, (name, one, mutated) in enumerate(pairs):
        folder = work / f"job{number}{'m' * mutated}"
        folder.mkdir()
        yield Job((name, folder), folder, partial(play, one, base, mutated), patience(LIMIT))


def played(
    pairs: list[tuple[Any, Input, bool]], base: Path, work: Path, at_once: int
) -> Iterator[tuple[Any, Ended]]:
    for ended in run_all(jobs_of(pairs, base, work), at_once):
        name, folder = ended.name
        for note, how in (("harness.txt", "crashed"), (STACKS, "hung")):
            if ended.how == how and (folder / note).is_file():
                ended = ended._replace(result={"harness": (folder / note).read_text()})
        shutil.rmtree(folder, ignore_errors=True)
        yield name, ended


def controls_of(inputs: dict[str, Input], base: Path, work: Path, at_once: int) -> dict[tuple, list[dict]]:
    """What the unmutated commands give, twice: what differs between the two decides nothing."""
    different = {control_key(one): one for one in inputs.values() if one.must != "words"}
    found: dict[tuple, list[dict]] = {key: [] for key in different}
    twice = [(key, one, False) for key, one in different.items() for _ in range(2)]
    for key, ended in played(twice, base, work, at_once):
        if ended.how != "ended" or ended.result["code"] != 0:
            print(f"control failed: {key[0]}: {ended.how} {ended.result}", file=sys.stderr)
            continue
        found[key].append(ended.result)
    return found


def judged(one: Input, ended: Ended, controls: list[dict]) -> dict[str, Any]:
    result = ended.result or {}
    verdict, why = verdict_of(one, ended.how, result, controls)
    return {
        "what": one.what,
        "command": "wordsight " + " ".join(one.words),
        "verdict": verdict,
        "why": why,
        "seconds": round(ended.seconds, 2),
        "code": result.get("code"),
        "said": told(result, controls)[:5] or result.get("err", "").strip().splitlines()[-3:],
        "traceback": result.get("err", "")[-3000:] if verdict in ("traceback", "silent") else "",
        "harness": result.get("harness", ""),
    }


# -- all of them --


def table(found: dict[str, dict[str, Any]]) -> str:
    columns = (*GOOD, "traceback", "silent", "other")
    lines = [
        "| group | inputs | right | refused in words | told | tracebacks | silent differences | other |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for group in QUOTAS:
        own = [entry["verdict"] for name, entry in found.items() if name.rpartition("-")[0] == group]
        counts = Counter(verdict if verdict in columns else "other" for verdict in own)
        total += counts
        if own:
            lines.append(
                f"| {group} | {len(own)} | " + " | ".join(str(counts[name]) for name in columns) + " |"
            )
    lines.append(f"| all | {total.total()} | " + " | ".join(str(total[name]) for name in columns) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", default="results.json", help="where every outcome goes (default results.json)"
    )
    parser.add_argument(
        "--group", action="append", choices=QUOTAS, help="this group alone; may be given again"
    )
    parser.add_argument(
        "--only", action="append", metavar="ID", help="this input alone, and all that it printed"
    )
    parser.add_argument(
        "--sample", type=float, default=1.0, help="this share of each quota; 0 takes all there are"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default 2)")
    options = parser.parse_args()
    prepare()
    work = Path(tempfile.mkdtemp(prefix="faults"))
    try:
        base = make_base(work)
        inputs = chosen(options, all_inputs(base))
        controls = controls_of(inputs, base, work, options.jobs)
        found = {}
        pairs = [(name, one, True) for name, one in inputs.items()]
        for name, ended in played(pairs, base, work, options.jobs):
            one = inputs[name]
            found[name] = judged(one, ended, controls.get(control_key(one), []))
            if options.only or found[name]["verdict"] not in GOOD:
                show(name, found[name], bool(options.only))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = dict(sorted(found.items()))
    Path(options.out).write_text(json.dumps(found, indent=1))
    print(table(found))
    return int(any(entry["verdict"] not in GOOD for entry in found.values()))


def chosen(options: argparse.Namespace, inputs: dict[str, Input]) -> dict[str, Input]:
    if options.only:
        return {name: inputs[name] for name in options.only}
    groups = options.group or list(QUOTAS)
    share = options.sample
    return drawn(inputs, {name: round(QUOTAS[name] * share) if share else 10**6 for name in groups})


def show(name: str, entry: dict[str, Any], whole: bool) -> None:
    print(f"{name}  {entry['verdict']}: {entry['what']}  [{entry['command'][:110]}]", flush=True)
    print(f"    {entry['why']}"[:400])
    for line in [*entry["said"], *((entry["traceback"] or entry["harness"]).splitlines() if whole else ())]:
        print(f"    | {line[:300]!r}")
    if not whole and entry["traceback"]:
        print(f"    | {entry['traceback'].strip().splitlines()[-1][:200]!r}")


if __name__ == "__main__":
    sys.exit(main())
