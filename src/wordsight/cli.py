"""The command line: a table of verbs, each calling a Python function. It parses, then imports, so that help
is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wordsight import __version__
from wordsight.config import BACKBONES, METHODS, RunSettings, WordsightError, nearest, read, resolve, to_dict
from wordsight.files import class_list, printable
from wordsight.terminal import out, out_json, speaking

log = logging.getLogger("wordsight")

EXPLAINED = 3  # sentences an explanation shows at least
DATA_FORMS = (
    ("photos/", "a folder of class folders, or of train/, val/, test/ with class folders"),
    ("table.csv, table.parquet", "columns of image path (or bytes) and label, perhaps of split"),
    (
        "captions.csv",
        "columns of image path and caption (caption_1, ...), perhaps of split: pairs, for two_tower",
    ),
    ("org/name, hf:org/name", "a Hugging Face dataset, or a folder written by save_to_disk"),
    ("shards/x-{000..003}.tar", "a webdataset of tars"),
    ("digits", "scikit-learn's 1,797 handwritten digits"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 a check failed, 2 something the user can mend (a sentence says
    what), 130 interrupted.
    """
    with speaking():
        parser = _parser()
        given = list(sys.argv[1:] if arguments is None else arguments)
        asked = [word for word in given if word == "--json"]  # argparse takes no option between words
        options = parser.parse_args([word for word in given if word != "--json"] + asked)
        if options.verb is None:
            parser.print_help()
            return 0
        return _answered(options)


def _answered(options: argparse.Namespace) -> int:
    """Run the verb; whatever ends it becomes an exit code and a sentence."""
    # of several processes one speaks
    quiet = contextlib.redirect_stdout(None) if int(os.environ.get("RANK", "0")) else contextlib.nullcontext()
    try:
        with quiet:
            result = VERBS[options.verb].run(options)
            if options.json:
                out_json(result)
        return 1 if isinstance(result, dict) and result.get("passed") is False else 0
    except WordsightError as error:
        log.error("wordsight: %s", error)
        return 2
    except KeyboardInterrupt as stop:
        log.error("\nwordsight: %s; the same command goes on from here", str(stop) or "stopped")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `wordsight list | head -1`
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0


# -- verbs: options -> plain values for --json; each prints what a person wants unless --json is given -------


def fit(options: argparse.Namespace) -> Any:
    settings = read(RunSettings, *options.words)
    from wordsight.tasks import task_of

    task = task_of(settings.method)
    new = not Path(settings.out or task.default_folder(settings), "weights.safetensors").exists()
    run = task.fit(settings, progress=True, say=log.info)
    fitted, results = run.events("fit")[-1:], run.events("eval") + run.events("retrieval")
    latest = list({(event["data"], event.get("classes")): event for event in results}.values())
    if not options.json:
        for event in fitted if new else []:
            learned = (
                f"{len(run.facts.classes)} classes" if run.facts.classes else f"{event['captions']} captions"
            )
            out(
                f"fitted {settings.method} on {event['images']} images of {learned} in "
                f"{event['seconds']['fit']:.1f} s"
            )
        _print_results(latest)
        out(f"run folder: {run.folder}")
    return {"run": str(run.folder), "fit": fitted, "eval": [_short(event) for event in latest]}


def evaluate(options: argparse.Namespace) -> Any:
    given = _pairs(options.words, ("data", "classes"))
    _there(options.run)
    from wordsight.runs import Run
    from wordsight.tasks import task_of

    run = Run.open(options.run)
    results = task_of(run.settings.method).evaluate(run, **given, progress=True, say=log.info)
    if not options.json:
        _print_results(results)
    return [_short(event) for event in results]


