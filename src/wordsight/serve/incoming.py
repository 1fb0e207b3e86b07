"""Incoming: what a request holds, checked before any work is done: images, class names, sentences, texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile

from wordsight.config import WordsightError
from wordsight.data.images import Unreadable, size_of
from wordsight.files import moves, nfc, parse_json, printable, visible
from wordsight.serve.fetching import Fetch
from wordsight.serve.refused import Refused
from wordsight.serve.settings import MB, Limits

JPEG, SCAN = b"\xff\xd8", b"\xff\xda"  # begin a file, and a pass over all of its pixels
MAX_SCANS = 100  # cameras write one, progressive JPEGs about ten


class Sent(NamedTuple):
    """An image of a request."""

    name: str  # as the client calls it, without its folders
    load: Callable[[], bytes]  # its bytes; errors: Unreadable
    linked: bool = False  # whether they are to be had from another host


def images_of(files: Sequence[UploadFile], urls: Sequence[str], limits: Limits, fetch: Fetch) -> list[Sent]:
    """The images of a request. Errors: Refused for none, or too many."""
    if not files and not urls:
        raise Refused(422, "images: there is none; send image files as the form's field `images`")
    if len(files) + len(urls) > limits.max_images:
        raise Refused(
            413, f"{len(files) + len(urls)} images are more than {limits.max_images}; send them in parts"
        )
    uploads = [upload_of(file, f"image {place}", limits) for place, file in enumerate(files)]
    return uploads + [linked(url, limits, fetch) for url in urls]


def upload_of(file: UploadFile, name: str, limits: Limits) -> Sent:
    """An image that was sent as a file."""

    def load() -> bytes:
        if (file.size or 0) > limits.max_image_mb * MB:
            raise Unreadable(f"its file is larger than {limits.max_image_mb} MB")
        file.file.seek(0)
        return checked(file.file.read())

    return Sent(_file_name(file.filename, name, limits), load)


def linked(url: str, limits: Limits, fetch: Fetch) -> Sent:
    """An image that is named by its URL. Errors: Refused where its host is not allowed."""
    fetch.check(text_of(url, "urls", limits.max_text))
    last = url.partition("?")[0].rstrip("/").rpartition("/")[2]
    return Sent(_file_name(last, "image", limits), lambda: checked(fetch(url)), True)


def checked(image: bytes) -> bytes:
    """An image's bytes. Errors: Unreadable for a JPEG that takes minutes to decode, however small it is."""
    if image.startswith(JPEG) and image.count(SCAN) > MAX_SCANS:
        raise Unreadable(f"a JPEG of more than {MAX_SCANS} scans; save it anew")
    return image


def pixels_in(image: bytes) -> int:
    """How many pixels an image says it has. Errors: Unreadable for what is none."""
    width, height = size_of(image)
    return width * height


def _file_name(given: str | None, otherwise: str, limits: Limits) -> str:
    """The last part of a name that a client gave, fit to be shown."""
    last = (given or "").replace("\\", "/").rpartition("/")[2]
    return "".join(sign for sign in last if not moves(sign))[: limits.max_name] or otherwise


def names_in(given: Sequence[str], what: str, limits: Limits) -> tuple[str, ...]:
    """Class names: one field each, or one field with a JSON list. Errors: Refused."""
    names: list[Any] = list(given)
    if len(names) == 1 and names[0].lstrip().startswith("["):
        names = _json(names[0], what)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Refused(422, f"{what}: the JSON list holds something else than texts")
    if len(names) > limits.max_classes:
        raise Refused(413, f"{what}: {len(names)} names are more than {limits.max_classes}")
    found = tuple(name_of(name, what, limits.max_name) for name in names if name.strip())
    if len({visible(name) for name in found}) < len(found):
        raise Refused(422, f"{what}: a name stands there twice")
    return found


def name_of(text: str, what: str, most: int) -> str:
    """A class name. Errors: Refused for a blank or long one, and for control characters and further lines."""
    name = nfc(text_of(text, what, most)).strip()
    if not visible(name).strip() or set(name) & {"\n", "\t"}:
        raise Refused(422, f"{what}: give the name of a class, on one line")
    return name


def sentences_in(given: str | None, names: Sequence[str], limits: Limits) -> dict[str, tuple[str, ...]]:
    """Sentences by class: a JSON object {class: [sentence, ...]}. Errors: Refused, for a class that is not
    among the names, too.
    """
    if given is None or not given.strip():
        return {}
    table = _json(given, "sentences")
    if not isinstance(table, Mapping) or not all(_are_texts(texts) for texts in table.values()):
        raise Refused(422, 'sentences: give a JSON object {"class": ["sentence", ...]}')
    if (count := sum(map(len, table.values()))) > limits.max_sentences:
        raise Refused(413, f"sentences: {count} are more than {limits.max_sentences}")
    found = {nfc(name).strip(): texts for name, texts in table.items()}
    if strange := [name for name in found if name not in names]:
        raise Refused(
            422, f"sentences: {strange[0][:80]!r} is among neither `classes` nor `add` nor the model's own"
        )
    return {
        name: tuple(text_of(text.strip(), "sentences", limits.max_text) for text in texts if text.strip())
        for name, texts in found.items()
    }


def text_of(text: str, what: str, most: int) -> str:
    """A text as it came. Errors: Refused for a long one, and for control characters."""
    if len(text) > most:
        raise Refused(413, f"{what}: a text of {len(text)} signs is longer than {most}")
    if strange := next((sign for sign in text if moves(sign) and sign not in "\n\t"), None):
        raise Refused(422, f"{what}: holds the control character {printable(strange)}; leave it out")
    return text


def _json(text: str, what: str) -> Any:
    try:
        return parse_json(text, what)
    except WordsightError as error:
        raise Refused(422, str(error)) from error


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
