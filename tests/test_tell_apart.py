"""Tell apart: what a run confuses is asked about, and only what helps on left-out images is kept."""

import csv
import json
import sys
from pathlib import Path

import pytest
from standins import COLOURS, fill_folder, paint

import wordsight
from wordsight.backbones import load_backbone
from wordsight.backbones.llm import LLM
from wordsight.backbones.text_tower import TextTower
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.settings import WriterSettings
from wordsight.tell_apart import case, tell_apart
from wordsight.tower_settings import TowerSettings

sys.path.insert(0, str(Path(__file__).parent / "sentences"))
from fake_server import serving

NAMES = {"one": "red", "two": "yellow", "three": "blue"}  # whose names say nothing of their colours
VAGUE = {
    "one": ["red red"],
    "two": ["vague"],
    "three": ["blue blue"],
}  # what the second is like is not said
WRONG = {"one": "yellow", "two": "blue", "three": "red"}


def answer(asked) -> str:
    """What is right where the seed is odd, and what is wrong."""
    question = asked["messages"][0]["content"]
    about = min(NAMES, key=lambda name: question.find(f" {name} ") % 1000)
    return "{0} {0} {0}".format((NAMES if asked["seed"] % 2 else WRONG)[about])


def write_table(path: Path, count: int = 6, shift: int = 0, parts=("train", "test")) -> Path:
    """Photos in a table; those of the test part get labels that are `shift` classes away."""
    rows, names = [["path", "label", "split"]], list(NAMES)
    for row, name in enumerate(names):
        for index in range(count * len(parts)):
            file, part = path.parent / f"{name}{index}.png", parts[index % len(parts)]
            paint(COLOURS[NAMES[name]], 100 * row + index).save(file)
            rows.append([file.name, names[(row + shift * (part == "test")) % 3], part])
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def told(tmp_path, backbone):
    """Contrast a run of a method that reads sentences; the run, the result and what the server was asked."""

    def call(method="sentence_mean", table=None, out="s.json", pairs=3, reply=answer, **more):
        (tmp_path / "vague.json").write_text(json.dumps(VAGUE))
        given = {
            "data": str(table or write_table(tmp_path / "t.csv")),
            "sentences": str(tmp_path / "vague.json"),
        }
        where = {
            "out": str(tmp_path / f"run-{method}{more.get('name', '')}"),
            "references": False,
            "backbone": backbone,
        }
        run = wordsight.fit(method=method, **{"shots": 6, **given, **where, **more})
        with serving(reply) as (url, seen):
            settings = WriterSettings("m", base_url=url, questions="contrast", per_question=2)
            found = tell_apart(run.folder, settings, tmp_path / out, pairs=pairs, backbone=backbone)
        return run, found, seen

    return call


@pytest.mark.slow
def test_what_helps_is_kept_and_what_does_harm_is_dropped(told, tmp_path, backbone):
    run, found, seen = told()
    assert [pair["classes"] for pair in found["pairs"]] == [["one", "two"]]
    assert len(seen) == 2 * 3 * 2 and found["asked"] == 4, "two directions, three questions, two seeds"
    assert {one["sentence"] for one in found["kept"]} <= {"red red red", "yellow yellow yellow"}
    assert "yellow yellow yellow" in {one["sentence"] for one in found["kept"] if one["class"] == "two"}
    gained = found["accuracy"]["after"] - found["accuracy"]["before"]
    assert found["images"] == 18 and found["gain"][1] > 0 and gained == pytest.approx(found["gain"][0])
    assert sum(one["points"] for one in found["kept"]) == pytest.approx(gained)
    (before,) = run.events("eval")
    told_so = {"data": run.settings.data, "sentences": found["out"], "out": str(tmp_path / "after")}
    after = wordsight.fit(method="sentence_mean", shots=6, backbone=backbone, references=False, **told_so)
    assert after.events("eval")[0]["accuracy"] > before["accuracy"]


@pytest.mark.slow
def test_the_file_says_where_each_sentence_is_from(told):
    _, found, seen = told()
    kept = json.loads(Path(found["out"]).read_text())
    assert (kept["format"], kept["model"], kept["run"]) == ("wordsight-sentences-1", "m", found["run"])
    for name, entries in kept["sentences"].items():
        assert entries[0] == {"text": VAGUE[name][0]}
        for entry in entries[1:]:
            assert entry["question"] in {
                asked["messages"][0]["content"].partition("?")[0] + "?" for asked in seen
            }
            assert (
                name in entry["question"]
                and entry["against"] in entry["question"]
                and entry["seed"] in (1, 2)
            )
    written = json.loads(Path(found["written"]).read_text())
    assert sum(map(len, written["sentences"].values())) == len(seen) and kept["pairs"] == written["pairs"]


@pytest.mark.slow
def test_the_same_call_asks_nothing_and_writes_the_same_bytes(told, tmp_path):
    _, found, _ = told()
    before = Path(found["out"]).read_bytes()
    _, again, seen = told()
    assert seen == [] and again == found and Path(found["out"]).read_bytes() == before
    Path(found["out"]).write_text('{"one": ["mine"]}')
    with pytest.raises(WordsightError, match="will not be overwritten"):
        told()


def test_labels_of_test_images_change_nothing(told, tmp_path):
    _, found, _ = told(table=write_table(tmp_path / "t.csv"))
    right = json.loads(Path(found["out"]).read_text())
    table = write_table(tmp_path / "t.csv", shift=1)
    _, found, _ = told(table=table, out="other.json", method="zero_shot", words="sentences")
    wrong = json.loads(Path(found["out"]).read_text())
    assert [right[key] for key in ("sentences", "gain", "pairs")] == [
        wrong[key] for key in ("sentences", "gain", "pairs")
    ]


