"""Labelling: labels are kept whatever happens, a method learns from them meanwhile, and the page is told."""

import csv
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from starlette.testclient import TestClient

from wordsight.backbones import load_backbone
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.data import open_dataset
from wordsight.data.images import Unreadable
from wordsight.data.pictures import NoneReadable
from wordsight.labelling import kept, open_session, settings_of, words_of
from wordsight.labelling import session as session_module
from wordsight.labelling.app import make_app
from wordsight.labelling.kept import Kept
from wordsight.serve.settings import Settings

NAMES = ("zero", "one", "four")
DIGITS = (0, 1, 4)


@pytest.fixture
def folder(tmp_path):
    """24 real handwritten digits, whose names say nothing."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:8] for digit in DIGITS])
    (tmp_path / "digits" / "below").mkdir(parents=True)
    for at, row in enumerate(np.random.default_rng(0).permutation(chosen)):
        grey = np.rint(images[row].reshape(8, 8) * (255 / 16)).astype(np.uint8)
        place = tmp_path / "digits" / ("below" if at % 2 else ".") / f"{at}-{labels[row]}.png"
        Image.fromarray(grey).resize((24, 24)).save(place)
    return tmp_path / "digits"


def right(image: str) -> str:
    return NAMES[DIGITS.index(int(Path(image).stem[-1]))]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def opened(folder):
    session = open_session(folder, "zero,one,four")
    settings = settings_of(folder, "backbone=micro", "sentences=digits", "flip=false", "method=linear_probe")
    backbone = load_backbone("micro")
    guard, _ = make_app(
        session, lambda: session.open(backbone, settings, words_of(settings, session, backbone)), Settings()
    )
    with TestClient(guard) as client:
        yield session, client
    session.close()


def wait(session):
    for _ in range(600):
        if session.rows and session.settled():
            return
        threading.Event().wait(0.05)
    raise AssertionError("not encoded in 30 seconds")


# -- over HTTP --


def test_labels_are_given_kept_taken_back_and_learned_from(opened, folder):
    session, client = opened
    wait(session)
    state = client.get("/v1/label/state").json()
    assert (state["images"], state["labelled"], state["classes"]) == (24, 0, list(NAMES))
    assert state["accuracy"] is None and not (folder / "labels.csv").exists()
    for count in range(1, 10):
        (image,) = client.get("/v1/label/next").json()["images"]
        assert image["label"] is None and image["predicted"][0]["class"] in NAMES
        state = client.post("/v1/label", json={"id": image["id"], "label": right(image["image"])}).json()
        assert state["labelled"] == count == len(rows_of(folder / "labels.csv"))
    wait(session)
    state = client.get("/v1/label/state").json()
    assert state["fitted_to"] == 9 and state["accuracy"]["mean"] > 60 and state["history"][-1]["labels"] == 9
    assert set(state["counts"].values()) != {9, 0}, "several classes were asked about"
    image = client.post("/v1/label/undo").json()["image"]
    assert image["label"] is None and len(rows_of(folder / "labels.csv")) == 8
    data = open_dataset(str(folder / "labels.csv"))
    assert len(data.train) == 8 and set(data.class_names) <= set(NAMES)


@pytest.mark.slow
def test_a_skipped_image_is_asked_last(opened):
    session, client = opened
    wait(session)
    (first,) = client.get("/v1/label/next").json()["images"]
    assert client.post("/v1/label/skip", json={"id": first["id"]}).json()["skipped"] == 1
    found = client.get("/v1/label/next?count=200").json()
    assert found["left"] == 23 and first["id"] not in [one["id"] for one in found["images"]]
    for one in found["images"]:
        client.post("/v1/label", json={"id": one["id"], "label": right(one["image"])})
    assert [one["id"] for one in client.get("/v1/label/next").json()["images"]] == [first["id"]]


def test_a_label_that_another_program_writes_is_taken_over(opened, folder):
    session, client = opened
    wait(session)
    one, other, third = client.get("/v1/label/next?count=3").json()["images"]
    client.post("/v1/label", json={"id": one["id"], "label": "one"})
    with open(folder / "labels.csv", "a") as file:
        file.write(f"{other['image']},four\n")
    state = client.post("/v1/label", json={"id": third["id"], "label": "zero"}).json()
    assert state["labelled"] == 3 and "changed by another program" in state["notes"][-1]
    found = {row["path"]: row["label"] for row in rows_of(folder / "labels.csv")}
    assert found == {one["image"]: "one", other["image"]: "four", third["image"]: "zero"}


@pytest.mark.slow
def test_a_class_is_added_while_others_are_learned(opened, folder):
    session, client = opened
    wait(session)
    for _ in range(6):
        (image,) = client.get("/v1/label/next").json()["images"]
        client.post("/v1/label", json={"id": image["id"], "label": right(image["image"])})
    state = client.post("/v1/label/classes", json={"name": " a scribble "}).json()
    assert state["classes"] == [*NAMES, "a scribble"]
    assert client.post("/v1/label/classes", json={"name": "zero"}).status_code == 400
    assert client.post("/v1/label/classes", json={"name": "a\x07b"}).status_code == 400
    (image,) = client.get("/v1/label/next").json()["images"]
    assert client.post("/v1/label", json={"id": image["id"], "label": "a scribble"}).status_code == 200
    wait(session)
    (left,) = client.get("/v1/label/next").json()["images"]
    assert {one["class"] for one in left["predicted"]} == set(state["classes"])
    assert {"path": image["image"], "label": "a scribble"} in rows_of(folder / "labels.csv")
    (card,) = client.get("/v1/models").json()["data"]
    assert card["abilities"] == ["label"] and card["class_names"] == state["classes"]
    (last,) = client.get("/v1/label/labels?last=1").json()["images"]
    assert last["id"] == image["id"]


def test_pictures_and_the_page_are_shown(opened):
    _, client = opened
    (one,) = client.get("/v1/label/next").json()["images"]
    picture = client.get(one["url"], params={"size": 16})
    assert picture.headers["content-type"] == "image/jpeg" and picture.content[:2] == b"\xff\xd8"
    page = client.get("/")
    assert "script-src 'sha256-" in page.headers["content-security-policy"] and "v1/label/next" in page.text
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "body", "code", "said"),
    [
        ("/v1/label", {"id": "nowhere", "label": "one"}, 404, "no such image"),
        (
            "/v1/label",
            {"id": "ID", "label": "nine"},
            400,
            "'nine' is none of the classes; they are zero",
        ),
        ("/v1/label", {"id": "ID"}, 422, "label"),
        ("/v1/label/undo", {}, 400, "nothing has been labelled"),
        ("/v1/label/skip", {"id": "../etc"}, 404, "no such image"),
    ],
)
def test_mistakes_are_told_in_one_form(opened, path, body, code, said):
    session, client = opened
    body = {key: next(iter(session.pictures)) if value == "ID" else value for key, value in body.items()}
    answer = client.post(path, json=body)
    assert answer.status_code == code and said in answer.json()["error"]["message"]
    assert client.get("/v1/label/images/none").status_code == 404


# -- a folder is opened --


def test_an_image_beyond_max_pixels_is_told_and_not_shown(folder):
    Image.new("RGB", (60, 60)).save(folder / "large.png")
    session = open_session(folder, NAMES)
    settings = settings_of(folder, "backbone=micro", "max_pixels=1000")
    backbone = load_backbone("micro")
    session.open(backbone, settings, words_of(settings, session, backbone))
    session.close()
    ((one, why),) = session.unreadable.items()
    assert session.pictures[one].name == "large.png" and "max_pixels=1000" in why
    with pytest.raises(Unreadable, match="max_pixels=1000"):
        session.copy(one, 64)


def test_who_ends_it_does_not_wait_for_all_images(folder, monkeypatch):
    (folder / "aaa.png").write_bytes(b"no image")
    session, backbone = open_session(folder, NAMES), load_backbone("micro")
    settings = settings_of(folder, "backbone=micro", "method=linear_probe", "sentences=digits")
    words = words_of(settings, session, backbone)
    whole, seen = session_module.image_features(backbone, list(session.pictures.values())), []
    monkeypatch.setattr(session_module, "AT_ONCE", 1)
    session.open(backbone, settings, words)
    assert list(session.rows.values()) == list(range(24)) and len(session.unreadable) == 1
    assert session._learner.vectors.numpy() == pytest.approx(whole.vectors[:, 0].numpy(), abs=1e-6)
    session.close()

    def ended(backbone, pictures, **more):
        seen.append(pictures)
        other.close()
        raise NoneReadable([(pictures[0].name, "it is no image")])

    monkeypatch.setattr(session_module, "image_features", ended)
    other = open_session(folder, NAMES)
    other.open(backbone, settings, words)
    assert len(seen) == 1 and other._thread is None and not other.rows


def test_labels_are_gone_on_from(folder):
    name = next(folder.glob("*.png")).name
    (folder / "labels.csv").write_text(f"path,label\n{name},one\nelsewhere.png,seven\n")
    session = open_session(folder, "zero,one")
    state = session.state()
    assert state["labelled"] == 1 and state["counts"]["one"] == 1
    assert state["classes"] == ["zero", "one", "seven"]
    session.label(next(one for one in session.pictures if session.cells[one] != name), "zero")
    assert {row["path"] for row in rows_of(folder / "labels.csv")} >= {name, "elsewhere.png"}


def test_a_csv_elsewhere_names_whole_paths(folder, tmp_path):
    session = open_session(folder, "zero,one", tmp_path / "kept.csv")
    session.label(next(iter(session.pictures)), "zero")
    (row,) = rows_of(tmp_path / "kept.csv")
    assert Path(row["path"]).is_file() and Path(row["path"]).is_absolute()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "--classes", "a,b"], "'nowhere' is no folder"),
        (["FOLDER"], "0 classes to choose among; name at least 2"),
        (["FOLDER", "--classes", "a"], "1 classes to choose among"),
        (["EMPTY", "--classes", "a,b"], "holds no images"),
        (["FOLDER", "--classes", "a,b,A"], "'a' and 'A'"),
        (["FOLDER", "--classes", "a,b", "method=zero_shot"], "does not learn from labels"),
    ],
)
def test_what_cannot_be_labelled_is_told(folder, tmp_path, words, said, capsys):
    (tmp_path / "empty").mkdir()
    places = {"FOLDER": str(folder), "EMPTY": str(tmp_path / "empty")}
    assert main(["label", *(places.get(word, word) for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_labels_count_however_their_paths_are_written(folder):
    first, second, *_ = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    (folder / "labels.csv").write_text(f"path,label\n./{first},one\n{folder.absolute() / second},one\n")
    session = open_session(folder, "zero,one")
    assert session.state()["labelled"] == 2
    session.label(session.ids[f"./{first}"], "zero")
    assert [row["label"] for row in rows_of(folder / "labels.csv")] == ["one", "zero"], "and no third row"


@pytest.mark.parametrize("name", ["a\nb", "\u200b", "ONE", "one\u200b"])
def test_a_class_that_fit_would_refuse_is_not_added(folder, name):
    session = open_session(folder, "zero,one")
    with pytest.raises(WordsightError, match=r"no class name|without a name|names a class twice"):
        session.add_class(name)
    assert session.names == ["zero", "one"]


# -- the CSV --


def test_an_unreadable_file_of_conflicts_loses_nothing(tmp_path):
    path, beside = tmp_path / "labels.csv", tmp_path / "labels.others.csv"
    kept = Kept(path)
    kept.set("a.png", "cat")
    kept.labels["a.png"] = "dog"
    path.write_text("path,label\na.png,cow\n")
    beside.write_bytes(b"\xff\xfe")
    with pytest.raises(WordsightError, match="UTF-16"):
        kept.refresh()
    beside.unlink()
    kept.set("b.png", "dog")
    assert kept.labels == {"a.png": "dog", "b.png": "dog"} and rows_of(beside)[0]["label"] == "cow"


def test_what_two_say_differently_is_kept_beside_it(tmp_path):
    path = tmp_path / "labels.csv"
    kept = Kept(path)
    kept.set("a.png", "cat")
    kept.labels["a.png"] = "dog"  # said here, while
    path.write_text("path,label\na.png,cow\nb.png,cat\n")  # another says this
    kept.refresh()
    assert kept.labels == {"a.png": "dog", "b.png": "cat"}
    assert [tuple(one) for one in kept.conflicts] == [("a.png", "dog", "cow")]
    assert rows_of(tmp_path / "labels.others.csv") == [{"path": "a.png", "label": "cow"}]
    assert {row["path"]: row["label"] for row in rows_of(path)} == kept.labels


def test_two_servers_of_one_csv_lose_no_label(tmp_path):
    file = tmp_path / "labels.csv"

    def work(name):
        kept = Kept(file)
        for row in range(20):
            kept.set(f"{name}{row}.jpg", name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows_of(file)) == 60


def test_what_another_program_writes_right_after_is_not_missed(tmp_path, monkeypatch):
    file, write = tmp_path / "labels.csv", kept.write_file
    ours = Kept(file)

    def and_another(path, text):
        write(path, text + "b.jpg,dog\r\n" if len(text) < 40 else text)

    monkeypatch.setattr(kept, "write_file", and_another)
    ours.set("a.jpg", "cat")
    ours.set("c.jpg", "cat")
    ours.set("a.jpg", "dog")
    assert [tuple(row.values()) for row in rows_of(file)] == [
        ("b.jpg", "dog"),
        ("c.jpg", "cat"),
        ("a.jpg", "dog"),
    ]


def test_a_name_that_a_spreadsheet_would_compute_comes_back(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "=1+1.png")
    Kept(tmp_path / "labels.csv").set("=1+1.png", "-x")
    Kept(tmp_path / "labels.csv").set("plain.png", "y")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "plain.png")
    assert (tmp_path / "labels.csv").read_text().splitlines()[1] == "'=1+1.png,'-x"
    assert Kept(tmp_path / "labels.csv").labels == {"=1+1.png": "-x", "plain.png": "y"}
    assert open_dataset(str(tmp_path / "labels.csv")).class_names == ("-x", "y")


def test_columns_and_rows_of_others_stay(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("split,path,label\ntrain,a.png,cat\ntest,b.png,dog\nval,c.png,\n")
    kept = Kept(path)
    assert kept.labels == {"a.png": "cat", "b.png": "dog"}
    kept.set("c.png", "cow")
    assert rows_of(path)[2] == {"split": "val", "path": "c.png", "label": "cow"}
    kept.set("b.png", None)
    assert [row["path"] for row in rows_of(path) if row["label"]] == ["a.png", "c.png"]
    assert [row["split"] for row in rows_of(path)] == ["train", "test", "val"]


def test_rows_without_a_label_stay(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("path,label\na.png,\nb.png,dog\nc.png,\n")
    kept = Kept(path)
    kept.set("c.png", "cow")
    assert {row["path"]: row["label"] for row in rows_of(path)} == {
        "a.png": "",
        "b.png": "dog",
        "c.png": "cow",
    }


def test_a_deleted_csv_is_written_anew(tmp_path):
    kept = Kept(tmp_path / "labels.csv")
    kept.set("a.png", "cat")
    kept.path.unlink()
    kept.set("b.png", "dog")
    assert len(rows_of(kept.path)) == 2 and "deleted by another program" in kept.notes[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,kind\na,b\n", "labels are kept in columns path and label"),
        ("path,label\na.png,cat\na.png,dog\n", "two labels, 'cat' and 'dog'"),
        ("path,label\na.png\n", "has 1 cells, the header has 2"),
        ("path,label,note,note\na.png,cat,x,y\n", "two columns 'note'"),
        ("", "is empty, and 1 labels stood there"),
    ],
)
def test_a_csv_that_is_none_of_ours_is_not_written_over(tmp_path, text, said):
    path = tmp_path / "labels.csv"
    kept = Kept(path)
    kept.set("x.png", "cat")
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(WordsightError, match=said):
            kept.set("b.png", "dog")
    assert path.read_text() == text and kept.labels == {"x.png": "cat"}


def test_many_threads_lose_no_label(folder):
    session = open_session(folder, "zero,one,four")
    ids = list(session.pictures)
    threads = [threading.Thread(target=session.label, args=(one, "one")) for one in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows_of(folder / "labels.csv")) == len(ids) == session.state()["labelled"]


def test_without_fastapi_the_extra_is_named(monkeypatch, folder, capsys):
    monkeypatch.delitem(sys.modules, "wordsight.labelling.app")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["label", str(folder), "--classes", "a,b"]) == 2
    assert 'pip install "wordsight[serve]"' in capsys.readouterr().err
