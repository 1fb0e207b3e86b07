"""The verb `coverage`: from the command line's options to wordsight.coverage, and its result as plain values.
Imports no torch before it runs.
"""

from __future__ import annotations

import argparse
from typing import Any

from wordsight import terminal
from wordsight.arguments import Verb, argument


def coverage(options: argparse.Namespace) -> dict[str, Any]:
    from wordsight.coverage import coverage

    names = ("by", "cut_off", "engine", "address")
    return coverage(options.captions, options.classes, **{name: getattr(options, name) for name in names})


COVERAGE = Verb(
    coverage,
    terminal.coverage,
    "how often captions name each class: wordsight coverage captions.parquet --classes classes.json",
    [
        argument(
            "captions",
            nargs="+",
            metavar="CAPTIONS",
            help="tables with caption columns, texts of one caption a line (perhaps .gz), webdataset tars",
        ),
        argument(
            "--classes",
            required=True,
            metavar="FILE",
            help="class names: JSON as in classes.json, or text, one name a line",
        ),
        argument(
            "--by",
            choices=("phrases", "chunks"),
            default="phrases",
            help="phrases (default): the names and their plurals, wherever they stand; chunks: noun chunks "
            "by spaCy, as in CLAMP's paper",
        ),
        argument(
            "--cut-off",
            type=int,
            default=5,
            metavar="N",
            help="a class is covered where more than N captions name it (default 5)",
        ),
        argument(
            "--engine",
            choices=("here", "ray"),
            default="here",
            help="ray: on the machines of a Ray cluster, at --address or $RAY_ADDRESS",
        ),
        argument("--address", metavar="HOST:PORT", help="of the Ray cluster's head"),
    ],
)
