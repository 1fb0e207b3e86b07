"""The pages of docs/: each one's commands and snippets as they stand there, in their order, in a newcomer's
folder (test_readme.py). A block that cannot run here has a line in front that says why, a line has it behind;
both are counted."""

import glob
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import yaml
from mllms import write_mllm
from test_assistant import TEMPLATE
from test_readme import ELSEWHERE, SERVER, SHORT, newcomer  # noqa: F401  a fixture

import wordsight
from wordsight import hints
from wordsight.backbones import hub
from wordsight.cli import VERBS, main
from wordsight.config import RunSettings, WordsightError, default_folder
from wordsight.reader import read

sys.path.insert(0, str(Path(__file__).parent / "sentences"))
from fake_server import serving

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>bash|python)\n(?P<text>.*?)^```", re.M | re.S
)
SETTLED = (
    "fit data=photos/ shots=4 folds=2 out=runs/photos",
    "fit method=two_tower data=pairs.csv backbone=openai/clip-vit-base-patch16 "
    "settings.text=HuggingFaceTB/SmolLM2-135M out=runs/clamp",
    "fit method=limber data=pairs.csv backbone=openai/clip-vit-base-patch16 "
    "settings.text=HuggingFaceTB/SmolLM2-135M out=runs/limber",
    "fit method=aape_captions data=flickr8k/captions.csv backbone=openai/clip-vit-base-patch16 "
    "out=runs/captions",
)
LINE = re.compile(r"\(not run: ([^)]+)\)")
SIZES = {**SHORT, "clamp-vicuna13b": SHORT["method=two_tower"] + " dtype=float32"}
# blocks and lines that are not run; it may fall, and rises only where there is no other way
NOT_RUN = 28  # blocks; it may fall, and rises only where there is no other way


def blocks(page):
    return [found.groupdict() for found in BLOCK.finditer((DOCS / page).read_text(encoding="utf-8"))]


def lines_of(text):
    lines = text.replace("\\\n", " ").splitlines()
    words = ((line, shlex.split(line, comments=True)) for line in lines)
    return [line for line, own in words if own and own[0] not in ELSEWHERE]


RUNS = [page for page in PAGES if any(block["why"] is None for block in blocks(page))]


@pytest.fixture(scope="module")
def settled(newcomer, tiny_clip, lm, vit):  # noqa: F811
    """The newcomer's folder, a few runs later, with the files that pages name."""
    known = {f"openai/clip-vit-base-patch{size}": tiny_clip for size in (16, 32)}
    known["laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"] = tiny_clip
    talks = shutil.copytree(lm, newcomer / "models" / "lm")
    about = json.loads((talks / "tokenizer_config.json").read_text())
    (talks / "tokenizer_config.json").write_text(json.dumps(about | {"chat_template": TEMPLATE}))
    known |= dict.fromkeys(("HuggingFaceTB/SmolLM2-135M", "google/gemma-3-270m"), talks)
    known |= {"llava-hf/llava-1.5-7b-hf": write_mllm("llava", newcomer / "models" / "llava", chat=True)}
    known |= dict.fromkeys(("facebook/dinov2-small", "google/vit-base-patch16-224"), vit)
    known |= {"sentence-transformers/all-MiniLM-L6-v2": lm}
    files(newcomer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "_cached", known.get)
        patch.syspath_prepend(str(ROOT / "examples"))
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.chdir(newcomer)
        for command in SETTLED:
            assert main(shortened(command.split(), tiny_clip)) == 0, command
        yield newcomer


def files(folder):
    """What pages call by name."""
    for copy in ("img", "cat", "dog", "a", "b"):
        shutil.copyfile(folder / "new.jpg", folder / f"{copy}.jpg")
    shutil.copytree(ROOT / "examples", folder / "examples")
    for copy in ("pets", "more"):
        shutil.copytree(folder / "photos", folder / copy)
    pairs = pandas.read_csv(folder / "pairs.csv")
    pairs.to_parquet(folder / "captions.parquet")
    shutil.copytree(folder / "photos", folder / "flickr8k" / "photos")
    parts = ["train"] * (len(pairs) - 4) + ["val"] * 2 + ["test"] * 2
    pairs.assign(split=parts).to_csv(folder / "flickr8k" / "captions.csv", index=False)
    new = [[str(path.relative_to(folder / "other")), "a wall"] for path in (folder / "other").rglob("*.png")]
    captions = pandas.DataFrame(new, columns=["path", "caption"]).assign(split="test")
    captions.to_csv(folder / "other" / "captions.csv", index=False)
    names = sorted(place.name for place in (folder / "photos").iterdir())
    for file in ("photos.json", "sentences.json", "words.json"):
        (folder / file).write_text(json.dumps({name: [f"much {name}"] for name in names}))
    (folder / "classes.json").write_text(json.dumps(names))
    found = wordsight.coverage(str(folder / "captions.parquet"), names)
    (folder / "coverage.json").write_text(json.dumps(found))


def given(folder):
    """What snippets have at hand: the package, labelled images and others."""
    paths = sorted((folder / "photos").rglob("*.png"))
    labels, images = [path.parent.name for path in paths], list(map(str, paths))
    return {"wordsight": wordsight, "images": images, "labels": labels, "others": images[::3]}


def shortened(words, clip):
    """The same command with what makes it short, and nothing else."""
    given = [one for word in words for one in (sorted(glob.glob(word)) or [word])]
    verbs = {"suite": words[0] == "suite", "fit": trains(words)}  # a folder may be called so
    short = [key for key in SIZES if key in given and verbs.get(key, True)]
    for key in short:
        given += SIZES[key].format(clip=clip).split()
    return given


def trains(words):
    return asked(words) is None or asked(words).train is not None


def asked(words):
    try:
        return read(RunSettings, *words[1:])
    except WordsightError:
        return None


def run_line(line, url, clip, capsys):
    """A command of ours in this process, any other line in a shell."""
    words = [word for word in shlex.split(line, comments=True) if not word.startswith("PYTHONPATH=")]
    if words[0] != "wordsight":
        subprocess.run(line, shell=True, check=True)
        return
    if words[1] == "fit" and (settings := asked(words[1:])) is not None:  # another than the command above it
        shutil.rmtree(settings.out or default_folder(settings), ignore_errors=True)
    code = main(shortened([word.replace(SERVER, url) for word in words[1:]], clip))
    assert code == 0, f"{line}: {capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNS)
def test_a_page_runs_from_top_to_bottom(page, settled, tiny_clip, capsys, monkeypatch, tmp_path):
    count, names = itertools.count(), given(settled)
    monkeypatch.chdir(shutil.copytree(settled, tmp_path / "newcomer"))
    monkeypatch.setattr("sys.stdin", io.StringIO("/help\n"))  # of `chat`
    with serving(lambda asked: f"It is wall {next(count)}.") as (url, _):
        for block in blocks(page):
            if block["why"] is not None:
                continue
            if block["kind"] == "python":
                exec(compile(block["text"], page, "exec", dont_inherit=True), names)
                continue
            for line in lines_of(block["text"]):
                if not LINE.search(line):
                    run_line(line, url, tiny_clip, capsys)


def not_run(page):
    """Each block, or line of one, with why."""
    for block in blocks(page):
        lines = lines_of(block["text"]) if block["kind"] == "bash" else []
        if block["why"] is not None:
            yield block["why"], lines
        for line in lines:
            if block["why"] is None and (found := LINE.search(line)):
                yield found[1], [line]


def test_what_is_not_run_could_be_and_does_not_spread():
    """Verbs and options of such commands exist."""
    skipped = [(page, why, lines) for page in PAGES for why, lines in not_run(page)]
    for page, why, lines in skipped:
        assert len(why) > 10, page
        for words in (shlex.split(line, comments=True) for line in lines):
            if words[0] == "wordsight":
                assert words[1] in VERBS, f"{page}: {words}"
                hints.check_options(words[1], words[2:], VERBS[words[1]].options)
    assert len(skipped) == NOT_RUN, skipped


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_links_of_the_repository_lead_to_pages_of_the_site(hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="methods/aape.md"))
    moved = {
        "[a](../../benchmarks/aape)": "[a](../benchmarks/aape/README.md)",
        "[a](../data.md#tars)": "[a](../data.md#tars)",
        "[the code](../../src/wordsight/fit.py)": "the code (`src/wordsight/fit.py`)",
        "[a](../gone.md)": "[a](../gone.md)",  # which mkdocs then refuses
        "[a](https://docs.ray.io)": "[a](https://docs.ray.io)",
    }
    assert {link: hooks.on_page_markdown(link, page) for link in moved} == moved


def test_every_page_stands_in_the_navigation_once(hooks):
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = SimpleNamespace(nav=yaml.safe_load(text.partition("\nnav:\n")[2]))
    listed = re.findall(r"[\w/-]+\.md", str(hooks.on_config(config).nav))
    own = sorted(page for page in listed if not page.startswith("benchmarks/"))
    assert own == PAGES and len(listed) == len(set(listed)) > len(own)
