"""The test parts of datasets that are kept as tables, as trees in CLIP_benchmark's layout:

    python benchmarks/zeroshot/trees.py TEMPLATES OUT vtab/dtd=../shared/data/dtd10 ...

TEMPLATES is CLIP_benchmark's en_zeroshot_classification_templates.json, in its package (`pip install
--no-deps clip_benchmark`)."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from wordsight.data import Dataset, open_dataset
from wordsight.data.zeroshot24 import cleaned

SHARD = 700  # images of a tar


def write(data: Dataset, templates: Sequence[str], folder: Path) -> None:
    assert data.test is not None  # of a table with a test part
    (folder / "test").mkdir(parents=True)
    pairs = list(zip(data.test.pictures, data.test.labels.tolist()))
    shards = [pairs[start : start + SHARD] for start in range(0, len(pairs), SHARD)]
    for number, shard in enumerate(shards):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for place, (picture, label) in enumerate(shard, number * SHARD):
                value = picture.load()
                assert isinstance(value, bytes)  # of a table of files
                add(tar, f"s{place:07d}{Path(picture.name).suffix}", value)
                add(tar, f"s{place:07d}.cls", str(label).encode())
    (folder / "test" / "nshards.txt").write_text(str(len(shards)))
    for name, lines in (
        ("classnames.txt", [name.replace("_", " ") for name in data.class_names]),
        ("zeroshot_classification_templates.txt", templates),
    ):
        (folder / name).write_text("\n".join(lines) + "\n")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    listed, out, *asked = sys.argv[1:]
    known = json.loads(Path(listed).read_text())
    for one in asked:
        key, _, source = one.partition("=")
        folder = Path(out) / f"wds_{cleaned(key)}"
        write(open_dataset(source), known[key.split("/")[-1]], folder)
        print(folder)