def predict(options: argparse.Namespace) -> Any:
    if options.top < 1:
        raise WordsightError(f"--top {options.top} names no class; give 1 or more")
    _there(options.run)
    for image in options.images:
        if Path(image).is_dir():
            raise WordsightError(f"{image!r} is a folder; give its images: {Path(image) / '*.jpg'}")
    from wordsight.data.features import image_features
    from wordsight.estimator import load, pictures_of

    names = class_list(options.classes) if options.classes else []
    classifier = load(options.run, class_names=names)
    if options.explain and (words := _template_set(options.run)) and not options.sentences:
        log.info(
            f"{options.run} was fitted with the template set {words!r} in place of sentences, which "
            f"explains little; give `fit` a sentences=... file"
        )
    if classifier.backbone_ is None:
        raise WordsightError(
            f"{options.run} was fitted on feature matrices without a backbone; `wordsight.load` in Python "
            f"predicts from such matrices"
        )
    if options.sentences and names:
        classifier = classifier.with_classes(names, options.sentences)
    elif options.sentences:
        raise WordsightError("--sentences describes the classes of --classes; give both")
    features = image_features(classifier.backbone_, pictures_of(options.images))
    matrix = features.vectors[:, 0].numpy()
    chances = classifier.predict_proba(matrix)
    reasons = (
        classifier.explain(matrix, max(options.top, EXPLAINED)) if options.explain else [[]] * len(matrix)
    )
    rows = []
    for index, row, why in zip(features.kept, chances, reasons):
        best = row.argsort()[::-1][: options.top]
        entry = {
            "image": options.images[index],
            "classes": [
                {"class": classifier.texts_.names[i], "probability": round(float(row[i]), 4)} for i in best
            ],
        }
        if options.explain:
            entry["sentences"] = [
                {"class": name, "sentence": text, "cosine": round(value, 4)} for name, text, value in why
            ]
        rows.append(entry)
    for name, reason in features.skipped:
        log.warning("skipped %s: %s", name, reason)
    if not options.json:
        for entry in rows:
            out(
                entry["image"]
                + "  "
                + "  ".join(f"{c['class']} {c['probability']:.1%}" for c in entry["classes"])
            )
            if options.explain:
                out("    closest to what it says about the image:")
            for line in entry.get("sentences", []):
                out(f"    {line['cosine']:.2f}  {line['class']}: {line['sentence']}")
    return {
        "predictions": rows,
        "skipped": [{"image": name, "reason": reason} for name, reason in features.skipped],
    }


def report(options: argparse.Namespace) -> Any:
    from wordsight.report import report

    written = report(
        options.runs, options.out, csv_file=options.csv, latex_file=options.latex, reference=options.reference
    )
    if not options.json:
        out(written["markdown"])
        for folder in written["unfinished"]:
            log.info(f"left out, not finished: {folder}")
        out(f"report: {written['html']}")
    return written


def suite(options: argparse.Namespace) -> Any:
    from wordsight.suites import SuiteSettings, run_suite

    result = run_suite(
        read(SuiteSettings, *options.words, {"suite": options.suite}), progress=not options.json, say=log.info
    )
    if not options.json:
        out(result["markdown"])
        by_text: dict[str, list[str]] = {}
        for failed in result.get("failed", []):
            by_text.setdefault(failed["says"], []).append(failed["run"])
        for text, runs in by_text.items():
            out(f"\nnot possible, {len(runs)} time{'s' * (len(runs) != 1)}: {text}")
            for name in runs:
                out(f"    {name}")
        out(f"\n{_ending(result)}")
    return result


def _ending(result: dict[str, Any]) -> str:
    if "runs" not in result:
        return f"table: {result['markdown_file']}, figures: {result['json']}"
    return (
        f"{result['fitted']} of {result['runs']} runs fitted now; all of them in a page: wordsight report "
        f"{result['out']}"
    )


def listing(options: argparse.Namespace) -> Any:
    tables = {"methods": METHODS, "backbones": BACKBONES}
    if not options.json:
        for title, table in tables.items():
            out(title)
            for name, entry in table.items():
                out(f"  {name:15} {entry.summary}")
        out("data=")
        for form, meaning in DATA_FORMS:
            out(f"  {form:25} {meaning}")
    return {
        title: {name: entry.summary for name, entry in table.items()} for title, table in tables.items()
    } | {"data": dict(DATA_FORMS)}


