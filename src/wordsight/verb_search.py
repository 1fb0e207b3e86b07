"""The verb `search`: from the command line's options to wordsight.search, and its result as plain values.
Imports no torch before it runs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wordsight import help, hints, terminal
from wordsight.arguments import Verb, argument
from wordsight.config import WordsightError
from wordsight.reader import nearest, nearest_path, read


def search(options: argparse.Namespace) -> dict[str, Any]:
    settings, text = _settings(options.words)
    if options.k < 1:
        raise WordsightError(f"-k {options.k} finds nothing; give 1 or more")
    if bool(text) == bool(options.image):
        given = "both are given" if text else "neither is given"
        raise WordsightError(f"search takes a text or --image FILE, and {given}: {EXAMPLE}")
    _check_data(options.data)
    hints.check_data(options.data)
    query = Path(options.image) if options.image else text
    _check_image(query)
    from wordsight.search import Index

    names = ("backbone", "device", "dtype", "max_pixels")
    with settings.on():
        index = Index.open(options.data, **{name: getattr(settings, name) for name in names})
    matches = index.search(query, options.k)
    return {
        "data": options.data,
        "query": str(query),
        "backbone": index.backbone.name,
        "images": len(index),
        "results": [
            {"image": match.image, "score": round(match.score, 4), "copies": list(match.copies)}
            for match in matches
        ],
        "unreadable": [{"image": name, "reason": reason} for name, reason in index.unreadable],
        "account": index.account.to_dict(),
    }


def _settings(words: Sequence[str]) -> tuple[help.SearchSettings, str]:
    """The settings among the words, and what is left of them, which is the query."""
    known = help.described(help.SearchSettings)
    own = [word for word in words if word.partition("=")[0] in known and "=" in word]
    rest = [word for word in words if word not in own]
    for word in rest:
        key = word.partition("=")[0]
        if re.fullmatch(r"[a-z_]+=\S*", word) and (near := nearest(key, list(known))):
            raise WordsightError(f"{key!r} is no setting of search{near}")
    return read(help.SearchSettings, *own), " ".join(rest).strip()


def _check_data(word: str) -> None:
    """Refuse what is no folder of images, with what was probably meant."""
    key, _, value = word.partition("=")
    if key in ("data", "folder") and value and not Path(word).exists():
        raise WordsightError(f"search takes the folder by itself: wordsight search {value} 'a dog'")
    if hints.is_run(Path(word).expanduser()):
        raise WordsightError(
            f"{word!r} is a run and holds no images: `wordsight search FOLDER 'a dog' backbone={word}` "
            f"searches a folder with its backbone"
        )


def _check_image(query: str | Path) -> None:
    """Refuse an image that is not there, before a backbone is loaded."""
    if hints.is_picture(query) and re.match("[a-z]+:/", str(query)):  # a path has lost one of two slashes
        raise WordsightError(f"{str(query)!r} is an address; fetch the image, and give its path")
    path = Path(query).expanduser() if isinstance(query, Path) or hints.is_picture(query) else None
    if path is not None and not path.is_file():
        what = "is a folder" if path.is_dir() else f"does not exist{nearest_path(path)}"
        raise WordsightError(f"the query image {str(path)!r} {what}; give the path of an image, or a text")


EXAMPLE = "wordsight search photos/ 'a dog in the snow'"
SEARCH = Verb(
    search,
    terminal.search,
    f"the images of a folder closest to a text or an image: {EXAMPLE}",
    [
        argument("data", metavar="FOLDER", help="images at any depth, or any data that `fit` takes"),
        argument(
            "words",
            nargs="*",
            metavar="QUERY",
            help="a text, or the path of an image; settings as key=value may stand behind it",
        ),
        argument("--image", metavar="FILE", help="an image to search by, whatever it is called"),
        argument("-k", type=int, default=10, metavar="K", help="how many images to show (default 10)"),
    ],
)
