"""The command line: a table of verbs, each calling the Python function of the same name. It parses, then
imports, so that help is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wordsight import help, hints, terminal
from wordsight.arguments import SEED, WORDS, Verb, argument, options_first, parser_of
from wordsight.config import RunSettings, WordsightError
from wordsight.reader import read
from wordsight.settings import JoinSettings
from wordsight.verb_ask import ASK
from wordsight.verb_audit import AUDIT
from wordsight.verb_caption import CAPTION
from wordsight.verb_chat import CHAT
from wordsight.verb_coverage import COVERAGE
from wordsight.verb_export import EXPORT
from wordsight.verb_label import LABEL
from wordsight.verb_predict import PREDICT
from wordsight.verb_push import PUSH
from wordsight.verb_search import SEARCH
from wordsight.verb_sentences import SENTENCES
from wordsight.verb_serve import SERVE

EVALUATIONS = ("eval", "multilabel", "retrieval", "captions")  # events of a run that hold figures
LEFT_OUT_OF_JSON = ("confusion", "class_recall", "event")  # of an evaluation: they stand in metrics.jsonl

log = logging.getLogger("wordsight")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 a check failed, 2 something the user can mend (a sentence says
    what), 130 interrupted.
    """
    with terminal.speaking():
        parser = parser_of(VERBS)
        given = list(sys.argv[1:] if arguments is None else arguments)
        options = argparse.Namespace(verb=None)
        asked = [word for word in given if word == "--json"]  # argparse takes no option between words
        words = [hints.as_path(word) for word in given if word != "--json"]
        try:
            hints.check_homes(words)
            if words and words[0] in VERBS:
                hints.check_blank(words[0], words[1:])
                hints.check_options(words[0], words[1:], VERBS[words[0]].options)
                words[1:] = options_first(words[1:], VERBS[words[0]])
            options = parser.parse_args(words + asked)
            if options.verb is None:
                parser.print_help()
                return 0
            return _answered(VERBS[options.verb], options)
        except WordsightError as error:
            log.error("wordsight: %s", error)
            return 2
        except OSError as error:  # a name that is too long, a folder that is closed, too many open files
            if isinstance(error, BrokenPipeError):  # our reader has gone, as in `wordsight list | head -1`
                with contextlib.suppress(OSError):
                    sys.stdout.close()
                if getattr(options, "csv", None) is None:
                    return 0
                log.error("wordsight: printing was cut off, and --csv %s is not whole", options.csv)
                return 2
            log.error("wordsight: %s", hints.said_of(error))
            return 2
        except KeyboardInterrupt as stop:
            goes_on = "" if options.verb == "chat" else "; the same command goes on from here"
            log.error("\nwordsight: %s%s", str(stop) or "stopped", goes_on)
            return 130


def _answered(verb: Verb, options: argparse.Namespace) -> int:
    """Run the verb and print its answer."""
    # of several processes one speaks
    quiet = contextlib.redirect_stdout(None) if int(os.environ.get("RANK", "0")) else contextlib.nullcontext()
    with quiet:
        answer = verb.run(options)
        show = terminal.out_json if options.json else verb.show
        if show is not None:
            show(answer)
    if isinstance(answer, Mapping) and answer.get("skipped"):
        log.error("wordsight: %d of what was given could not be done; the rest is", len(answer["skipped"]))
        return 2
    return 1 if isinstance(answer, Mapping) and answer.get("passed") is False else 0


# -- verbs: from options to the function of that name, and its result as plain values ------------------------


