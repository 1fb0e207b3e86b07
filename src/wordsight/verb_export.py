"""`wordsight export`: a run for elsewhere: one folder with all it needs, or one ONNX graph."""

from __future__ import annotations

import argparse
from typing import Any

from wordsight import hints, terminal
from wordsight.arguments import BACKBONE, RUN, Verb, argument
from wordsight.config import WordsightError

OF_GRAPHS = ("classes", "images", "int8")


def export(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_run("export", options.run)
    given = {name: getattr(options, name) for name in OF_GRAPHS if getattr(options, name)}
    hints.check_kept(options.run)
    if options.onnx:
        from wordsight.onnx.exporting import export_graph

        out = export_graph(options.run, options.out, backbone=options.backbone, **given)
    elif given:
        raise WordsightError(f"--{next(iter(given))} is of an ONNX graph; give --onnx too")
    else:
        from wordsight.export import export

        out = export(options.run, options.out, backbone=options.backbone)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {"run": options.run, "out": str(out), "bytes": size}


EXPORT = Verb(
    export,
    terminal.export,
    "a run as one folder that needs nothing outside it, or as an ONNX graph: wordsight export RUN OUT --onnx",
    [
        RUN,
        argument("out", metavar="OUT", help="the new folder, for predict, load and the hub"),
        argument("--onnx", action="store_true", help="one ONNX graph, which predicts without torch"),
        argument(
            "--int8",
            choices=("weights", "all"),
            help="the graph's weights as 8 bits, a third of the size; all: it computes in them, less exactly",
        ),
        argument(
            "--images",
            action="append",
            metavar="PATH",
            help="a folder of images, or one, that the graph is compared on (default: the run's own)",
        ),
        argument("--classes", action="append", metavar="A,B,...", help="other classes of the graph, by name"),
        BACKBONE,
    ],
)
