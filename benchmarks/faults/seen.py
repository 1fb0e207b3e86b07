"""What came of a command, beside what came of its control: right, refused in words, told of, or a fault."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inputs import Input

OWN_WAYS = ("here", "cache", "home", "out.txt", "err.txt", "result.json", "harness.txt", "stacks.txt")
PLACES = ("run", "out", "html", "csv", "latex", "markdown_file", "json", "folder", "seconds", "left_out")
TELLING = ("skipped", "left_out", "notes")  # keys of the JSON under which something is told
NEAR = 0.12  # of a probability: the same picture, in other numbers
Rows = dict[str, tuple[str, float]]


def seen(result: dict[str, Any], here: Path, before: set[str], key: str) -> dict[str, Any]:
    """What a command printed and wrote, as far as it decides anything."""
    loaded = None
    with contextlib.suppress(ValueError):
        loaded = json.loads(result["out"])
    accounts = [*found_accounts(loaded), *written_accounts(here)]
    return {
        **result,
        "rows": rows_of(loaded, here),
        "leaves": dict(leaves(loaded)) if loaded is not None else {"": result["out"]},
        "files": written(here),
        "account": accounts,
        "harm": harm(result, here, before, key),
    }


def rows_of(loaded: Any, here: Path) -> Rows:
    """Each image's answer: of `predict --json`, or of the predictions that were written last."""
    if isinstance(loaded, dict) and "predictions" in loaded:
        return {
            row["image"]: (row["classes"][0]["class"], row["classes"][0]["probability"])
            for row in loaded["predictions"]
            if isinstance(row, dict)
        }
    tables = sorted(here.glob("*/predictions-*.csv"), key=changed_at)
    if not tables or not tables[-1].is_file():
        return {}
    rows: Rows = {}
    with (
        contextlib.suppress(OSError, KeyError, ValueError, csv.Error),
        open(tables[-1], encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        for number, row in enumerate(csv.DictReader(file)):
            name = re.sub(r"\.\w{1,5}$", "", row["image"])
            rows[name if name not in rows else f"{name} {number}"] = (
                row["predicted"],
                float(row["probability"]),
            )
    return rows


def changed_at(path: Path) -> float:
    return path.lstat().st_mtime_ns


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in the JSON by its path, but where things lie and how long they took."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in PLACES:
                yield from leaves(value, f"{path}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from leaves(value, f"{path}/{number}")
    else:
        yield path, node


def written(here: Path) -> dict[str, str]:
    """Digests of the tensors and sentences that a run folder holds, whatever is beside them in the file."""
    from safetensors.numpy import load_file

    found = {}
    for path in sorted(here.glob("[qrhQ-]*/weights.safetensors")):
        if path.is_file():
            with contextlib.suppress(Exception):
                tensors = sorted(load_file(path).items())
                found["weights"] = digest(repr([(n, t.dtype, t.shape, t.tobytes()) for n, t in tensors]))
    with contextlib.suppress(OSError, ValueError):
        sentences = json.loads((here / "o.json").read_text()).get("sentences", {})
        found["sentences"] = repr(
            [[entry["text"] for entry in sentences[name]] for name in sorted(sentences)]
        )
    return found


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def found_accounts(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if {"seen", "kept"} <= node.keys():
            yield node
        for value in node.values():
            yield from found_accounts(value)
    elif isinstance(node, list):
        for value in node:
            yield from found_accounts(value)


def written_accounts(here: Path) -> Iterator[dict[str, Any]]:
    for path in here.glob("*/account*.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if path.is_file():
                yield from found_accounts(json.loads(path.read_text()))


def harm(result: dict[str, Any], here: Path, before: set[str], key: str) -> list[str]:
    done = []
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", result["out"] + result["err"]):
        done.append("control characters were printed")
    if (here / "pwned").exists() or (here.parent / "home" / "pwned").exists():
        done.append("code inside a file ran")
    strange = {str(path) for path in here.parent.iterdir() if path.name not in OWN_WAYS} - before
    if strange:
        done.append(f"written outside: {sorted(strange)[:3]}")
    texts = [result["out"], result["err"]]
    for path in here.glob("*.json"):
        with contextlib.suppress(OSError):
            texts += [path.read_text(errors="replace")] if path.is_file() else []
    if any(key[:12] in text for text in texts):
        done.append("the key got out")
    return done


def told(result: dict[str, Any], controls: list[dict[str, Any]]) -> list[str]:
    """What was said to the user that the control was not told."""
    known = {line for control in controls for line in control["err"].splitlines()}
    lines = [line for line in result.get("err", "").splitlines() if line.strip() and line not in known]
    said = [line for line in lines if not re.search(r"\w+Warning:|^\s+warnings\.warn|^  \w+ = ", line)]
    usual = {repr(account.get("left_out")) for control in controls for account in control["account"]}
    for account in result.get("account", []):
        if account.get("left_out") and repr(account["left_out"]) not in usual:
            said.append(f"account: {account['left_out']}"[:300])
    usual = {repr(pair) for control in controls for pair in control["leaves"].items()}
    for path, value in result.get("leaves", {}).items():
        if any(f"/{word}/" in path for word in TELLING) and value and repr((path, value)) not in usual:
            said.append(f"{path}: {value}"[:300])
    return said


def verdict_of(
    one: Input, how: str, result: dict[str, Any], controls: list[dict[str, Any]]
) -> tuple[str, str]:
    """The verdict, and why."""
    if how != "ended":
        return how, result.get("harness", "")[-300:] or f"the process {how}"
    if result["code"] == "traceback":
        return "traceback", result["err"].strip().splitlines()[-1][:200]
    if result["harm"]:
        return "harm", "; ".join(result["harm"])
    if unbalanced := [account for account in result["account"] if not balances(account)]:
        return "silent", f"the account does not add up: {unbalanced[0]}"[:300]
    if result["code"] != 0:
        return _refused(one, result)
    if not controls and one.must != "words":
        return "no control", "the unmutated command failed"
    difference = _difference(one, result, controls)
    said = told(result, controls)
    verdict = "right" if not difference and one.judge != "any" else "told" if said else "silent"
    if one.judge == "any" and not said:
        verdict = "right"
    allowed = one.must.split(" or ") if one.must else ["right", "words", "told"]
    if verdict not in allowed:
        return "silent", f"{difference or 'taken as it is'}; expected: {one.must or 'a word about it'}"
    return verdict, difference


def balances(account: dict[str, Any]) -> bool:
    left = account.get("left_out")
    if not isinstance(left, dict) or not all(isinstance(entry, dict) for entry in left.values()):
        return True
    return account["seen"] == account["kept"] + sum(entry.get("count", 0) for entry in left.values())


def _refused(one: Input, result: dict[str, Any]) -> tuple[str, str]:
    last = (result["err"].strip().splitlines() or [""])[-1]
    if result["code"] not in (1, 2) or "wordsight" not in result["err"]:
        return "silent", f"exit code {result['code']} without a sentence: {last[:100]}"
    if one.must and "words" not in one.must:
        return "refused wrongly", last[:200]
    return "words", last[:200]


def _difference(one: Input, result: dict[str, Any], controls: list[dict[str, Any]]) -> str:
    """How the result differs from the control's; empty where it does not."""
    if one.judge == "any" or not controls:
        return ""
    first = controls[0]
    if one.judge in ("rows", "count"):
        return _rows_differ(one, result["rows"], first["rows"])
    unstable = {
        path
        for path in first["leaves"]
        if any(c["leaves"].get(path) != first["leaves"][path] for c in controls)
    }
    ours, theirs = result["leaves"], first["leaves"]
    changed = [path for path in {*ours, *theirs} - unstable if ours.get(path) != theirs.get(path)]
    values = [f"{path}: {ours.get(path)!r}, control {theirs.get(path)!r}" for path in sorted(changed)[:3]]
    values += [
        f"other {name} were written" for name in first["files"] if _other_file(name, one, result, first)
    ]
    return "; ".join(values)[:400]


def _other_file(name: str, one: Input, result: dict[str, Any], control: dict[str, Any]) -> bool:
    """Whether a file that the command makes has another content. What it only reads was mutated itself."""
    return one.words[0] in ("fit", "sentences") and result["files"].get(name) != control["files"][name]


def _rows_differ(one: Input, rows: Rows, control: Rows) -> str:
    if len(rows) != len(control) + one.new:
        return (
            f"{len(rows)} images were answered, and {len(control)} in the control, with {one.new} more here"
        )
    if one.judge == "count":
        return ""
    changed = [name for name in rows.keys() & control.keys() if rows[name] != control[name]]
    for name in changed:
        if any(name.endswith(free) for free in one.free):
            continue
        close = rows[name][0] == control[name][0] and abs(rows[name][1] - control[name][1]) <= NEAR
        if close and any(name.endswith(near) for near in one.near):
            continue
        return f"{name} is {rows[name]}, and {control[name]} in the control"
    return ""
