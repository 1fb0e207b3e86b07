"""What the tests of data make: tiny images, files, tars; and how they ask what was kept and told."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from wordsight.config import WordsightError
from wordsight.data import Dataset, open_dataset


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade % 256, shade // 256 % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fill(root: Path, *names: str) -> Path:
    """Images of these names, each of a shade of its own."""
    for shade, name in enumerate(names):
        put(root / name, png(shade))
    return root


def tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def fails(spec: object, *words: str, label: str | None = None) -> None:
    with pytest.raises(WordsightError) as error:
        open_dataset(str(spec), label)
    for word in words:
        assert word in str(error.value), str(error.value)


def names(split) -> list[str]:
    return [picture.name for picture in split.pictures]


def left_out(data: Dataset) -> dict[str, list[str]]:
    """What was left out, by reason; the account must add up."""
    account = data.account.to_dict()
    told = {reason: entry["names"] for reason, entry in account["left_out"].items()}
    assert account["seen"] == account["kept"] + sum(entry["count"] for entry in account["left_out"].values())
    assert account["kept"] == sum(len(part) for part in (data.train, data.val, data.test) if part is not None)
    return told


def files_below(root: Path) -> int:
    """How many files and links a folder holds, counted without the library."""
    return sum(len(files) for _, _, files in os.walk(root))
