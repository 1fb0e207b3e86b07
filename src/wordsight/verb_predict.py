"""The verb `predict`: from the command line's options to wordsight.prediction, and its result as plain
values. Imports no torch before it runs.
"""

from __future__ import annotations

import argparse
from typing import Any

from wordsight import hints, terminal
from wordsight.arguments import BACKBONE, MAX_PIXELS, RUN, Verb, argument
from wordsight.early import is_graph

EXPLAINED = 3  # sentences an explanation shows at least


def predict(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_predict(options)
    if is_graph(options.run):
        from wordsight.onnx.predicting import predict
    else:
        from wordsight.prediction import predict

    explain = max(options.top, EXPLAINED) if options.explain else 0
    names = ("classes", "add", "sentences", "unsure", "error", "csv", "backbone", "max_pixels")
    wanted = {name: getattr(options, name) for name in names}
    answers = predict(options.run, options.images, explain=explain, **wanted)
    entries = (answers.entry(answer, options.top) for answer in answers)
    return {"predictions": entries, "skipped": answers.skipped, "account": answers.account.to_dict}


PREDICT = Verb(
    predict,
    terminal.predict,
    "classify images with a run: wordsight predict RUN new/*.jpg --csv out.csv",
    [
        RUN,
        argument("images", nargs="+", metavar="IMAGE", help="images, or folders of them"),
        argument("--top", type=int, default=1, metavar="K", help="how many classes to name (default 1)"),
        argument("--csv", metavar="FILE", help="write a table: all class probabilities, a line an image"),
        argument(
            "--unsure",
            type=float,
            metavar="P",
            help="mark answers whose best probability is below P, as 0.5",
        ),
        argument(
            "--error",
            type=float,
            metavar="RATE",
            help="the classes of each image that are not ruled out at this error rate, as 0.1",
        ),
        argument(
            "--explain",
            action="store_true",
            help="the sentences closest to what the method says about the image",
        ),
        argument(
            "--classes",
            action="append",
            metavar="A,B,...",
            help="choose among these classes instead, by name, without retraining; or a file with one "
            'name a line (@FILE); may be repeated; "salt, pepper",sugar holds two names',
        ),
        argument("--add", action="append", metavar="A,B,...", help="choose among these classes, too"),
        argument("--sentences", metavar="FILE", help="sentences for new classes of --classes and --add"),
        BACKBONE,
        MAX_PIXELS,
    ],
)
