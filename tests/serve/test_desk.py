"""A search over HTTP finds what the library finds, and corrected labels are data for the next fit."""

import io
import json
import shutil

import pytest
from PIL import Image
from serving import files_of, refused

from wordsight.config import WordsightError
from wordsight.data import open_dataset
from wordsight.files import csv_rows
from wordsight.search import Index
from wordsight.serve.corrections import Corrections


@pytest.fixture(scope="module")
def desk(served, digits_run, digit_files, tmp_path_factory):
    """A server that searches a folder and keeps corrections, and that folder."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "own").mkdir()
    for place, file in enumerate(digit_files):
        shutil.copy(file, folder / "own" / f"{place}.png")
    shutil.copy(digit_files[0], folder / "own" / "copy of 0.png")
    client = served(digits_run, search=str(folder / "own"), corrections=str(folder / "kept" / "new.csv"))
    client.folder = folder
    return client


@pytest.mark.slow
def test_a_search_finds_what_the_command_finds(desk, digit_files):
    index = Index.open(desk.folder / "own", "micro", device="cpu")
    answer = desk.post("/v1/search", data={"query": "seven", "k": 4}).json()
    expected = index.search("seven", 4)
    assert [one["score"] for one in answer["results"]] == [round(one.score, 4) for one in expected]
    names = [one.image.rpartition("/")[2] for one in expected]
    assert [one["image"] for one in answer["results"]] == names and answer["images"] == 8
    near = desk.post("/v1/search", files=files_of(digit_files[:1], "image"), data={"k": 1}).json()
    (found,) = near["results"]
    assert found["score"] == pytest.approx(1, abs=1e-4)
    assert {found["image"], *found["copies"]} == {"0.png", "copy of 0.png"}
    picture = desk.get(found["url"], params={"size": 32})
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture.content)).size == (32, 32)
    assert str(desk.folder) not in json.dumps(answer) + json.dumps(near)


def test_what_cannot_be_searched_is_said(desk, client):
    assert "one of the two" in refused(desk, 422, "/v1/search", data={"query": "  "})
    assert "no model that is served can search" in refused(client, 404, "/v1/search", data={"query": "a"})
    named = {"query": "a", "model": "digits"}
    assert "'digits' cannot search" in refused(client, 404, "/v1/search", data=named)
    for where in ("../../etc/passwd", "0" * 32, "%2e%2e%2fx"):
        assert desk.get(f"/v1/images/{where}").status_code == 404
    assert desk.get("/v1/images/x", params={"size": 5000}).status_code == 422


def test_corrections_are_data_that_fit_reads(desk, client, digit_files):
    assert "--corrections FILE" in refused(
        client, 404, "/v1/corrections", files=files_of(digit_files[:1], "image"), data={"label": "one"}
    )
    labels = ["zero", "one", "two, or so", "=three"]
    for file, label in zip(digit_files, labels):
        answer = desk.post(
            "/v1/corrections",
            files=files_of([file], "image"),
            data={"label": label, "predicted": "nine"},
        )
        assert answer.status_code == 200 and answer.json()["label"] == label
    again = desk.post("/v1/corrections", files=files_of(digit_files[:1], "image"), data={"label": "one"})
    assert again.json()["kept"] == 4, "an image is kept once, with its last label"
    data = open_dataset(str(desk.folder / "kept" / "new.csv"))
    assert len(data.train) == 4
    assert {data.class_names[row] for row in data.train.labels} == {"one", "two, or so", "=three"}
    assert ",'=three," in (desk.folder / "kept" / "new.csv").read_text(), "no formula of a spreadsheet"
    assert sorted(one.load() for one in data.train.pictures) == sorted(
        one.read_bytes() for one in digit_files[:4]
    )
    rows = csv_rows((desk.folder / "kept" / "new.csv").read_text())
    assert list(rows[0]) == ["path", "label", "predicted"]
    assert [row["label"] for row in rows] == ["one", *labels[1:]]
    broken = {"image": ("a.png", b"no image")}
    assert "not an image" in refused(desk, 400, "/v1/corrections", files=broken, data={"label": "one"})
    blank = files_of(digit_files[:1], "image")
    for label in ("a\nb", "\u200b"):
        assert "one line" in refused(desk, 422, "/v1/corrections", files=blank, data={"label": label})


def test_corrections_keep_what_stood_there_and_outlive_their_folder(tmp_path, digit_files):
    table = tmp_path / "new.csv"
    kept = Corrections(table, 10)
    kept.folder.rmdir()
    assert kept.keep(digit_files[0].read_bytes(), "zero", "", 10_000)[1] == 1
    table.write_text("path,label,split\na.png,one,train\n")
    for use in (
        lambda: kept.keep(digit_files[1].read_bytes(), "one", "", 10_000),
        lambda: Corrections(table, 10),
    ):
        with pytest.raises(WordsightError, match="has the column 'split', which would be lost"):
            use()
    assert table.read_text().splitlines()[1] == "a.png,one,train"