def show(options: argparse.Namespace) -> Any:
    import dataclasses
    import inspect

    def lines(cls: type, values: dict[str, Any]) -> Iterator[str]:
        """`name = value  # what it means`, of a dataclass and of what it inherits."""
        left = dict(values)
        for part in cls.__mro__[:-1]:
            for line in inspect.getsource(part).splitlines()[2:]:
                name = line.partition(":")[0].strip()
                if name in left:
                    value, comment = left.pop(name), line.partition("  # ")[2]
                    choices = (
                        line.partition("Literal[")[2].partition("]")[0].replace('"', "").replace(",", " |")
                    )
                    said = "; ".join(filter(None, (choices, comment)))
                    yield f"    {name} = {'null' if value is None else value}" + (
                        f"  # {said}" if said else ""
                    )

    if options.name == "run":
        defaults = {
            f.name: None if f.default is dataclasses.MISSING else f.default
            for f in dataclasses.fields(RunSettings)
        }
        if not options.json:
            out("KEY=VALUE of any run:")
            out("\n".join(lines(RunSettings, defaults)))
        return {"name": "run", "settings": defaults}
    kind = resolve(METHODS, options.name, "method")
    settings, training = kind.Settings(), getattr(kind, "training_defaults", None)
    if not options.json:
        out(f"{options.name}: {inspect.getdoc(kind)}\n")
        for title, values in (("settings", settings), ("train", training)):
            if values is not None:
                out(f"{title}.NAME=VALUE changes one of these:")
                out("\n".join(lines(type(values), to_dict(values))) + "\n")
        out("`wordsight show run` lists what any run takes: data, shots, seed, ...")
    return {
        "name": options.name,
        "about": inspect.getdoc(kind),
        "settings": to_dict(settings),
        "train": to_dict(training) if training else None,
    }


def sentences(options: argparse.Namespace) -> Any:
    from wordsight.config import build
    from wordsight.data import open_dataset
    from wordsight.sentences.generated import WriterSettings, write_sentences

    given = _pairs(options.words)
    data, classes, file = given.pop("data", None), given.pop("classes", None), given.pop("out", None)
    if (data is None) == (classes is None) or file is None:
        raise WordsightError(
            "give data=... or classes=a,b,c or classes=@FILE, one name a line (whose names to ask about), "
            "model=..., and out=sentences.json"
        )
    names = open_dataset(data).class_names if data else class_list(classes)
    written = write_sentences(names, build(WriterSettings, given), file, progress=sys.stderr.isatty())
    counts = {name: len(texts) for name, texts in written.items()}
    if not options.json:
        out(
            f"{sum(counts.values())} sentences for {len(counts)} classes in {file}; use them with "
            f"sentences={file}"
        )
    return {"out": file, "sentences": counts}


def join(options: argparse.Namespace) -> Any:
    from wordsight.backbones.joined import JoinSettings, join

    settings = read(JoinSettings, *options.words)
    from wordsight.data.sources import read_pairs, read_pictures

    images = pairs = None
    if settings.images is not None:
        images = (
            image for image, _ in _readable((picture, []) for picture in read_pictures(settings.images))
        )
    if settings.captions is not None:
        notes: list[str] = []
        pairs = _readable(
            (picture, captions)
            for picture, captions, part in read_pairs(settings.captions, notes)
            if part == "train"
        )
        for note in notes:
            log.info(note)
    backbone = join(settings, images, pairs)
    if not options.json:
        out(f"joined backbone in {settings.out} ({backbone.dim} wide); use it with backbone={settings.out}")
    return {
        "out": settings.out,
        "dim": backbone.dim,
        "logit_scale": backbone.logit_scale,
        "fitted": backbone.facts["fitted"],
    }


def generate(options: argparse.Namespace) -> Any:
    from wordsight.tasks.generate import generate, open_tower

    sampling = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
    }
    written = generate(open_tower(options.run), options.text, options.adapters, **sampling)
    if not options.json:
        for adapters, text in written.items():
            out(f"adapters {adapters}: {text}" if len(written) > 1 else text)
    return {"run": options.run, "text": options.text, **sampling, "written": written}


def verify(options: argparse.Namespace) -> Any:
    from wordsight.backbones.verify import verify
    from wordsight.tasks.generate import open_tower

    checks = verify(open_tower(options.run))
    if not options.json:
        for name, check in checks.items():
            out(
                f"{'passed' if check.passed else 'FAILED'}  {name:24} {check.value:<9.3g} "
                f"{'above' if check.least else 'most '} {check.bound:<7g} {check.says}"
            )
        failed = [name for name, check in checks.items() if not check.passed]
        out(
            f"{len(failed)} of {len(checks)} FAILED: {', '.join(failed)}"
            if failed
            else f"all {len(checks)} hold"
        )
    return {
        "run": options.run,
        "passed": all(check.passed for check in checks.values()),
        "checks": {
            name: check._asdict() | {"value": check.value if math.isfinite(check.value) else str(check.value)}
            for name, check in checks.items()
        },
    }


def demo(options: argparse.Namespace) -> Any:
    from wordsight.demo import demo

    return demo(options.which, options.out, show=not options.json)


