"""Search: exact, with each image read once, and a sentence for every mistake."""

import json
import os
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from standins import COLOURS, paint

import wordsight
from wordsight import WordsightError
from wordsight.backbones import unit
from wordsight.cli import main
from wordsight.search import Index, Match, closest, kept


@pytest.fixture
def folder(photos, tmp_path, monkeypatch):
    """Photos of three colours, in a cache of their own."""
    monkeypatch.setenv("WORDSIGHT_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(photos, tmp_path / "photos")


@pytest.fixture
def read(monkeypatch):
    """The names of the images that were read for an index, as a list that grows."""
    names, plain = [], kept.image_features

    def counted(backbone, pictures, **more):
        names.extend(os.path.basename(picture.name) for picture in pictures)
        return plain(backbone, pictures, **more)

    monkeypatch.setattr(kept, "image_features", counted)
    return names


@pytest.fixture
def settled(monkeypatch):
    """Files are believed at once, as if they had been written long ago."""
    monkeypatch.setattr(kept, "RECENT", 0)


def colours_of(matches):
    return [os.path.basename(os.path.dirname(match.image)) for match in matches]


# -- the product --


@pytest.mark.parametrize("queries", [1, 7])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (5, 9), (50, 3), (101, 10), (101, 101)])
@pytest.mark.parametrize("at_once", [1, 64, 2**22])
@pytest.mark.parametrize("shared_from", [10, 50_000])  # with threads of its own for one query, and without
def test_the_blocked_product_is_the_plain_one(monkeypatch, queries, count, k, at_once, shared_from):
    monkeypatch.setattr(sys.modules["wordsight.search"], "SHARED_FROM", shared_from)
    monkeypatch.setattr(torch, "get_num_threads", partial(int, 3))
    monkeypatch.setattr(sys.modules["wordsight.search"], "SCORES_AT_ONCE", at_once)
    stream = torch.Generator().manual_seed(count)
    vectors, asked = (unit(torch.randn(n, 8, generator=stream)) for n in (count, queries))
    scores, rows = closest(asked, vectors, k)
    expected = (asked @ vectors.T).sort(dim=1, descending=True)
    assert scores.shape == rows.shape == (queries, min(k, count))
    assert torch.allclose(scores, expected.values[:, :k], atol=1e-6)
    assert rows.tolist() == expected.indices[:, :k].tolist()


# -- what is found --


def test_by_text_by_path_and_by_image(folder, backbone):
    index = Index.open(folder, backbone)
    assert len(index) == 18
    for colour in ("red", "green", "blue"):
        assert set(colours_of(index.search(f"a {colour} wall", 6))) == {colour}
    first, second, *_ = found = index.search(str(folder / "red" / "3.png"), 4)
    assert first.image == str(folder / "red" / "3.png") and first.score == pytest.approx(1, abs=1e-5)
    assert len(found) == 4 and first.score > second.score and set(colours_of(found)) == {"red"}
    assert index.search(folder / "red" / "3.png", 4) == found
    with Image.open(folder / "red" / "3.png") as image:
        assert index.search(image, 1)[0].image == index.search(np.asarray(image), 1)[0].image == first.image
    assert len(index.search("red", 100)) == 18


def test_many_queries_give_what_each_gives(folder, backbone):
    index = Index.open(folder, backbone)
    queries = ["red", folder / "blue" / "0.png", "a green wall"]
    for several, alone in zip(index.search_many(queries, 5), (index.search(query, 5) for query in queries)):
        assert [match.image for match in several] == [match.image for match in alone]
        assert [match.score for match in several] == pytest.approx([match.score for match in alone])


def test_the_same_content_is_one_answer(folder, backbone):
    shutil.copyfile(folder / "red" / "0.png", folder / "zebra.png")
    match = wordsight.search(folder, folder / "red" / "0.png", 1, backbone=backbone)[0]
    assert match.image == str(folder / "red" / "0.png") and match.copies == (str(folder / "zebra.png"),)