@pytest.mark.slow
def test_validation_images_judge_where_they_are_as_many(told, tmp_path):
    table = write_table(tmp_path / "t.csv", parts=("train", "val", "test", "val"))
    _, found, _ = told(table=table, shots=None)
    assert found["images"] == 36 and found["gain"][1] > 0


@pytest.mark.slow
def test_a_fitted_method_is_fitted_anew_to_each_fold(told, monkeypatch):
    fitted, real = [], case.fit_method

    def counted(settings, facts, data, backbone):
        fitted.append((len(data.labels), len(data.texts.sentences[1])))
        return real(settings, facts, data, backbone)

    monkeypatch.setattr(case, "fit_method", counted)
    _, found, _ = told("zero_shot", words="sentences", shots=3)
    # all in three folds; in each fold two to choose by, and one fit with what was chosen and one without
    assert [count for count, _ in fitted] == 3 * [6] + 3 * (2 * [3] + 2 * [6])
    assert {told for _, told in fitted[3:]} > {1} and found["images"] == 9


@pytest.mark.slow
def test_what_cannot_be_contrasted_is_said(told, tmp_path):
    clear = tmp_path / "clear.json"
    clear.write_text(json.dumps({name: [f"{colour} {colour}"] for name, colour in NAMES.items()}))
    for more, says in (
        ({"method": "linear_probe"}, r"reads no sentences .*\(method=linear_probe, words=names\)"),
        (
            {"method": "zero_shot", "shots": 2, "words": "sentences"},
            "takes 3 of each class.* has one 2, two 2, three 2",
        ),
        ({"pairs": 0}, "pairs=0 asks about no classes"),
        ({"reply": lambda _: " "}, "gave only empty answers about class"),
        (
            {"shots": 5, "sentences": str(clear), "name": "clear"},
            "classifies all of 15 left-out",
        ),
    ):
        with pytest.raises(WordsightError, match=says):
            told(**more)
    assert not (tmp_path / "s.json").exists()


@pytest.mark.slow
def test_the_command_line(photos, tiny_clip, tmp_path, capsys):
    run, file = str(tmp_path / "run"), str(tmp_path / "s.json")
    words = [f"data={photos}", f"backbone={tiny_clip}", "method=sentence_mean", "shots=3", f"out={run}"]
    assert main(["fit", *words, "device=cpu"]) == 0
    with serving(answer) as (url, _):
        asked = [
            "sentences",
            "--contrast",
            run,
            "model=m",
            f"base_url={url}",
            "per_question=1",
            f"out={file}",
        ]
        assert main([*asked, "pairs=1"]) == 0
    shown = capsys.readouterr().out
    assert "confused" in shown and "accuracy on 9 left-out images: " in shown and f"sentences={file}" in shown
    for words, says in (
        (["--contrast", run, "model=m", f"out={file}", "classes=a,b"], "and no classes="),
        (["--contrast", run, "model=m"], "out=sentences.json"),
        (["--contrast", str(tmp_path / "none"), "model=m", f"out={file}"], "does not exist"),
        (["classes=a,b", "model=m", f"out={file}", "pairs=2"], "go with --contrast RUN"),
        (["--contrast", run, "model=m", "questions=generic", f"out={file}"], "must hold {other} once"),
    ):
        assert main(["sentences", *words]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_lm_inside_the_run_s_backbone_writes(photos, tiny_clip, lm, tmp_path):
    text = TextTower.from_base(lm, TowerSettings(wrapper="a {}.", prompts=3, dim=12, rank=2, heads=2))
    image = load_backbone(tiny_clip, device="cpu")
    backbone = LLM(image, text, image_mean=None, logit_scale=30.0, name="made")
    run = wordsight.fit(
        method="sentence_mean",
        data=str(photos),
        backbone=backbone,
        shots=3,
        out=str(tmp_path / "run"),
        references=False,
    )
    settings = WriterSettings("self", questions="contrast", per_question=1, max_tokens=8, device="cpu")
    found = tell_apart(run.folder, settings, tmp_path / "s.json", pairs=1, backbone=backbone)
    written = json.loads(Path(found["written"]).read_text())
    assert written["model"] == str(lm) and written["local"] is True and found["asked"] > 0
    plain = load_backbone(tiny_clip, device="cpu")
    other = wordsight.fit(
        data=str(photos), method="sentence_mean", backbone=plain, shots=3, out=str(tmp_path / "o")
    )
    with pytest.raises(WordsightError, match="has no language model as its text tower"):
        tell_apart(other.folder, settings, tmp_path / "t.json", backbone=plain)


@pytest.mark.slow
def test_a_run_without_labelled_images_is_said(photos, tiny_clip, tmp_path):
    clf = wordsight.Classifier(str(tiny_clip), "zero_shot", device="cpu")
    images = [photos / name / f"{row}.png" for name in ("red", "blue") for row in range(3)]
    clf.fit(images, ["red"] * 3 + ["blue"] * 3).save(tmp_path / "saved")
    settings = WriterSettings("m", base_url="http://127.0.0.1:9/v1", questions="contrast")
    with pytest.raises(WordsightError, match=r"was fitted from Python; name its labelled images: data="):
        tell_apart(tmp_path / "saved", settings, tmp_path / "s.json")
    given = {"data": str(photos), "backbone": str(tiny_clip), "method": "aape", "shots": 3}
    moved = fill_folder(tmp_path / "other", count=6)
    for row in range(6):
        (moved / "red" / f"{row}.png").write_bytes((moved / "blue" / f"{row}.png").read_bytes())
    run = wordsight.fit(**given, out=str(tmp_path / "run"), references=False)
    with pytest.raises(WordsightError, match=r"are not those that .* was fitted to"):
        tell_apart(run.folder, settings, tmp_path / "s.json", data=str(moved))
