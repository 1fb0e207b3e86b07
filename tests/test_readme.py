"""README's commands, as they stand there, in their order, in a folder with a newcomer's files. Hub names lead
to tiny models, and the server is one that answers.
"""

import csv
import glob
import io
import itertools
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from standins import COLOURS, fill_folder, paint

from wordsight.backbones import hub
from wordsight.cli import main

sys.path.insert(0, str(Path(__file__).parent / "sentences"))
from fake_server import serving

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
ELSEWHERE = ("make", "pip")  # the hook and a clean clone run these
SERVER = "http://127.0.0.1:8000/v1"
# what makes a command short, and nothing else
SHORT = {
    "fit": "train.max_steps=2",
    "method=two_tower": "settings.prompts=2 settings.heads=2 settings.max_tokens=80 settings.wrapper=plain",
    "method=limber": "settings.max_tokens=24",
    "suite": "backbone={clip} train.max_steps=2 jobs=1",
    "--adapters": "--max-new-tokens 2",
}


def commands() -> list[list[str]]:
    lines = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [found for found in words if found and found[0] not in ELSEWHERE]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory, tiny_clip, lm):
    """A folder with photos, new images and pairs; and no network."""
    folder = tmp_path_factory.mktemp("newcomer")
    fill_folder(folder / "photos", tuple(COLOURS)[:4], count=18)
    fill_folder(folder / "other")
    (folder / "classes.txt").write_text("red wall\ngreen wall\n")
    (folder / "new").mkdir()
    for name, colour in COLOURS.items():
        paint(colour, 3).save(folder / "new" / f"{name}.jpg")
    shutil.copyfile(folder / "new" / "red.jpg", folder / "new.jpg")
    rows = [[f"photos/{name}/{row}.png", f"a {name} wall"] for name in ("red", "green") for row in range(8)]
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "caption"], *rows])
    asked = [
        [
            f"photos/{name}/{row}.png",
            "is it red?",
            "yes" if name == "red" else "no",
            "test" if row > 8 else "train",
        ]
        for name in ("red", "green")
        for row in range(4, 14)
    ]
    with open(folder / "questions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "question", "answer", "split"], *asked])
    known = {"openai/clip-vit-base-patch16": tiny_clip, "HuggingFaceTB/SmolLM2-135M": lm}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "_cached", known.get)
        patch.setattr(hub, "own", lambda name: None)
        patch.chdir(folder)
        patch.setattr("sys.stdin", io.StringIO("/help\n"))  # of `chat`
        yield folder


@pytest.mark.slow
def test_every_command_runs_in_its_order(newcomer, tiny_clip, capsys):
    count = itertools.count()
    with serving(lambda asked: f"It is wall {next(count)}.") as (url, _):
        for words in commands():
            assert words[0] == "wordsight"
            given = [word.replace(SERVER, url) for word in words[1:]]
            given = [one for word in given for one in (sorted(glob.glob(word)) or [word])]
            for key, more in SHORT.items():
                given += more.format(clip=tiny_clip).split() if key in given else []
            code = main(given)
            assert code == 0, f"{shlex.join(words)}: {capsys.readouterr().err}"


def test_the_python_runs(newcomer):
    (block,) = [block for kind, block in BLOCKS if kind == "python"]
    images = [np.full((8, 8, 3), 20 * row, np.uint8) for row in range(8)]
    exec(block, {"images": images, "labels": ["zero", "one"] * 4})