def test_a_table_and_vectors_are_searched(folder, backbone, tmp_path):
    rows = "".join(f"photos/{colour}/0.png,{colour}\n" for colour in ("red", "blue"))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}photos/red/0.png,red\n")
    index = Index.open(tmp_path / "t.csv", backbone)
    assert len(index) == 2 and index.search("red", 1) == [
        Match("photos/red/0.png", pytest.approx(0.9, abs=0.1))
    ]
    vectors = unit(torch.randn(6, 12, generator=torch.Generator().manual_seed(0))).numpy()
    text = dict(class_names=np.array(["cat", "dog"]), class_vectors=vectors[:2])
    np.savez(tmp_path / "v.npz", train_vectors=vectors[2:], train_labels=np.array([0, 1, 0, 1]), **text)
    assert len(Index.open(tmp_path / "v.npz")) == 4


# -- what is kept --


def test_only_what_is_new_or_changed_is_read(folder, backbone, read, settled):
    first = Index.open(folder, backbone).search("red", 18)
    assert len(read) == 18
    assert Index.open(folder, backbone).search("red", 18) == first and len(read) == 18
    paint(COLOURS["purple"], 1).save(folder / "red" / "0.png")
    paint(COLOURS["red"], 77).save(folder / "new.png")
    (folder / "blue" / "1.png").unlink()
    (folder / "blue" / "2.png").rename(folder / "blue" / "other.png")
    again = Index.open(folder, backbone)
    assert sorted(read[18:]) == ["0.png", "new.png", "other.png"]
    shutil.rmtree(kept.cache_folder())
    anew = Index.open(folder, backbone)
    assert again.names == anew.names and torch.equal(again.vectors, anew.vectors) and len(again) == 18


def test_a_change_within_the_clock_s_step_is_noticed(folder, backbone, read):
    """A file of the same size whose times are put back, as long as it was written just now."""
    path = folder / "red" / "0.png"
    Index.open(folder, backbone)
    state = os.stat(path)
    content = (folder / "red" / "1.png").read_bytes()
    path.write_bytes(content[: state.st_size].ljust(state.st_size, b"\0"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    Index.open(folder, backbone)
    assert read[18:].count("0.png") == 3


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:], lambda b: b[:200], lambda b: b""]
)
def test_a_damaged_index_is_told_and_made_again(folder, backbone, read, settled, said, damage):
    first = Index.open(folder, backbone).search("red", 18)
    (file,) = kept.cache_folder().glob("search/*/*")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert Index.open(folder, backbone).search("red", 18) == first
    assert sum("index is damaged" in line for line in said) == 1 and len(read) == 36
    Index.open(folder, backbone)
    assert len(read) == 36 and len(file.read_bytes()) == len(whole)


def test_a_cache_that_cannot_be_written_is_told(folder, backbone, said, monkeypatch):
    def full(*_):
        raise WordsightError("disk full")

    monkeypatch.setattr(kept, "write_tensors", full)
    assert len(Index.open(folder, backbone)) == 18
    assert any("the index is not kept" in line and "disk full" in line for line in said)


def test_each_backbone_has_an_index_of_its_own(folder, backbone, read, settled, monkeypatch):
    Index.open(folder, backbone)
    monkeypatch.setattr(backbone, "image_fingerprint", "other", raising=False)
    Index.open(folder, backbone)
    assert len(read) == 36


def test_what_cannot_be_read_is_left_out_and_named(folder, backbone, said):
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("x")
    index = Index.open(folder, backbone)
    assert len(index) == 18 and index.account.kept == 19
    assert [name for name, _ in index.unreadable] == [str(folder / "bad.png")]
    assert any("skipped" in line and "bad.png" in line for line in said)


def test_mistakes_end_in_a_sentence(folder, backbone, tmp_path):
    index = Index.open(folder, backbone)
    for query, k, sentence in (
        (" ", 3, "the query is empty"),
        ("red", 0, "k=0 finds nothing"),
        ("absent.png", 3, "the query image 'absent.png' cannot be used: cannot be read"),
        (3, 3, "an image is a path"),
    ):
        with pytest.raises(WordsightError, match=sentence):
            index.search(query, k)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WordsightError, match="holds no images"):
        Index.open(tmp_path / "empty", backbone)
    (tmp_path / "empty" / "a.png").write_bytes(b"")
    with pytest.raises(WordsightError, match="none of 1 images could be read"):
        Index.open(tmp_path / "empty", backbone)
    with pytest.raises(WordsightError, match="does not exist"):
        Index.open(tmp_path / "absent", backbone)


# -- the verb --