class Verb:
    """A verb of the command line: what runs, what help says, and its arguments."""

    def __init__(
        self,
        run: Callable[[argparse.Namespace], Any],
        summary: str,
        *arguments: tuple[tuple[str, ...], dict[str, Any]],
    ):
        self.run, self.summary, self.arguments = run, summary, arguments


def _argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, options


_RUN = _argument("run", metavar="RUN", help="a run folder, or hf:org/name")
_WORDS = _argument(
    "words",
    nargs="*",
    metavar="KEY=VALUE",
    help="settings (`wordsight show run`, `show METHOD`), or YAML files of them; later ones win",
)
VERBS: dict[str, Verb] = {
    "fit": Verb(fit, "fit a method to labelled images: wordsight fit data=photos/ shots=16", _WORDS),
    "eval": Verb(
        evaluate,
        "figures of a run on its test images, or on other data",
        _argument("run", metavar="RUN", help="a run folder, where the figures are kept"),
        _argument("words", nargs="*", metavar="KEY=VALUE", help="data=..., classes=all|base|new"),
    ),
    "predict": Verb(
        predict,
        "classify images with a run",
        _RUN,
        _argument("images", nargs="+", metavar="IMAGE"),
        _argument("--top", type=int, default=1, metavar="K", help="how many classes to name (default 1)"),
        _argument(
            "--explain",
            action="store_true",
            help="the sentences closest to what the method says about the image",
        ),
        _argument(
            "--classes",
            metavar="A,B,...",
            help="choose among these classes instead, by name; no retraining; @FILE: one name a line",
        ),
        _argument("--sentences", metavar="FILE", help="sentences for new classes of --classes"),
    ),
    "report": Verb(
        report,
        "compare runs: a table, and one HTML file with plots",
        _argument(
            "runs", nargs="+", metavar="RUN", help="a run folder, or one that holds runs, as a suite's does"
        ),
        _argument("--out", default="report.html", metavar="FILE", help="the HTML file (default report.html)"),
        _argument(
            "--csv", metavar="FILE", help="every figure in full precision (default: beside the HTML file)"
        ),
        _argument("--latex", metavar="FILE", help="the tables for a paper"),
        _argument(
            "--reference",
            metavar="METHOD",
            help="whom the others are compared with (default aape, or the first)",
        ),
    ),
    "suite": Verb(
        suite,
        "run an evaluation suite: wordsight suite base-to-new methods=aape,coop data=photos/ seeds=1,2,3",
        _argument(
            "suite", metavar="SUITE", help="few-shot, base-to-new, cross-dataset, domain-shift or cost"
        ),
        _argument(
            "words",
            nargs="*",
            metavar="KEY=VALUE",
            help="methods=, data=, seeds=, backbone=, sentences=, aliases=, out=, jobs=; or YAML files",
        ),
    ),
    "sentences": Verb(
        sentences,
        "have an LLM write sentences about classes: wordsight sentences data=photos/ model=... out=s.json",
        _argument(
            "words",
            nargs="*",
            metavar="KEY=VALUE",
            help="data= or classes=, model=, base_url=, questions=, per_question=, temperature=, seed=, "
            "local=, out=",
        ),
    ),
    "generate": Verb(
        generate,
        "what the LM inside a two_tower run writes on from a text",
        _argument("run", metavar="RUN", help="a two_tower run, or an LLM backbone's folder or hub name"),
        _argument("text", metavar="TEXT", help="what it goes on from"),
        _argument(
            "--adapters",
            choices=("on", "off", "both"),
            default="off",
            help="off (default): the untouched LM, token for token",
        ),
        _argument(
            "--max-new-tokens",
            type=int,
            default=64,
            metavar="N",
            help="how much it writes at most (default 64)",
        ),
        _argument(
            "--temperature",
            type=float,
            default=0.0,
            metavar="T",
            help="0 (default): always the likeliest token; above, tokens are drawn",
        ),
        _argument("--seed", type=int, default=1, metavar="N", help="what they are drawn from (default 1)"),
    ),
    "verify": Verb(
        verify,
        "check what a two_tower run promises: read-only prompts, an untouched LM; exit code 1 where a "
        "promise is broken",
        _argument("run", metavar="RUN", help="a two_tower run, or an LLM backbone's folder or hub name"),
    ),
    "join": Verb(join, "make a CLIP-like backbone of a vision encoder and a text encoder", _WORDS),
    "list": Verb(listing, "methods, backbones and forms of data"),
    "show": Verb(
        show,
        "what a method does and its settings; `show run`: the settings of any run",
        _argument("name", metavar="METHOD"),
    ),
    "demo": Verb(
        demo,
        "on real handwritten digits, with the bundled models: a table and a report",
        _argument(
            "which",
            nargs="?",
            default="aape",
            metavar="aape|clamp",
            help="aape (default): a few labels; clamp: digits by name, after letters only",
        ),
        _argument(
            "--out",
            metavar="FOLDER",
            help="where its runs and report go (default runs/demo, or runs/demo-clamp)",
        ),
    ),
}


