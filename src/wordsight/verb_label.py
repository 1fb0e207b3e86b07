"""The verb `label`: from the command line's options to wordsight.labelling. Imports no torch before it
runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from wordsight import hints
from wordsight.arguments import HOST, PORT, Verb, argument
from wordsight.config import WordsightError
from wordsight.names import class_list
from wordsight.serve.settings import Settings
from wordsight.verb_serve import hosts_of, keys_of


def label(options: argparse.Namespace) -> None:
    if not Path(options.folder).expanduser().is_dir():
        raise WordsightError(f"{options.folder!r} is no folder; give the folder of the images to label")
    hints.check_words("fit", options.words)
    hints.check_fit([f"data={options.folder}", *options.words])
    if options.classes:
        from wordsight.data.labels import check_distinct

        check_distinct(class_list(options.classes), "--classes")
    keys = keys_of(options.keys)
    hosts = hosts_of(options.allow_host, options.host, keys)
    server = Settings(host=options.host, port=options.port, keys=keys, allow_hosts=hosts)
    from wordsight.labelling import label, settings_of

    settings = settings_of(options.folder, *options.words)
    given = {"out": options.out, "unlabelled": options.unlabelled, "settings": settings, "server": server}
    label(options.folder, options.classes, **given)


LABEL = Verb(
    label,
    None,
    "label a folder on a page, with a method that learns meanwhile: wordsight label photos/ --classes a,b",
    [
        argument("folder", metavar="FOLDER", help="images at any depth"),
        argument(
            "words", nargs="*", metavar="KEY=VALUE", help="settings of `fit`, as backbone=... sentences=..."
        ),
        argument(
            "--classes",
            action="append",
            metavar="A,B,...",
            help="what they may show; or a file with one name a line (@FILE); may be repeated",
        ),
        argument("--out", metavar="FILE", help="the CSV of labels (default FOLDER/labels.csv)"),
        argument("--unlabelled", metavar="FOLDER", help="further images that the method may learn from"),
        HOST,
        PORT,
        argument("--keys", metavar="FILE", help="keys of clients, one a line; as of `serve`"),
        argument("--allow-host", action="append", metavar="HOST", help="by which name it may be called"),
    ],
)
