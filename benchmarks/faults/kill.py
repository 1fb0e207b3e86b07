"""Kills at random moments and aimed ones: the same command again makes up for each of them.

    python benchmarks/faults/kill.py --out kills.json [--command fit] [--random 12] [--only fit-003]

For each command: an unbroken run; random SIGKILLs (seeded); and a kill right before and right after each
kind of file is put in its place, each kind of event is logged, and state is removed. After a kill the same
command is given until it ends. Then the folder must hold what the unbroken run's does: the same files, bytes
equal but for wall-clock times in metrics.jsonl, no event twice, no `.part`, no state/; and no answer of a
server was paid for twice but those that were under way."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from forked import Ended, Job, command, patience, prepare, run_one
from inputs.servers import serve_answers
from tiny import MICRO, photos, rows, table

TRIES = 4  # of the same command after a kill
LIMIT = 60.0
DIGITS = ("fit", "data=digits", *MICRO, "shots=4", "flip=false")
COMMANDS: dict[str, tuple[str, ...]] = {
    "fit": (
        *DIGITS,
        "classes=base",
        "sentences=digits",
        "train.epochs=1",
        "train.min_steps=80",
        "train.save_seconds=0.1",
        "out=r",
    ),
    "features": (*DIGITS, "method=zero_shot", "out=r"),
    "suite": (
        "suite",
        "few-shot",
        "data=ph",
        *MICRO,
        "methods=zero_shot,taskres",
        "seeds=1,2",
        "shots=1,2",
        "train.epochs=1",
        "train.min_steps=20",
        "jobs=1",
        "out=r",
    ),
    "two_tower": (
        "fit",
        "data=pairs.csv",
        *MICRO,
        "method=two_tower",
        "settings.text=micro_lm",
        "train.max_steps=20",
        "train.batch_size=4",
        "train.save_seconds=0.1",
        "out=r",
    ),
    "sentences": (
        "sentences",
        "classes=cat,dog,owl,eel",
        "model=m",
        "base_url={server}",
        "out=r/s.json",
        "per_question=2",
    ),
}
UNDER_WAY = 4  # requests that a writer has open at once
ASKED = "asked.txt"  # as many bytes as the server was asked for answers


class Aim(NamedTuple):
    """The `number`-th call of a `kind` about `name` is where the process dies, before or after it."""

    kind: str  # "replace", "log" or "rmtree"
    name: str
    number: int
    when: str

    def __str__(self) -> str:
        return f"{self.when} {self.kind} {self.number} of {self.name}"


# -- aiming --


def aimed(aim: Aim | None, calls: list[tuple[str, str]]) -> None:
    """From here on every call that changes what is kept is counted, and one of them is the last."""
    import wordsight.runs as runs

    for kind, owner, attribute, name_of in (
        ("replace", os, "replace", target_name),
        ("replace", os, "rename", target_name),
        ("rmtree", shutil, "rmtree", first_name),
        ("log", runs.Run, "log", event_name),
    ):
        setattr(owner, attribute, partial_method(kind, getattr(owner, attribute), name_of, aim, calls))


def partial_method(
    kind: str, real: Callable, name_of: Callable[..., str], aim: Aim | None, calls: list[tuple[str, str]]
) -> Callable:
    def counted(*given: Any, **named: Any) -> Any:
        call = (kind, name_of(*given))
        calls.append(call)
        hit = aim is not None and call == (aim.kind, aim.name) and calls.count(call) == aim.number
        if hit and aim.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*given, **named)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counted


def target_name(source: Any, target: Any, *rest: Any) -> str:
    return kind_of(Path(os.fsdecode(target)))


def first_name(folder: Any, *rest: Any) -> str:
    return kind_of(Path(os.fsdecode(folder)))


def event_name(run: Any, event: dict[str, Any], *rest: Any) -> str:
    return str(event.get("event"))


def kind_of(path: Path) -> str:
    """A file's name; a shard of a cache, whose name is drawn, by its folder's sort."""
    sorts = [part for part in path.parts if part in ("features", "texts", "text", "cache")]
    return (
        f"{sorts[-1]} shard" if path.suffix == ".safetensors" and sorts and len(path.stem) > 20 else path.name
    )


# -- one command, and what it leaves --


def play(words: tuple[str, ...], aim: Aim | None) -> dict[str, Any]:
    calls: list[tuple[str, str]] = []
    aimed(aim, calls)
    result = command(words)
    return {"code": result["code"], "err": result["err"][-2000:], "calls": calls}


def fresh(folder: Path) -> None:
    """Tiny data in an empty folder, and nothing asked of the server yet."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder.parent / ASKED).write_bytes(b"")
    here = folder / "here"
    here.mkdir(parents=True)
    photos(here / "ph", each=5)
    captions = [
        [path, "test" if i % 4 == 3 else "train", f"a drawing of {label} {i}"]
        for i, (path, label) in enumerate(rows())
    ]
    (here / "pairs.csv").write_text(table(captions, ("path", "split", "caption")))


