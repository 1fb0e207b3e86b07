"""Early: what is wrong with a command and needs no model to be seen. The command line asks before it imports
torch, which takes seconds; what opens a run or a model asks the same, so that each is said in one way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from wordsight.config import is_vectors
from wordsight.files import WordsightError, plain_name
from wordsight.reader import nearest_path

GRAPH = "model.onnx"  # what a folder of `export --onnx` holds
WEIGHTS_FILE = "weights.safetensors"  # every fitted tensor, of a run and of a backbone of ours
FINISHED = "finished.json"  # what a run folder holds once all of it is there
SEEN, EVENTS = "seen.npy", "metrics.jsonl"
KEPT = (WEIGHTS_FILE, "extra.safetensors", "sentences.json", SEEN, "doubts.safetensors")  # in finished.json
TABLES = ("predictions-", "captions-", "answers-")  # what tables of an evaluation begin with
OF_RUN = (*KEPT, EVENTS, "config.yaml", "account.json", FINISHED)
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"  # owner/name
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
LAYOUT = "give a folder in transformers' layout or a hub name"
WAYS_ON = {  # where a model is not found
    "backbone": "give a local folder in transformers' layout, the hub name of a cached or reachable model, "
    "or `backbone=micro` (bundled; for glyph-like images)",
    "image encoder": LAYOUT,
    "text encoder": LAYOUT,
    "image-text model": LAYOUT,
    "LM": f"{LAYOUT}, or a GGUF file (owner/name:Q8_0 on the hub); micro_lm is bundled, for trials",
}


def check_place(name: str, what: str) -> None:
    """Refuse what can only be the path of a model, and is not there. `what` is a key of `WAYS_ON`."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    path = Path(name).expanduser()
    if is_path and not path.exists():
        raise WordsightError(f"{what} folder {name!r} does not exist{nearest_path(path)}; {WAYS_ON[what]}")


def is_finished(folder: str | Path) -> bool:
    """Whether a run's folder holds all of it."""
    return (Path(folder).expanduser() / FINISHED).is_file()


def check_finished(folder: Path) -> None:
    """Refuse a run whose fit was stopped."""
    if not is_finished(folder):
        raise WordsightError(
            f"the run in {str(folder)!r} is not finished; give its `wordsight fit` command again, it goes on "
            f"from where it stopped"
        )


def check_marks(unsure: float | None, error: float | None) -> None:
    """Refuse ways of marking answers that are no probability, or two at once."""
    if unsure is not None and (not isinstance(unsure, Real) or not 0 < unsure <= 1):
        raise WordsightError(f"unsure={unsure!r} is no probability; give one above 0 and up to 1, as 0.5")
    if unsure is not None and error is not None:
        raise WordsightError("unsure= and error= both say which answers are not certain; give one of them")


def check_reading(max_pixels: int | None, csv: str | Path | None, images: Iterable[Any] = ()) -> None:
    """Refuse a limit that no image keeps, and a table in the place of what is read."""
    if max_pixels is not None and (not isinstance(max_pixels, Integral) or max_pixels < 1):
        raise WordsightError(f"max_pixels={max_pixels!r} reads no image; give a whole number, 1 or more")
    if csv is not None:
        check_output(csv, "csv", images if isinstance(images, (list, tuple)) else ())


def check_output(path: str | Path, name: str, read: Iterable[Any] = ()) -> None:
    """Refuse a file to write where it would replace what is read, a file of a run, images or vectors: `--csv
    photos/*.jpg` names the first of them."""
    place = Path(path).expanduser()
    if place.is_dir():
        raise WordsightError(f"{name}={str(path)!r} is a folder; give the name of a file in it")
    for what, is_one in (("an image's name", is_picture), ("a file of vectors", _is_vectors)):
        if is_one(place):
            raise WordsightError(
                f"{name}={str(path)!r} is {what}, which would be replaced; give another name"
            )
    real = os.path.realpath(place)
    if any(isinstance(one, (str, Path)) and os.path.realpath(Path(one).expanduser()) == real for one in read):
        raise WordsightError(f"{name}={str(path)!r} is read here, and would be replaced; give another name")
    if is_run(place.parent) and (place.name in OF_RUN or place.name.startswith(TABLES)):
        raise WordsightError(
            f"{name}={str(path)!r} is a file of the run, which would be replaced; give another name"
        )


def _is_vectors(path: Path) -> bool:
    return is_vectors(path.name.lower())


def is_picture(path: str | Path) -> bool:
    return Path(path).suffix.lower() in PICTURES


def check_hub_name(name: str) -> None:
    """Refuse what can be no repository's name on the hub."""
    if not re.fullmatch(f"(hf:)?{HUB_NAME}", name):
        raise WordsightError(f"{name!r} is no name on the hub; give owner/name")


def check_described(changed: bool, sentences: str | None) -> None:
    """Refuse sentences where no other classes are chosen, which they would describe."""
    if sentences and not changed:
        raise WordsightError("--sentences describes the classes of --classes and --add; give one of them too")


def check_utf8(text: str) -> None:
    """Refuse a text in another encoding, whose bytes Python keeps as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WordsightError(f"the text {text[:80]!r} is not UTF-8; give it in that encoding") from error


def captions_file(data: str) -> str:
    """The table of what a run wrote of each test image of this data."""
    return f"captions-{plain_name(data)}.csv"


def is_run(name: str | Path) -> bool:
    """Whether a name is that of a run folder."""
    return (Path(name).expanduser() / "config.yaml").is_file()


def is_graph(path: str | Path) -> bool:
    """Whether a path is an ONNX file, or a folder of `export --onnx`."""
    path = Path(path).expanduser()
    return path.suffix == ".onnx" or ((path / GRAPH).is_file() and not (path / "config.yaml").exists())
