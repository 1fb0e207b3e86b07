"""A file of vectors is data and backbone in one: every verb takes it, and what does not fit is told."""

import contextlib
import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save
from standins import CLASSIFIERS, TOWER_LEARNERS

import wordsight
from wordsight.backbones import load_backbone
from wordsight.backbones.arrays import is_arrays, read_arrays
from wordsight.cli import main
from wordsight.config import METHODS, RunSettings, WordsightError, resolve
from wordsight.data import open_dataset
from wordsight.export import export
from wordsight.suite_settings import SuiteSettings
from wordsight.suites import run_suite

NAMES = ["sea_lion", "ox", "bee", "ant"]
DIM = 6


def content(shots=6, seed=0):
    """Four classes around their text vectors, in the keys that our own data has."""
    draw = np.random.default_rng(seed)
    text = draw.normal(size=(4, DIM))
    parts = {}
    for part, count in {"train": shots, "val": 2, "test": 5}.items():
        labels = np.repeat(np.arange(4), count)
        parts[part] = text[labels] + 0.6 * draw.normal(size=(len(labels), DIM))
        parts[f"{part}_label"] = labels
    return {"classes": np.array(NAMES), "text": text, **parts}


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "four.npz", **content())
    return tmp_path / "four.npz"


def saved(tmp_path, **changed):
    path = tmp_path / "other.npz"
    np.savez(path, **{key: value for key, value in {**content(), **changed}.items() if value is not None})
    return str(path)


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in TOWER_LEARNERS])
def test_every_method_that_reads_no_tokens_runs_on_it(name, file, tmp_path):
    learns = {"train": {"max_steps": 3}} if resolve(METHODS, name, "method").training(2) else {}
    run = wordsight.fit(data=str(file), method=name, shots=2, out=str(tmp_path / "run"), **learns)
    (event,) = run.events("eval")
    assert event["images"] == 20 and event["accuracy"] > 50
    assert run.settings.backbone == str(file) and run.facts.template == "{}"
    matrix = content()["test"]
    loaded = wordsight.load(run.folder)
    answers = np.array([answer.probabilities for answer in wordsight.predict(run.folder, str(file))])
    vectors = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    assert np.allclose(answers[-20:], loaded.predict_proba(vectors.astype(np.float32)), atol=1e-6)


def test_zero_shot_is_the_cosine_to_the_class_vectors(file, tmp_path):
    held = content()
    run = wordsight.fit(data=str(file), method="zero_shot", shots=2, out=str(tmp_path / "run"))
    unit = {key: held[key] / np.linalg.norm(held[key], axis=1, keepdims=True) for key in ("test", "text")}
    right = (unit["test"] @ unit["text"].T).argmax(1) == held["test_label"]
    assert run.events("eval")[0]["accuracy"] == pytest.approx(100 * right.mean())


OTHER_NAMES = [
    {
        "train": "train_features",
        "train_label": "train_labels",
        "classes": "class_names",
        "text": "text_features",
    },
    {
        "train": "X_train",
        "train_label": "y_train",
        "test": "X_test",
        "test_label": "y_test",
        "classes": "classnames",
    },
    {
        "train": "image_features_training",
        "train_label": "training_targets",
        "val": "valid",
        "val_label": "valid_y",
    },
]


@pytest.mark.parametrize("names", OTHER_NAMES)
def test_the_fields_other_names_are_the_same(names, file, tmp_path):
    path = tmp_path / "named.npz"
    np.savez(path, **{names.get(key, key): value for key, value in content().items()})
    one, other = read_arrays(file), read_arrays(path)
    assert other.classes == one.classes and torch.equal(other.text, one.text) and not other.unread
    for part, held in one.parts.items():
        assert np.array_equal(other.parts[part].vectors, held.vectors)
        assert other.parts[part].labels == held.labels


def test_rows_with_a_part_each_and_labels_that_are_names(tmp_path):
    held = content()
    rows = {
        "vectors": np.concatenate([held[part] for part in ("train", "val", "test")]),
        "label": np.array([NAMES[row] for part in ("train", "val", "test") for row in held[f"{part}_label"]]),
        "part": np.array([part for part in ("train", "val", "test") for _ in held[part]]),
    }
    np.savez(tmp_path / "rows.npz", **rows, classes=held["classes"], text=held["text"])
    dataset, own = open_dataset(str(tmp_path / "rows.npz")), content()
    assert dataset.class_names == tuple(NAMES) and len(dataset.test) == 20
    assert dataset.val.labels.tolist() == own["val_label"].tolist()
    np.savez(tmp_path / "sorted.npz", **rows)
    assert open_dataset(str(tmp_path / "sorted.npz")).class_names == tuple(sorted(NAMES))