def left(folder: Path) -> dict[str, Any]:
    """What lies there afterwards: bytes of what decides anything, events without their times."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "here" / "r").rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder / "here"))] = content_of(path)
    found["cache rows"] = cached(folder / "cache")
    found["parts"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.part"))
    found["state"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("state") if path.is_dir())
    return found


def content_of(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines() if line.strip()]
    if path.suffix in (".safetensors", ".csv", ".yaml") or path.name in ("s.json", "sentences.json"):
        return path.read_bytes().hex()
    return "there"


def timeless(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: timeless(value) for key, value in node.items() if "second" not in key and key != "time"}
    return node


def cached(cache: Path) -> dict[str, str]:
    """Every row of every shard by its folder and digest: how rows are shared among shards decides nothing."""
    from safetensors.numpy import load_file

    found: dict[str, str] = {}
    for path in sorted(cache.rglob("*.safetensors")):
        tensors = load_file(path)
        if {"digests", "vectors"} <= tensors.keys():
            for digest, row in zip(tensors["digests"], tensors["vectors"]):
                found[f"{path.parent.name}/{digest.tobytes().hex()}"] = row.tobytes().hex()
    return found


def differences(whole: dict[str, Any], broken: dict[str, Any]) -> list[str]:
    wrong = [
        f"{name} is left" for kind in ("parts", "state") for name in broken[kind] if name not in whole[kind]
    ]
    for name in sorted({*whole, *broken} - {"parts", "state", "cache rows"}):
        ours, theirs = broken.get(name), whole.get(name)
        if ours is None or theirs is None:
            wrong.append(f"{name} is {'missing' if ours is None else 'more'}")
        elif ours != theirs:
            wrong.append(f"{name} differs{events_differ(theirs, ours) if name.endswith('jsonl') else ''}")
    rows, others = broken["cache rows"], whole["cache rows"]
    if lost := others.keys() - rows.keys():
        wrong.append(f"{len(lost)} rows of the cache are missing")
    if changed := [name for name in rows.keys() & others.keys() if rows[name] != others[name]]:
        wrong.append(f"{len(changed)} rows of the cache differ")
    return wrong


def events_differ(whole: list[Any], broken: list[Any]) -> str:
    def kinds(events: list[Any]) -> Counter[str]:
        return Counter(json.dumps(event, sort_keys=True)[:80] for event in events)

    lost, more = kinds(whole) - kinds(broken), kinds(broken) - kinds(whole)
    return f": lost {list(lost)[:2]}, more {list(more)[:2]}" if lost or more else ": another order"


# -- kills --


Words = tuple[str, ...]
Outcome = dict[str, Any]


def once(folder: Path, words: Words, aim: Aim | None = None, after: float | None = None) -> Ended:
    return run_one(Job("", folder, partial(play, words, aim), patience(LIMIT), after))


def killed_by(kill: Aim | float, folder: Path, words: Words) -> bool:
    """Whether it died of the kill. A random one that came after the end comes sooner the next time."""
    if isinstance(kill, Aim):
        return once(folder, words, kill).how == "killed"
    for share in (1, 0.7, 0.4, 0.2):
        if once(folder, words, after=kill * share).how == "killed":
            return True
        fresh(folder)
    return False


def trial(folder: Path, words: Words, whole: dict[str, Any], kills: list[Aim | float]) -> Outcome:
    """Kill it as said, give the command again until it ends, compare."""
    fresh(folder)
    killed = sum(killed_by(kill, folder, words) for kill in kills)
    wrong = []
    for tries in range(1, TRIES + 1):
        ended = once(folder, words)
        if ended.how == "ended" and ended.result["code"] == 0:
            break
        said = ended.result["err"].strip().splitlines()[-1:] if ended.result else [ended.how]
        wrong.append(f"try {tries}: {said}")
    wrong += differences(whole, left(folder))
    return {"kills": [str(kill) for kill in kills], "killed": killed, "wrong": wrong}


def aims_of(calls: list[tuple[str, str]]) -> Iterator[Aim]:
    """Before and after the first and the last call of each sort."""
    for (kind, name), count in Counter(map(tuple, calls)).items():
        for number in sorted({1, count}):
            for when in ("before", "after"):
                yield Aim(kind, name, number, when)


def trials_of(which: str, folder: Path, count: int, only: list[str] | None) -> Iterator[tuple[str, Outcome]]:
    words, paid = COMMANDS[which], folder.parent / ASKED
    if which == "sentences":
        address = serve_answers(pause=0.05, log=paid)
        words = tuple(word.replace("{server}", address) for word in words)
    fresh(folder)
    ended = once(folder, words)
    if ended.how != "ended" or ended.result["code"] != 0:
        raise SystemExit(f"{which}, unbroken: {ended}")
    whole, seconds = left(folder), ended.seconds
    asked = paid.stat().st_size
    rng = random.Random(which)
    plans: list[list[Aim | float]] = []
    for number in range(count):  # every fourth is killed twice
        plans.append([rng.uniform(0.02, 0.98) * seconds for _ in range(2 if number % 4 == 3 else 1)])
    plans += [[aim] for aim in aims_of(ended.result["calls"])]
    for number, kills in enumerate(plans):
        name = f"{which}-{number:03d}"
        if only and name not in only:
            continue
        found = trial(folder, words, whole, kills)
        if (more := paid.stat().st_size - asked) > UNDER_WAY * len(kills):
            found["wrong"].append(f"{more} answers were asked for again")
        yield name, found | {"aimed": number >= count}


def table_of(found: dict[str, Outcome]) -> str:
    lines = ["| command | kind | trials | killed | made up for | not |", "|---|---|---|---|---|---|"]
    for which in COMMANDS:
        for kind, is_aimed in (("random", False), ("aimed", True)):
            ours = [entry for name, entry in found.items() if name.rpartition("-")[0] == which]
            own = [entry for entry in ours if entry["aimed"] == is_aimed]
            good = sum(not entry["wrong"] for entry in own)
            if own:
                killed = sum(entry["killed"] for entry in own)
                lines.append(f"| {which} | {kind} | {len(own)} | {killed} | {good} | {len(own) - good} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="kills.json", help="where every outcome goes (default kills.json)")
    parser.add_argument("--command", action="append", choices=COMMANDS, help="this command alone")
    parser.add_argument("--random", type=int, default=12, help="random kills of each command (default 12)")
    parser.add_argument("--only", action="append", metavar="ID", help="this trial alone")
    options = parser.parse_args()
    prepare()
    work = Path(tempfile.mkdtemp(prefix="kills"))
    commands = options.command or list(COMMANDS)
    if options.only:
        commands = list(dict.fromkeys(name.rpartition("-")[0] for name in options.only))
    found: dict[str, Outcome] = {}
    try:
        for which in commands:
            for name, entry in trials_of(which, work / "trial", options.random, options.only):
                found[name] = entry
                if entry["wrong"] or options.only:
                    kills = ", ".join(entry["kills"])
                    print(f"{name}  {kills}: {'; '.join(entry['wrong'])[:300]}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    Path(options.out).write_text(json.dumps(found, indent=1))
    print(table_of(found))
    return int(any(entry["wrong"] for entry in found.values()))


if __name__ == "__main__":
    sys.exit(main())