def fit(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_fit(options.words)
    settings = read(RunSettings, *options.words)
    from wordsight.fit import fit

    run = fit(settings)
    results = [event for kind in EVALUATIONS for event in run.events(kind)]
    latest = list({(event["data"], event.get("classes")): event for event in results}.values())
    return {
        "run": str(run.folder),
        "method": settings.method,
        "classes": len(run.facts.classes),
        "fit": run.events("fit")[-1:],
        "eval": list(map(_short, latest)),
        "account": run.account,
    }


def evaluate(options: argparse.Namespace) -> list[dict[str, Any]]:
    hints.check_run_or_model("eval", options.run)
    hints.check_words("eval", options.words)
    given = read(help.EvaluateSettings, *options.words)
    hints.check_data(given.data)
    hints.check_kept(options.run)
    from wordsight.tasks import evaluate

    own = {name: value for name, value in vars(given).items() if name not in ("engine", "address")}
    with given.on():
        return list(map(_short, evaluate(options.run, **own)))


def report(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_runs(options.runs)
    from wordsight.report import report

    return report(
        options.runs,
        options.out,
        csv_file=options.csv,
        latex_file=options.latex,
        reference=options.reference,
        coverage_file=options.coverage,
    )


def suite(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_words("suite", options.words)
    from wordsight.suite_settings import SuiteSettings, suite_of

    settings = read(SuiteSettings, *options.words, {"suite": options.suite})
    suite_of(settings)  # a name that is none, before torch is imported
    if not any(Path(name).expanduser().exists() for name in settings.data):
        hints.check_data(next(iter(settings.data), None))
    for name in ("sentences", "aliases"):
        hints.check_texts(name, getattr(settings, name))
    from wordsight.suites import run_suite

    return run_suite(settings)


def join(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_words("join", options.words)
    settings = read(JoinSettings, *options.words)
    hints.check_join(settings)
    from wordsight.backbones.join import join
    from wordsight.data.decoded import decoded_images, decoded_pairs

    images = decoded_images(settings.images) if settings.images is not None else None
    pairs = decoded_pairs(settings.captions) if settings.captions is not None else None
    backbone = join(settings, images, pairs)
    facts = {"dim": backbone.dim, "logit_scale": backbone.logit_scale, "fitted": backbone.facts["fitted"]}
    return {"out": settings.out, **facts}


def generate(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_run_or_model("generate", options.run)
    from wordsight.tasks.generate import generate, open_tower

    sampling = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "seed")}
    written = generate(open_tower(options.run), options.text, options.adapters, **sampling)
    return {"run": options.run, "text": options.text, **sampling, "written": written}


def verify(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_run_or_model("verify", options.run)
    from wordsight.assistant import verified

    checks = {name: check._asdict() for name, check in verified(options.run).items()}
    for check in checks.values():
        if not math.isfinite(check["value"]):
            check["value"] = str(check["value"])  # which JSON has no number for
    passed = all(check["passed"] for check in checks.values())
    return {"run": options.run, "passed": passed, "checks": checks}


def show(options: argparse.Namespace) -> dict[str, Any]:
    return help.show(options.name)


def demo(options: argparse.Namespace) -> dict[str, Any]:
    from wordsight.demo import demo

    return demo(options.which, options.out, show=not options.json)


def _short(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in LEFT_OUT_OF_JSON}


# -- the table -----------------------------------------------------------------------------------------------

_TOWER = argument("run", metavar="RUN", help="a two_tower run, or an LLM backbone's folder or hub name")
VERBS: dict[str, Verb] = {
    "fit": Verb(
        fit, terminal.fit, "fit a method to labelled images: wordsight fit data=photos/ shots=16", [WORDS]
    ),
    "eval": Verb(
        evaluate,
        terminal.evaluate,
        "figures of a run on its test images, or on other data: wordsight eval RUN data=other/",
        [argument("run", metavar="RUN", help="a run folder, where the figures are kept"), WORDS],
    ),
    "predict": PREDICT,
    "caption": CAPTION,
    "ask": ASK,
    "search": SEARCH,
    "coverage": COVERAGE,
    "chat": CHAT,
    "serve": SERVE,
    "report": Verb(
        report,
        terminal.report,
        "compare runs: a table, and one HTML file with plots",
        [
            argument(
                "runs",
                nargs="+",
                metavar="RUN",
                help="a run folder, or one that holds runs, as a suite's does",
            ),
            argument(
                "--out", default="report.html", metavar="FILE", help="the HTML file (default report.html)"
            ),
            argument(
                "--csv", metavar="FILE", help="every figure in full precision (default: beside the HTML file)"
            ),
            argument("--latex", metavar="FILE", help="the tables for a paper"),
            argument(
                "--reference",
                metavar="METHOD",
                help="whom the others are compared with (default aape, or the first)",
            ),
            argument(
                "--coverage",
                metavar="FILE",
                help="what `wordsight coverage --json` wrote: accuracy by covered and uncovered classes",
            ),
        ],
    ),
    "export": EXPORT,
    "push": PUSH,
    "suite": Verb(
        suite,
        terminal.suite,
        "run an evaluation suite: wordsight suite base-to-new methods=aape,coop data=photos/ seeds=1,2,3",
        [
            argument(
                "suite",
                metavar="SUITE",
                help="few-shot, base-to-new, cross-dataset, domain-shift, zeroshot-24, retrieval or cost",
            ),
            WORDS,
        ],
    ),
    "audit": AUDIT,
    "label": LABEL,
    "sentences": SENTENCES,
    "generate": Verb(
        generate,
        terminal.generate,
        "what the LM inside a two_tower run writes on from a text",
        [
            _TOWER,
            argument("text", metavar="TEXT", help="what it goes on from"),
            argument(
                "--adapters",
                choices=("on", "off", "both"),
                default="off",
                help="off (default): the untouched LM, token for token",
            ),
            argument(
                "--max-new-tokens",
                type=int,
                default=64,
                metavar="N",
                help="how much it writes at most (default 64)",
            ),
            argument(
                "--temperature",
                type=float,
                default=0.0,
                metavar="T",
                help="0 (default): always the likeliest token; above, tokens are drawn",
            ),
            SEED,
        ],
    ),
    "verify": Verb(
        verify,
        terminal.verify,
        "check what a two_tower run or an assistant promises: read-only prompts, an untouched LM; exit code "
        "1 where a promise is broken",
        [_TOWER],
    ),
    "join": Verb(
        join, terminal.join, "make a CLIP-like backbone of a vision encoder and a text encoder", [WORDS]
    ),
    "list": Verb(lambda _: help.listing(), terminal.listing, "methods, backbones and forms of data"),
    "show": Verb(
        show,
        terminal.show,
        "the settings of a method, of a verb (fit, eval, audit, search, suite, join, sentences), of train or "
        "of any run",
        [argument("name", metavar="NAME", help="a method of `wordsight list`, a verb, train, or run")],
    ),
    "demo": Verb(
        demo,
        None,
        "on real handwritten digits, with the bundled models: a table and a report",
        [
            argument(
                "which",
                nargs="?",
                default="aape",
                metavar="aape|clamp",
                help="aape (default): a few labels; clamp: digits by name, after letters only",
            ),
            argument(
                "--out",
                metavar="FOLDER",
                help="where its runs and report go (default runs/demo, or runs/demo-clamp)",
            ),
        ],
    ),
}


if __name__ == "__main__":  # for launchers, as `python -m wordsight` is
    sys.exit(main())