def test_class_vectors_may_stand_in_columns_and_safetensors_is_the_same(file, tmp_path):
    held = content()
    turned = read_arrays(saved(tmp_path, text=held["text"].T))
    assert torch.equal(turned.text, read_arrays(file).text)
    kept = {key: np.ascontiguousarray(value) for key, value in held.items() if key != "classes"}
    save_file(kept, tmp_path / "four.safetensors", metadata={"classes": json.dumps(NAMES)})
    assert is_arrays(tmp_path / "four.safetensors")
    one, other = open_dataset(str(file)), open_dataset(str(tmp_path / "four.safetensors"))
    assert one.class_names == other.class_names
    assert np.array_equal(one.train.pictures[3].load(), other.train.pictures[3].load())


def with_sentences(tmp_path, dim=DIM):
    draw = np.random.default_rng(5)
    return saved(
        tmp_path,
        sentences=np.array([f"{name} {row}" for name in NAMES[:3] for row in range(2)]),
        sentence_label=np.array([0, 0, 1, 1, 2, 2]),
        sentence_vectors=draw.normal(size=(6, dim)),
        logit_scale=20.0,
    )


def test_sentences_that_the_file_brings_are_used(tmp_path, said):
    path = with_sentences(tmp_path)
    backbone = load_backbone(path)
    assert backbone.logit_scale == 20.0 and backbone.sentences["ox"] == ("ox 0", "ox 1")
    run = wordsight.fit(data=path, method="sentence_mean", shots=2, out=str(tmp_path / "run"))
    assert run.sentences == {**{name: (f"{name} 0", f"{name} 1") for name in NAMES[:3]}, "ant": ()}
    assert f"{path} brings no sentences about 'ant': class names stand in" in said.text
    with pytest.raises(WordsightError, match="holds no vector of the text 'itap of a sea lion"):
        wordsight.fit(data=path, method="aape", sentences="clip7", shots=2, out=str(tmp_path / "b"))


def test_without_text_vectors_words_are_asked_for_and_the_probe_runs(tmp_path):
    path = saved(tmp_path, text=None)
    with pytest.raises(WordsightError, match=r"holds no text vectors, and this needs words.*linear_probe"):
        wordsight.fit(data=path, method="aape", shots=2, out=str(tmp_path / "a"))
    run = wordsight.fit(data=path, method="linear_probe", shots=2, out=str(tmp_path / "b"))
    assert "references" not in run.events("eval")[0]
    assert wordsight.evaluate(run.folder)[0]["confusion"] == run.events("eval")[0]["confusion"]


def test_a_run_is_tested_on_the_classes_of_another_file(file, tmp_path):
    run = wordsight.fit(data=str(file), method="tip_adapter", shots=2, out=str(tmp_path / "run"))
    held = content(seed=3)
    other = saved(tmp_path, **{**held, "classes": np.array(["owl", "cat", "cow", "elk"])})
    (event,) = wordsight.evaluate(run.folder, data=other)
    assert event["class_recall"].keys() == {"owl", "cat", "cow", "elk"} and event["images"] == 20
    narrow = saved(
        tmp_path, **{key: value[:, :4] if value.ndim > 1 else value for key, value in held.items()}
    )
    with pytest.raises(WordsightError, match=r"of width 4.*of 6: they are of different backbones"):
        wordsight.evaluate(run.folder, data=narrow)


def test_nothing_that_could_be_measured_is_an_error(file, tmp_path, capsys):
    run = wordsight.fit(data=str(file), method="zero_shot", shots=2, out=str(tmp_path / "run"))
    renamed = saved(tmp_path, classes=np.array(["a", "b", "c", "d"]), text=None)
    assert main(["eval", str(run.folder), f"data={renamed}"]) == 2
    assert "holds no vector of the text 'a'" in capsys.readouterr().err


