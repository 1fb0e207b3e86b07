"""What the command line prints: results to stdout, sentences to stderr, both safe on any terminal.

Class names, file names and answers of servers are other people's text: no control character of theirs
reaches the terminal, and an encoding that lacks a sign writes it out instead of ending in a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from wordsight.files import moves, printable

RARE = 20  # classes that are not covered, of which so many are named
FIRST = 5  # of what an audit found, in the terminal

log = logging.getLogger("wordsight")


class Sentences(logging.Handler):
    """Writes what the library says to stderr, a line a message."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(record.getMessage()), file=sys.stderr)


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """Within it, messages of the logger "wordsight" from INFO on go to stderr, and no stream has a strict
    encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # of several processes one speaks; an error may come from any of them
    handler, level = Sentences(logging.ERROR if int(os.environ.get("RANK", "0")) else 0), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def out(text: str = "", *, kept: str = "\n\t") -> None:
    """What a verb answers; with `kept=""` on one line, whatever its names hold."""
    print(printable(text, kept))


def out_json(value: Any) -> None:
    """One JSON text. A mapping may hold an iterator, printed as a list while it goes on, and functions that
    are called once it has ended. Nothing is printed where its first entry ends in an error."""
    if not (isinstance(value, Mapping) and any(isinstance(part, Iterator) for part in value.values())):
        print(json_text(value))
        return
    before = "{"
    for key, part in value.items():
        if isinstance(part, Iterator):
            part = chain([*islice(part, 1)], part)
        print(before, f" {json_text(key)}: ", sep="\n", end="")
        if isinstance(part, Iterator):
            _out_list(part)
        else:
            print(json_text(part() if callable(part) else part), end="")
        before = ","
    print("\n}")


def _out_list(entries: Iterator[Any]) -> None:
    before = "["
    for entry in entries:
        print(before, json_text(entry), sep="\n", end="")
        before = ","
    print("[]" if before == "[" else "]", end="")


def json_text(value: Any) -> str:
    """JSON whose text holds every name as it is, with the signs that steer a terminal written as \\uXXXX.

    So are bytes of file names that are not UTF-8, and every sign that stdout's encoding lacks: Python's
    `json.loads` gives them back."""
    text = json.dumps(value, ensure_ascii=not _is_unicode(sys.stdout), indent=1, allow_nan=False)
    return re.sub(r"[^\n -~]", _steering, text)


def _steering(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}" if moves(found[0]) else found[0]


def _is_unicode(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


# -- the answers of the verbs, as a person reads them --------------------------------------------------------


def fit(answer: Mapping[str, Any]) -> None:
    for event in answer["fit"]:
        learned = f"{answer['classes']} classes" if answer["classes"] else f"{event['captions']} captions"
        seconds = event["seconds"]["fit"]
        out(f"fitted {answer['method']} on {event['images']} images of {learned} in {seconds:.1f} s")
    evaluate(answer["eval"])
    out(f"run folder: {answer['run']}")


def evaluate(results: Sequence[Mapping[str, Any]]) -> None:
    from wordsight.metrics import harmonic_mean

    for event in results:
        kinds = {"image_to_text": _retrieval, "cider_d": _captions, "questions": _answers}
        next((show for key, show in kinds.items() if key in event), _accuracy)(event)
    by_part = {event.get("classes"): event["accuracy"] for event in results if "accuracy" in event}
    if {"base", "new"} <= by_part.keys():
        h = harmonic_mean(by_part["base"], by_part["new"])
        out(f"    H: {h:5.1f}%  (harmonic mean of base and new)")


def _accuracy(event: Mapping[str, Any]) -> None:
    if "accuracy" not in event:  # of images that show any number of classes
        mean = f"mAP {event['mean_average_precision']:5.1f}%  ({event['images']} test images"
        return out(f"{event['classes']:>5}: {mean}, chance {event['chance']:.1f}%)")
    five = "" if event["top5"] is None else f"  top-5 {event['top5']:5.1f}%"
    out(
        f"{event['classes']:>5}: accuracy {event['accuracy']:5.1f}%  mean class recall "
        f"{event['mean_class_recall']:5.1f}%{five}  ({event['images']} test images, chance "
        f"{event['chance']:.1f}%{_folds(event)})"
    )
    references = event.get("references", {})
    for name, other in references.items():
        out(
            f"       {name:12} {other['accuracy']:5.1f}%  here {_difference(other)} against it, on the "
            f"same images"
        )
    if references:
        out(f"       {_verdict(references)}")


def _folds(event: Mapping[str, Any]) -> str:
    return f"; {event['folds']}-fold cross-validation" if "folds" in event else ""


def _difference(other: Mapping[str, Any]) -> str:
    mean, low, high = other["difference"]
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _verdict(references: Mapping[str, Any]) -> str:
    """One sentence on whether labels and words helped: whether an interval leaves out zero. There is one
    seed, and so it is over the test images alone."""
    parts = {"zero_shot": "labels helped over names alone", "linear_probe": "words helped over labels alone"}
    found = []
    for name, claim in parts.items():
        if name in references:
            _, low, high = references[name]["difference"]
            sure = "yes" if low > 0 else "no, they cost accuracy" if high < 0 else "not shown"
            found.append(f"{claim}: {sure}")
    return f"{'; '.join(found)} (95 % intervals over these images alone: one seed)"


def _retrieval(event: Mapping[str, Any]) -> None:
    out(f"{event['data']}: {event['images']} test images, {event['distinct_captions']} distinct captions")
    plain = event.get("plain", {})
    for way in ("image_to_text", "text_to_image"):
        figures = "  ".join(f"{name} {value:5.1f}%" for name, value in event[way].items())
        beside = ", ".join(f"{value:.1f}" for value in plain.get(way, {}).values())
        out(f"    {way.replace('_', ' ')}: {figures}{f'  (plain image vectors: {beside})' * bool(beside)}")


def _captions(event: Mapping[str, Any]) -> None:
    names = {"cider_d": "CIDEr-D", "bleu_4": "BLEU-4", "clip_score": "CLIPScore"}
    names["ref_clip_score"] = "RefCLIPScore"
    figures = "  ".join(f"{name} {event[key]:.3f}" for key, name in names.items() if key in event)
    out(f"{event['data']}: {event['images']} test images, {event['distinct']} distinct captions")
    out(f"    {figures}")


def _answers(event: Mapping[str, Any]) -> None:
    examples = f", behind {event['shots']} examples" if event["shots"] else ""
    out(f"{event['data']}: {event['questions']} questions of its {event['part']} part{examples}")
    for name, part in {"all": event, **event["kinds"]}.items():
        others = {"without images": part.get("blind"), "constant": part.get("constant")}
        beside = "  ".join(f"{what} {value:5.1f}%" for what, value in others.items() if value is not None)
        out(f"    {name:8} VQA accuracy {part['accuracy']:5.1f}%  {beside}  ({part['questions']} questions)")
    if "over_blind" in event:
        mean, low, high = event["over_blind"]
        out(f"    images give {mean:+.1f} [{low:+.1f}, {high:+.1f}] points (95 % interval over these images)")


def predict(answer: Mapping[str, Any]) -> None:
    for entry in answer["predictions"]:
        chosen = "  ".join(f"{one['class']} {one['probability']:.1%}" for one in entry["classes"])
        out(f"{entry['image']}  {chosen}{_marks(entry)}", kept="")
        if "sentences" in entry:
            out("    closest sentences:")
        for line in entry.get("sentences", []):
            out(f"    {line['cosine']:.2f}  {line['class']}: {line['sentence']}")
        if one := entry.get("decisive"):
            then = f"{one['without']['class']} {one['without']['probability']:.1%}"
            out(f"    raised {one['class']} over {one['runner_up']} most: {one['sentence']}")
            out(f"    without it: {then}")


def _marks(entry: Mapping[str, Any]) -> str:
    """What follows the classes of an image."""
    among = f" ({', '.join(entry['set']) or 'none is likely enough'})" if "set" in entry else ""
    unlike = "  unlike all training images" * entry.get("unlike", False)
    return f"  unsure{among}{unlike}" if entry.get("unsure") else unlike


def caption(answer: Mapping[str, Any]) -> None:
    for entry in answer["captions"]:
        out(f"{entry['image']}  {entry['caption']}", kept="")


def ask(answer: Mapping[str, Any]) -> None:
    for entry in answer["answers"]:
        out(f"{entry['image']}  {entry['answer']}", kept="")


def chat(answer: Mapping[str, Any]) -> None:
    """Piece by piece, as they come; with the line itself where no person has typed it."""
    for turn in answer["turns"]:
        if turn["echo"]:
            out(f"> {turn['you']}")
        for piece in turn["said"]:
            print(printable(piece), end="", flush=True)
        out()


def search(answer: Mapping[str, Any]) -> None:
    for found in answer["results"]:
        out(f"{found['score']:6.3f}  {found['image']}", kept="")
        for name in found["copies"]:
            out(f"        the same as {name}", kept="")


def audit(answer: Mapping[str, Any]) -> None:
    held = ", ".join(f"{count:,} {part}" for part, count in answer["images"].items())
    across = sum(group["across"] for group in answer["copies"])
    out(f"{held} images")
    out(f"{len(answer['label_errors']):6,} labels in doubt")
    for one in answer["label_errors"][:FIRST]:
        out(f"        {one['image']}: {one['label']}, rather {one['suggested']} {one['probability']:.0%}")
    out(f"{len(answer['copies']):6,} groups of copies, {across:,} across train and test")
    out(f"{len(answer['outliers']):6,} outliers")
    for one in answer["confusing"][:1]:
        classes, share = " and ".join(one["classes"]), f"{one['images']} of {one['of']} images"
        out(f"        words confuse {classes} most: {share}")
    for one in answer["next"][:FIRST]:
        out(f"        label next: {one['image']}, perhaps {one['predicted']}", kept="")
    out(f"page: {answer['html']}")


def coverage(answer: Mapping[str, Any]) -> None:
    counts, cut_off = answer["counts"], answer["cut_off"]
    out(f"{answer['captions']:,} captions; each class is named by {answer['count']:,.1f} of them on the mean")
    out(
        f"coverage {answer['coverage']:.2f}: {answer['covered']} of {answer['classes']} classes are named by "
        f"more than {cut_off}"
    )
    rare = [f"{name} ({count})" for name, count in counts.items() if count <= cut_off]
    if rare:
        more = f" and {len(rare) - RARE} more" if len(rare) > RARE else ""
        out(f"not covered: {', '.join(rare[:RARE])}{more}")


def report(answer: Mapping[str, Any]) -> None:
    out(answer["markdown"])
    out(f"report: {answer['html']}")


def export(answer: Mapping[str, Any]) -> None:
    size = f"{answer['bytes'] / 1e6:.1f} MB"
    out(f"{answer['out']} holds {size} and needs nothing outside it; its model card is README.md")


def suite(answer: Mapping[str, Any]) -> None:
    out(answer["markdown"])
    if answer.get("absent"):
        out(f"\nnot there, {len(answer['absent'])} of the suite's datasets: {', '.join(answer['absent'])}")
    by_text: dict[str, list[str]] = {}
    for failed in answer.get("failed", []):
        by_text.setdefault(failed["says"], []).append(failed["run"])
    for text, runs in by_text.items():
        out(f"\nnot possible, {len(runs)} time{'s' * (len(runs) != 1)}: {text}")
        for name in runs:
            out(f"    {name}")
    if "runs" not in answer:
        out(f"\ntable: {answer['markdown_file']}, figures: {answer['json']}")
        return
    out(
        f"\n{answer['fitted']} of {answer['runs']} runs fitted now; all of them in a page: wordsight report "
        f"{answer['out']}"
    )
    if answer["files"]:
        out(f"in CLIP_benchmark's form: {os.path.dirname(answer['files'][-1])}")


def sentences(answer: Mapping[str, Any]) -> None:
    if "pairs" in answer:
        _contrasted(answer)
        return
    counts, file = answer["sentences"], answer["out"]
    out(
        f"{sum(counts.values())} sentences for {len(counts)} classes in {file}; use them with "
        f"sentences={file}"
    )


def _contrasted(answer: Mapping[str, Any]) -> None:
    for pair in answer["pairs"]:
        first, second = pair["classes"]
        out(f"confused {pair['images']:4} time{'s' * (pair['images'] != 1)}: {first} and {second}")
    kept, (mean, low, high), accuracy = answer["kept"], answer["gain"], answer["accuracy"]
    out(f"kept {len(kept) or 'none'} of {answer['asked']} sentences{':' * bool(kept)}")
    for one in kept:
        out(f"    {one['points']:+.2f}  {one['class']} (not {one['against']}): {one['sentence']}")
    out(
        f"accuracy on {answer['images']} left-out images: {accuracy['after']:.1f}% with what is chosen "
        f"without them, {accuracy['before']:.1f}% before: {mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    )
    shown = "raised" if low > 0 else "lowered" if high < 0 else "not shown to change"
    out(f"accuracy is {shown} (95 % interval over these images); use them with sentences={answer['out']}")


def generate(answer: Mapping[str, Any]) -> None:
    written = answer["written"]
    for adapters, text in written.items():
        out(f"adapters {adapters}: {text}" if len(written) > 1 else text)


def verify(answer: Mapping[str, Any]) -> None:
    checks = answer["checks"]
    for name, check in checks.items():
        out(
            f"{'passed' if check['passed'] else 'FAILED'}  {name:24} {float(check['value']):<9.3g} "
            f"{'above' if check['least'] else 'most '} {check['bound']:<7g} {check['says']}"
        )
    failed = [name for name, check in checks.items() if not check["passed"]]
    if failed:
        out(f"{len(failed)} of {len(checks)} FAILED: {', '.join(failed)}")
    else:
        out(f"all {len(checks)} hold")


def join(answer: Mapping[str, Any]) -> None:
    out(f"joined backbone in {answer['out']} ({answer['dim']} wide); use it with backbone={answer['out']}")


def listing(answer: Mapping[str, Any]) -> None:
    for title, table in answer.items():
        out("data=" if title == "data" else title)
        for name, meaning in table.items():
            out(f"  {name:25} {meaning}" if title == "data" else f"  {name:15} {meaning}")


def show(answer: Mapping[str, Any]) -> None:
    if answer["about"]:
        out(f"{answer['name']}: {answer['about']}\n")
    out(settings_text(answer))
    if answer["about"]:
        out("\n`wordsight show run` lists what any run takes: data, shots, seed, ...")


def settings_text(answer: Mapping[str, Any], width: int = 100) -> str:
    """A line a setting, or a few: `shots=16   labelled images per class`."""
    lines = []
    for name, entry in answer["described"].items():
        value = "..." if entry["required"] else _typed(entry["default"])
        must = "must be given" if entry["required"] else ""
        evident = entry["choices"] in ("a number", "a whole number") and entry["default"] is not None
        choices = "" if evident else entry["choices"]
        told = "; ".join(filter(None, (must, choices, entry["meaning"])))
        lines += _hanging(f"  {name}={value}", told, width)
    return "\n".join(lines)


def _hanging(begin: str, told: str, width: int, indent: int = 30) -> list[str]:
    """`begin`, and beside it `told` in a column of its own."""
    rest = textwrap.wrap(told, width - indent, break_on_hyphens=False)
    if rest and len(begin) < indent - 1:
        begin = begin.ljust(indent) + rest.pop(0)
    return [begin, *(" " * indent + line for line in rest)]


def _typed(value: Any) -> str:
    """A value as it is typed behind `key=`."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"'{value}'" if isinstance(value, str) and " " in value else str(value)