@pytest.fixture
def run(folder, tiny_clip, capsys):
    """`wordsight search` in this process: exit code, stdout, stderr."""

    def call(*words, backbone=f"backbone={tiny_clip}"):
        capsys.readouterr()
        try:
            code = main(["search", *map(str, words), *([backbone] if backbone else [])])
        except SystemExit as stop:  # argparse's own
            code = stop.code
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return code, shown.out, shown.err

    return call


@pytest.mark.slow
def test_the_verb_shows_images_with_scores(folder, run):
    code, out, _ = run(folder, "a red wall", "-k", 3)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3 and all(line.split()[1].endswith(".png") for line in lines)
    assert [float(line.split()[0]) for line in lines] == sorted(
        (float(line.split()[0]) for line in lines), reverse=True
    )
    code, out, _ = run(folder, "a", "red", "wall", "--json")  # the quotes forgotten
    answer = json.loads(out)
    assert code == 0 and answer["query"] == "a red wall" and len(answer["results"]) == 10
    assert run("-k2", folder, "a red wall", "--json")[1] == run(folder, "a red", "--json", "-k", 2, "wall")[1]
    assert answer["images"] == 18 and answer["unreadable"] == [] and answer["account"]["kept"] == 18


def test_the_verb_searches_by_image(folder, run, tmp_path):
    picture = folder / "blue" / "4.png"
    code, out, _ = run(folder, picture, "--json", "-k", 2)
    assert code == 0 and json.loads(out)["results"][0] == {"image": str(picture), "score": 1.0, "copies": []}
    plain = shutil.copyfile(picture, tmp_path / "query")
    code, out, _ = run(folder, "--image", plain, "--json", "-k", 2)
    assert code == 0 and json.loads(out)["results"][0]["image"] == str(picture)


@pytest.mark.slow
def test_a_run_stands_for_its_backbone(folder, run, tiny_clip, tmp_path):
    settings = dict(method="zero_shot", shots=1, device="cpu", out=str(tmp_path / "run"))
    wordsight.fit(data=str(folder), backbone=str(tiny_clip), **settings)
    code, out, _ = run(folder, "a red wall", backbone=f"backbone={tmp_path / 'run'}")
    assert code == 0 and out == run(folder, "a red wall")[1]
    with pytest.raises(WordsightError, match="device='cuda:77' is not on this machine"):
        wordsight.search(folder, "a red wall", backbone=str(tmp_path / "run"), device="cuda:77")
    code, _, err = run(tmp_path / "run", "a red wall", backbone=None)
    assert code == 2 and "is a run and holds no images" in err


@pytest.mark.slow
def test_the_verb_s_mistakes_end_in_a_sentence(folder, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    for words, sentence in (
        ((folder,), "neither is given"),
        ((folder, ""), "neither is given"),
        ((folder, "red", "--image", "a.png"), "both are given"),
        ((folder, "absent.jpg"), "the query image 'absent.jpg' does not exist"),
        ((folder, "--image", folder), "is a folder"),
        ((folder, tmp_path / "bad.jpg"), "bad.jpg' cannot be used: not an image"),
        ((folder, "red", "-k", 0), "-k 0 finds nothing"),
        ((folder, "red", "max_pixels=0"), "max_pixels=0 reads no image"),
        ((folder, "red", "bakbone=micro"), "did you mean 'backbone'"),
        ((f"data={folder}", "red"), "takes the folder by itself"),
        ((tmp_path / "empty", "red"), "holds no images"),
        ((tmp_path / "absent", "red"), "does not exist"),
        ((), "as in `wordsight search"),
    ):
        code, out, err = run(*words) if words else run(backbone=None)
        assert code == 2 and not out and sentence in err, (words, err)


def test_a_list_of_queries_is_a_list(folder, backbone):
    index = Index.open(folder, backbone)
    assert index.search_many([]) == []
    with pytest.raises(WordsightError, match="'cat' is one query; give a list of them"):
        index.search_many("cat")


@pytest.mark.parametrize(
    "words", [("search", "{}", "backbone=micro"), ("ask", "run", "a.png"), ("generate", "run")]
)
def test_a_text_of_another_encoding_is_refused(words, folder, capsys):
    verb, *rest = (word.format(folder) for word in words)
    assert main([verb, *rest, "caf\udce9"]) == 2 and "is not UTF-8" in capsys.readouterr().err