def test_words_of_another_file_are_the_run_s_own_when_it_is_tested(file, tmp_path):
    held = content()
    turned = saved(tmp_path, text=held["text"][::-1])
    run = wordsight.fit(
        data=str(file), backbone=turned, method="zero_shot", shots=2, out=str(tmp_path / "run")
    )
    unit = {key: held[key] / np.linalg.norm(held[key], axis=1, keepdims=True) for key in ("test", "text")}
    right = (unit["test"] @ unit["text"][::-1].T).argmax(1) == held["test_label"]
    assert run.events("eval")[0]["accuracy"] == pytest.approx(100 * right.mean())
    assert wordsight.evaluate(run.folder)[0]["confusion"] == run.events("eval")[0]["confusion"]


@pytest.mark.slow
def test_a_suite_takes_several_files_and_a_report_shows_them(file, tmp_path, capsys):
    other = saved(tmp_path, **content(seed=4))
    asked = SuiteSettings(
        "base-to-new",
        ("zero_shot", "taskres"),
        (str(file), other),
        (1,),
        shots=(2,),
        jobs=1,
        train={"max_steps": 2},
        out=str(tmp_path / "suite"),
    )
    found = run_suite(asked)
    assert found["runs"] == 4 and not found["failed"]
    page = str(tmp_path / "page.html")
    assert main(["report", str(tmp_path / "suite"), "--out", page]) == 0
    assert "four" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_an_exported_run_holds_the_words_and_no_image(file, tmp_path):
    run = wordsight.fit(data=str(file), method="tip_adapter", shots=2, out=str(tmp_path / "run"))
    before = wordsight.load(run.folder).predict_proba(content()["test"])
    out = export(run.folder, tmp_path / "out")
    (tmp_path / "images.npz").write_bytes(file.read_bytes())
    file.unlink()
    assert np.array_equal(wordsight.load(out).predict_proba(content()["test"]), before)
    assert len([*wordsight.predict(out, str(tmp_path / "images.npz"))]) == 4 * (6 + 2 + 5)


def test_rows_without_a_label_or_without_direction_are_told(tmp_path):
    held = content()
    held["train"] = held["train"].astype(float)
    held["train"][0], held["train"][7, 2] = 0, np.inf
    held["train_label"][3] = -1
    dataset = open_dataset(saved(tmp_path, **held, unlabelled=np.ones((3, DIM)), colour=np.zeros(2)))
    assert len(dataset.train) == 21 and len(dataset.unlabelled) == 4
    notes = "\n".join(dataset.notes)
    assert "left out 2 of 55 vectors whose vector is zero or not finite: train/0, train/7" in notes
    assert "left out 4 of 55 vectors without a label" in notes and "not read of other.npz: colour" in notes


def test_views_are_taken_as_they_are_there(tmp_path):
    held = content()
    views = np.stack([held["train"], held["train"] + 0.1], 1)
    path = saved(tmp_path, train=views)
    run = wordsight.fit(
        data=path, method="taskres", views=2, shots=2, train={"max_steps": 1}, out=str(tmp_path / "a")
    )
    assert run.events("eval")
    with pytest.raises(WordsightError, match=r"views=3, but the file holds 2 of each image"):
        wordsight.fit(data=path, method="taskres", views=3, shots=2, out=str(tmp_path / "b"))