class _Parser(argparse.ArgumentParser):
    """argparse, with the nearest verb or option where one is mistyped."""

    def error(self, message: str) -> Any:
        word = (
            message.partition("invalid choice: '")[2].partition("'")[0]
            or message.partition("unrecognized arguments: ")[2].split(" ")[0]
        )
        given = {
            name
            for verb in VERBS.values()
            for names, _ in verb.arguments
            for name in names
            if name.startswith("--")
        }
        super().error(printable(message + nearest(word, {*VERBS, *given})))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wordsight", description="Adapts vision-language models through their language side."
    )
    parser.add_argument("--version", action="version", version=f"wordsight {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.summary, description=verb.summary)
        for names, options in verb.arguments:
            sub.add_argument(*names, **options)
        sub.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _pairs(words: Sequence[str], known: Sequence[str] | None = None) -> dict[str, str]:
    """key=value words as a dict; with `known`, no other keys."""
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or (known is not None and key not in known):
            choices = (
                f"; expected {', '.join(f'{name}=...' for name in known)}"
                if known is not None
                else "; expected key=value"
            )
            raise WordsightError(f"{word!r} is not understood{nearest(key, known or ())}{choices}")
        pairs[key] = value
    return pairs


def _template_set(run: str) -> str | None:
    """The name of the template set that stood in for sentences, where a run folder says so."""
    from wordsight.config import load_yaml
    from wordsight.sentences import TEMPLATE_SETS

    file = Path(run) / "config.yaml"
    words = load_yaml(file)["settings"]["sentences"] if file.is_file() else None
    return words if words in TEMPLATE_SETS else None


def _there(run: str) -> None:
    """A run that cannot be is said at once: what opens one takes seconds to import."""
    if not run.startswith("hf:") and not Path(run).expanduser().exists():
        near = nearest(Path(run).name, [path.name for path in Path(run).parent.glob("*/")])
        raise WordsightError(
            f"{run!r} does not exist{near}; give a run folder that `wordsight fit` made, or hf:org/name"
        )


def _readable(pairs: Iterable[tuple[Any, list[str]]]) -> Iterator[tuple[Any, list[str]]]:
    """Pictures as images; one that cannot be read is skipped and named."""
    from wordsight.data.images import Unreadable, read_image

    for picture, captions in pairs:
        try:
            yield read_image(picture.load()), captions
        except (Unreadable, OSError) as error:
            log.warning("skipped %s: %s", picture.name, error)


def _short(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("confusion", "class_recall", "event")}


def _print_results(results: Sequence[dict[str, Any]]) -> None:
    from wordsight.metrics import harmonic_mean

    for event in results:
        if event["event"] == "retrieval":
            out(
                f"{event['data']}: {event['images']} test images, {event['distinct_captions']} distinct "
                f"captions"
            )
            for way in ("image_to_text", "text_to_image"):
                out(
                    f"    {way.replace('_', ' ')}: "
                    + "  ".join(f"{name} {value:5.1f}%" for name, value in event[way].items())
                )
            continue
        five = "" if event["top5"] is None else f"  top-5 {event['top5']:5.1f}%"
        out(
            f"{event['classes']:>5}: accuracy {event['accuracy']:5.1f}%  mean class recall "
            f"{event['mean_class_recall']:5.1f}%{five}  ({event['images']} test images, chance "
            f"{event['chance']:.1f}%)"
        )
    by_part = {event["classes"]: event["accuracy"] for event in results if event["event"] == "eval"}
    if {"base", "new"} <= by_part.keys():
        out(f"    H: {harmonic_mean(by_part['base'], by_part['new']):5.1f}%  (harmonic mean of base and new)")


if __name__ == "__main__":  # for launchers, as `python -m wordsight` is
    sys.exit(main())