WRONG = [
    ({"train_label": np.arange(24) % 5}, "has the label 4, but there are 4 classes: labels are 0 to 3"),
    (
        {"train_label": np.repeat(np.array([*NAMES[:3], "aunt"]), 6)},
        "'aunt', which is none of its classes.*'ant'",
    ),
    ({"classes": None}, "but no class names; add classes"),
    ({"text": np.zeros((4, DIM))}, "class vectors of .* are not finite, or zero, in 4 rows"),
    ({"text": np.ones((3, DIM))}, r"class vectors of .* have shape \[3, 6\]; one of each of the 4 classes"),
    ({"text": np.ones((4, 5))}, r"several widths \(train 6, val 6, test 6, text 5\)"),
    ({"train": np.ones((24, DIM), dtype=object)}, "holds a pickled array, which is not opened"),
    ({"train": np.ones((24, 2, 2, DIM))}, r"train of .* is float64 of shape \[24, 2, 2, 6\]"),
    ({"train_label": np.arange(5)}, r"train of .* holds 24 vectors, but labels of shape \[5\]"),
    ({"train_label": None}, "train of .* has no labels"),
    (
        {"logit_scale": np.float32(4.6052)},
        "logit_scale of .* is 4.605, which looks like .*logarithm.*exponential, 100",
    ),
    ({"logit_scale": -1.0}, "it is one number above 0"),
    ({"sentences": np.array(["x"])}, "holds only a part of its sentences"),
    ({"train_label": np.full(24, np.nan)}, "has the label nan, but there are 4 classes"),
    ({"train_label": np.full(24, np.inf)}, "has the label inf"),
    ({"train_label": np.zeros(24, complex)}, "labels of train .* are complex128; all are places in classes"),
    ({"text": np.array(["a", "b", "c", "d"])}, "class vectors of .* are <U1; vectors are numbers"),
    ({"text": content()["text"].astype(complex)}, "class vectors of .* are complex128"),
    ({"logit_scale": 1 + 2j}, "it is one number above 0"),
    ({"train": np.zeros((24, 0, 6))}, "image vectors are numbers of shape"),
    ({"Train": np.zeros((24, 6))}, "holds both train and Train; rename one"),
    (
        {"sentences": np.array(["x", "x"]), "sentence_label": [0, 1], "sentence_vectors": np.eye(6)[:2]},
        "sentences of .* hold 'x' twice, in rows 0 and 1, with different vectors",
    ),
    (
        {"sentences": np.array(["x"]), "sentence_label": [0], "sentence_vectors": np.ones((1, 1, 6))},
        "sentence_vectors of .* have shape",
    ),
    (
        {
            "train": None,
            "val": None,
            "test": None,
            "vectors": np.ones((3, DIM)),
            "label": [0, 1, 2],
            "part": 5,
        },
        r"holds 3 vectors, and parts of shape \[\]; give one a vector",
    ),
    (
        {
            **dict.fromkeys(("train", "val", "test")),
            "vectors": np.ones((3, DIM)),
            "label": [0, 1, 2],
            "part": np.array("train"),
        },
        r"parts of shape \[\]",
    ),
    ({"train": None, "val": None, "test": None}, "image vectors stand under train, val, test and unlabelled"),
]


@pytest.mark.parametrize("changed, says", WRONG)
def test_what_does_not_fit_is_told(changed, says, tmp_path, capsys):
    path = saved(tmp_path, **changed)
    with pytest.raises(WordsightError, match=says):
        read_arrays(path)
    assert main(["fit", f"data={path}", "method=zero_shot", f"out={tmp_path / 'run'}"]) == 2
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_is_told(file):
    whole = file.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:cut])
        with pytest.raises(WordsightError, match=r"empty|cannot be read"):
            open_dataset(str(file))


def test_a_packed_file_with_a_flipped_byte_is_told(tmp_path):
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, **content())
    whole = path.read_bytes()
    for place in range(60, 600, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with contextlib.suppress(WordsightError):
            read_arrays(path)


def test_a_member_of_the_zip_that_is_no_array_is_told(file, said):
    with zipfile.ZipFile(file, "a") as members:
        members.writestr("notes.txt", b"\xff")
    open_dataset(str(file)).account.tell()
    assert "notes.txt" in said.text


@pytest.mark.parametrize(
    "metadata, says",
    [
        ({"Classes": '["owl", "cat", "cow", "elk"]', "logit_scale": "50", "shapes": "[[1], [2, 3]]"}, None),
        ({"classes": '["owl", null, "cow", "elk"]'}, "classes of .* are object; give a list of texts"),
        ({"classes": "owl,cat,cow,elk"}, "classes in the metadata of .* is not JSON"),
        ({"classes": '["owl", "cat", "cow", "elk"]', "train_label": "[null, 1]"}, "labels of .*shape|object"),
    ],
)
def test_metadata_are_texts_or_numbers(metadata, says, tmp_path):
    path = tmp_path / "vectors.safetensors"
    vectors = {"train": np.eye(6, dtype=np.float32)[:2], "text": np.eye(6, dtype=np.float32)[:4]}
    labels = {} if "train_label" in metadata else {"train_label": np.arange(2)}
    save_file(vectors | labels, path, metadata=metadata)
    with contextlib.nullcontext() if says is None else pytest.raises(WordsightError, match=says):
        found = read_arrays(path)
        assert is_arrays(path) and found.logit_scale == 50 and found.unread == ("shapes",)


def test_texts_may_be_kept_as_bytes(tmp_path):
    classes = np.array(NAMES)
    path = saved(tmp_path, classes=classes.astype("S"), train_label=np.repeat(classes, 6).astype("S"))
    assert open_dataset(path).class_names == tuple(NAMES)
    path = saved(tmp_path, classes=np.array([name.encode() + b"\xff" for name in NAMES]))
    with pytest.raises(WordsightError, match=r"classes of .* holds bytes that are no UTF-8 text"):
        read_arrays(path)


def test_two_classes_of_one_name_are_told_apart(tmp_path):
    path = saved(tmp_path, classes=np.array(["crane", "ox", "crane", "ant"]))
    assert open_dataset(path).class_names == ("crane", "ox", "crane (2)", "ant")
    texts = load_backbone(path).encode_text(["crane", "crane (2)"])
    assert not torch.equal(texts[0], texts[1])


def test_images_need_the_backbone_that_made_the_vectors(file, photos, tmp_path):
    run = wordsight.fit(data=str(file), method="zero_shot", shots=2, out=str(tmp_path / "run"))
    with pytest.raises(WordsightError, match="holds vectors and no image tower"):
        list(wordsight.predict(run.folder, str(photos)))
    with pytest.raises(WordsightError, match="vectors of width 6 do not fit backbone 'micro'"):
        wordsight.fit(RunSettings(str(file), backbone="micro", shots=2, out=str(tmp_path / "b")))


def test_real_clip_vectors_are_read_as_they_are(shared):
    path = shared / "data" / "clip_b32_features" / "caltech101.npz"
    dataset, backbone = open_dataset(str(path)), load_backbone(str(path))
    assert (len(dataset.class_names), len(dataset.train), len(dataset.test)) == (62, 992, 1662)
    test = torch.nn.functional.normalize(
        torch.stack([torch.from_numpy(picture.load()) for picture in dataset.test.pictures]), dim=1
    )
    texts = backbone.encode_text([name.replace("_", " ") for name in dataset.class_names])
    right = (test @ texts.T).argmax(1).numpy() == dataset.test.labels
    assert 100 * right.mean() == pytest.approx(94.8, abs=0.05)  # data/INDEX.md


@pytest.mark.parametrize("length", [1e-40, 1e-18, 1e19, 1e37])
def test_vectors_may_be_of_any_length(length, tmp_path):
    held = content()
    plain, run = read_arrays(saved(tmp_path, **held)), tmp_path / "run"
    for name in ("train", "val", "test", "text"):
        held[name] = (held[name] * length).astype(np.float64 if length < 1e-30 else np.float32)
    path = saved(tmp_path, **held)
    (event,) = wordsight.fit(data=path, method="linear_probe", shots=2, out=str(run)).events("eval")
    assert event["accuracy"] > 80
    scaled = torch.nn.functional.normalize(read_arrays(path).text, dim=1)
    assert torch.allclose(scaled, torch.nn.functional.normalize(plain.text, dim=1), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_that_numpy_lacks_are_read(dtype, tmp_path):
    held = {name: torch.from_numpy(value) for name, value in content().items() if name != "classes"}
    small = {name: value.to(dtype) if value.is_floating_point() else value for name, value in held.items()}
    torch_save(small, tmp_path / "small.safetensors", metadata={"classes": json.dumps(NAMES)})
    found = read_arrays(tmp_path / "small.safetensors").parts["train"].vectors
    assert np.array_equal(found, small["train"].float().numpy())


def test_what_was_left_out_is_told_before_what_is_then_missing(tmp_path, capsys):
    held = content()
    held["train"][held["train_label"] == 0] = np.nan
    assert main(["fit", f"data={saved(tmp_path, **held)}", "method=zero_shot", f"out={tmp_path / 'a'}"]) == 2
    said = capsys.readouterr().err
    assert said.index("left out 6 of") < said.index("classes have fewer")


def test_a_method_that_needs_a_tower_is_refused_once_and_leaves_nothing(file, tmp_path, capsys):
    assert main(["fit", f"data={file}", "method=kgcoop", "shots=2", f"out={tmp_path / 'a'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("learns token prompts of a text tower") == 1 and not (tmp_path / "a").exists()


def test_classes_of_one_name_are_told(tmp_path, said):
    path = tmp_path / "v.npz"
    vectors = np.eye(6, dtype=np.float32)
    np.savez(path, vectors=vectors, labels=[0, 1, 2] * 2, classes=["a", "a", "c"])
    open_dataset(str(path)).account.tell()
    assert "classes of equal names in v.npz, called a (2) here" in said.text
