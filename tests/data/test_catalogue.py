"""Every dataset of the catalogue is read from the field's layout, in tiny trees that are built from its
entry, and what is missing is named.
"""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetInfo

from wordsight.config import RunSettings, WordsightError
from wordsight.data import open_dataset
from wordsight.data.catalogue import entries, hints, recognise
from wordsight.data.splits import prepare
from wordsight.fit import template_of
from wordsight.sentences import TEMPLATE_SETS, fill

ENTRIES = entries()
# the field's hand-crafted templates (protocol 2.7), said once more by hand
TEMPLATES = {
    "oxford_pets": "a photo of a {}, a type of pet.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "food-101": "a photo of {}, a type of food.",
    "ucf101": "a photo of a person doing {}.",
}
TORCHVISION = {
    "caltech-101": "caltech101",
    "oxford_flowers": "flowers102",
    "food-101": "food101",
}  # TEMPLATE_SETS' names, where they differ
PARTS = ("train", "val", "test")
NAMES = ["zebra", "ant_hill", "moth"]  # label order is not the alphabet's
WNIDS = ["n01440764", "n01443537", "n01484850"]


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def build(root: Path, key: str) -> Path:
    """A dataset of three classes with one or two images a part, laid out as the entry says."""
    entry, folder = ENTRIES[key], root / key
    for name in entry.also:
        (folder / name).mkdir(parents=True)
    if entry.split:
        rows = {
            part: [
                [f"{entry.also[0] if entry.also else name}/{part}{i}.jpg", i, name]
                for i, name in enumerate(NAMES)
            ]
            for part in PARTS
        }
        rows["train"] = [*rows["train"][::-1], [f"deep/er/{NAMES[0]}.jpg", 0, NAMES[0]]]
        put(folder / entry.split, json.dumps(rows))
        for path, _, _ in (*rows["train"], *rows["val"], *rows["test"]):
            put(folder / entry.images / path, path)
    elif entry.lists:
        put(folder / entry.names, "\n".join(NAMES) + "\n")
        for part, file in entry.lists.items():
            put(folder / file, "".join(f"{part}{i} {name}\n" for i, name in enumerate(NAMES)))
            for i in range(3):
                put(folder / entry.images / f"{part}{i}.jpg", f"{part}{i}")
    else:
        put(
            folder / entry.names,
            "".join(f"{wnid} {name}\n" for wnid, name in zip(WNIDS, NAMES))
            + "n99999999 elsewhere\n" * entry.subset,
        )
        for path in entry.folders.values():
            for label, wnid in enumerate(WNIDS):
                for file in ("b", "a"):
                    put(folder / path / (str(label) if entry.numbered else wnid) / f"{file}.JPEG", wnid)
            put(folder / path / "README.txt", "no class")
    return folder


def fails(folder, *words: str):
    with pytest.raises(WordsightError) as error:
        open_dataset(str(folder))
    for word in words:
        assert word in str(error.value), str(error.value)


@pytest.fixture(params=ENTRIES)
def key(request):
    return request.param


def test_the_field_s_layout_is_read_whatever_the_folder_is_called(key, tmp_path):
    entry, folder = ENTRIES[key], build(tmp_path, key)
    data = open_dataset(str(folder))
    assert data.class_names == tuple(NAMES) and data.template == entry.template
    assert {part for part in PARTS if getattr(data, part)} == set(entry.sizes)
    assert (
        len(data.notes) == 1
        and f"{entry.title} here has 3 classes" in data.notes[0]
        and f"{entry.sizes['test']:,} test" in data.notes[0]
    )
    if entry.split:
        assert (
            data.train.labels.tolist() == [2, 1, 0, 0] and data.train.pictures[3].name == "deep/er/zebra.jpg"
        )
        assert data.train.pictures[3].load() == b"deep/er/zebra.jpg"
    elif entry.lists:
        assert data.val.labels.tolist() == [0, 1, 2] and data.val.pictures[1].load() == b"val1"
    else:
        assert (
            data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
            and [picture.load().decode() for picture in data.test.pictures[::2]] == WNIDS
        )
        assert [Path(picture.name).name for picture in data.test.pictures[:2]] == ["a.JPEG", "b.JPEG"]
    moved = folder.rename(tmp_path / "my copy")
    assert recognise(moved) == key and open_dataset(str(moved)).class_names == data.class_names


def test_what_is_missing_is_named_with_its_place(key, tmp_path):
    for number, name in enumerate(ENTRIES[key].expected()):
        folder = build(tmp_path / str(number), key)
        shutil.rmtree(folder / name) if name.endswith("/") else (folder / name).unlink()
        fails(folder, f"{ENTRIES[key].title} lacks {name}", str(folder / name), "docs/protocol.md")
    fails(
        tmp_path / "nowhere" / key,
        "does not exist",
        f"{ENTRIES[key].title} is read from a folder {key}/ with {ENTRIES[key].expected()[0]}",
    )


def test_a_missing_image_is_an_error_since_the_draw_would_be_another(key, tmp_path):
    entry, folder = ENTRIES[key], build(tmp_path, key)
    if entry.folders:
        root = folder / entry.folders["test"]
        gone = root / ("1" if entry.numbered else WNIDS[1])
        for file in list(gone.iterdir()):
            file.unlink()
        fails(folder, f"class folder {str(gone)!r} is empty")
        gone.rmdir()
        if entry.subset:
            assert open_dataset(str(folder)).class_names == ("zebra", "moth")
        else:
            fails(folder, f"{str(root)!r} lacks 1 of 3 class folders, {gone.name}", "classnames.txt")
    else:
        gone = next((folder / entry.images).rglob("test1.jpg"))
        gone.unlink()
        fails(
            folder,
            f"{entry.title} lacks 1 of {9 + bool(entry.split)} images: "
            f"{gone.relative_to(folder / entry.images)}",
            "expected below",
        )


def test_templates_are_the_field_s(key):
    assert ENTRIES[key].template == TEMPLATES.get(key, "a photo of a {}.")
    assert TEMPLATE_SETS[TORCHVISION.get(key, "imagenet" if key.startswith("imagenet") else key)] == (
        ENTRIES[key].template,
    )


def test_own_template_and_spaces_in_the_prompt(tmp_path):
    data = open_dataset(str(build(tmp_path, "ucf101")))
    template = template_of(RunSettings(data="d", template="own"), data)
    assert (
        fill(template, data.class_names[1]) == "a photo of a person doing ant hill."
        and data.class_names[1] == "ant_hill"
    )


def test_a_user_s_folder_may_be_called_like_a_dataset(tmp_path):
    for name in ("cat/1.jpg", "dog/2.jpg"):
        put(tmp_path / "dtd" / name, "x")
    assert recognise(tmp_path / "dtd") is None and open_dataset(str(tmp_path / "dtd")).class_names == (
        "cat",
        "dog",
    )


@pytest.mark.parametrize("root", [".", "pictures"])
def test_a_dataset_of_one_s_own_is_read_by_its_split_file(tmp_path, root):
    rows = {part: [[f"a/{part}{i}.jpg", i, name] for i, name in enumerate(NAMES)] for part in PARTS}
    for path, _, _ in [row for part in rows.values() for row in part]:
        put(tmp_path / root / path, "x")
    put(tmp_path / "split_zhou_Mine.json", json.dumps(rows))
    data = open_dataset(str(tmp_path))
    assert (
        data.class_names == tuple(NAMES)
        and data.template is None
        and len(data.train) == len(data.val) == len(data.test) == 3
    )
    assert data.train.pictures[0].load() == b"x"
    (tmp_path / root / "a" / "test1.jpg").unlink()
    with pytest.raises(WordsightError, match=r"split_zhou_Mine.json lacks 1 of 9 images: a/test1.jpg"):
        open_dataset(str(tmp_path))
    put(tmp_path / "split_2.json", "{}")
    with pytest.raises(
        WordsightError, match=r"holds 2 split files \(split_2.json, split_zhou_Mine.json\); leave one there"
    ):
        open_dataset(str(tmp_path))


def test_two_datasets_in_one_folder_are_refused(tmp_path):
    folder = build(tmp_path, "dtd")
    put(folder / ENTRIES["ucf101"].split, "{}")
    fails(folder, "holds the files of 2 datasets (DescribableTextures, UCF101)")


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", ("split file", "is not JSON")),
        ("", ("split file", "is empty")),
        ("[]", ("is no split file: it holds a list",)),
        ('{"train": [], "val": []}', ("is no split file: 'test' is missing",)),
        ('{"train": [], "val": [], "test": null}', ("is no split file: 'test' is no list",)),
        ('{"train": [], "val": [], "test": [], "dev": [["a.jpg", 0, "a"]]}', ("it lists 'dev', too",)),
        ('{"train": [["a.jpg", true, "a"]], "val": [], "test": []}', ("'train' lists ['a.jpg', True, 'a']",)),
        (
            '{"train": [["a.jpg", 0]], "val": [], "test": []}',
            ("is no split file", "[path, label, class name]"),
        ),
        ('{"train": [["a.jpg", 0, "a"], ["b.jpg", 2, "b"]], "val": [], "test": []}', ("without gaps",)),
        (
            '{"train": [["a.jpg", 0, "a"], ["b.jpg", 0, "b"]], "val": [], "test": []}',
            ("without gaps, each with one class name",),
        ),
    ],
)
def test_a_damaged_split_file_is_told(tmp_path, content, words):
    folder = build(tmp_path, "dtd")
    put(folder / ENTRIES["dtd"].split, content)
    fails(folder, ENTRIES["dtd"].split, *words)


def test_aircraft_s_lists_may_name_known_classes_only(tmp_path):
    folder = build(tmp_path, "fgvc_aircraft")
    put(folder / "images_variant_val.txt", "val0 zebra\nval1 F-16A/B\n")
    fails(folder, "line 2", "'F-16A/B'", "variants.txt")


def test_imagenet_s_two_pairs_of_equal_names_are_parted(tmp_path):
    folder = tmp_path / "imagenet"
    known = {
        "n04356056": "sunglasses",
        "n03773504": "missile",
        "n04008634": "missile",
        "n04355933": "sunglasses",
    }
    put(folder / "classnames.txt", "".join(f"{wnid} {name}\n" for wnid, name in known.items()))
    for wnid in known:
        for part in ("train", "val"):
            put(folder / "images" / part / wnid / "1.JPEG", "x")
    assert open_dataset(str(folder)).class_names == (
        "missile",
        "projectile",
        "sunglass",
        "sunglasses",
    )  # in the order of folder names
    some = tmp_path / "imagenet-adversarial"
    for wnid in ("n04355933", "n03773504"):
        put(some / "imagenet-a" / wnid / "1.JPEG", "x")
    shutil.copy(folder / "classnames.txt", some)
    assert open_dataset(str(some)).class_names == (
        "missile",
        "sunglass",
    )  # a run fitted on ImageNet knows them by these names
    put(folder / "images/val/n00000000/1.JPEG", "x")
    fails(folder, "n00000000", "does not name")
    for wnid in (*known, "n00000000"):
        shutil.rmtree(folder / "images/val" / wnid)
    fails(folder, "lacks 4 of 4 class folders, n03773504")


def test_a_test_set_cannot_be_trained_on(tmp_path):
    data = open_dataset(str(build(tmp_path, "imagenet-rendition")))
    with pytest.raises(WordsightError, match="has test images only"):
        prepare(data, 1, 1)
    assert len(prepare(data, None, 1).test) == 6


def part(names, **columns):
    """Three images with a column of labels."""
    features = {"image": datasets.Image()} | {
        name: datasets.ClassLabel(names=names) for name in columns if names
    }
    features |= {name: datasets.Value("string") for name in columns if not names}
    rows = {"image": [{"bytes": b"x", "path": None}] * 3} | columns
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def hub(monkeypatch, name, parts):
    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", lambda self, name, timeout: DatasetInfo(id=name)
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict(parts))
    return open_dataset(name)


def test_hub_datasets_are_read_by_the_catalogue_s_hints(monkeypatch):
    two = part(["apple_pie", "soup"], label=[0, 1, 1])
    data = hub(monkeypatch, "ethz/food101", {"train": two, "validation": two})
    assert data.template == TEMPLATES["food-101"] and len(data.test) == 3 and data.val is None
    data = hub(
        monkeypatch,
        "HuggingFaceM4/FGVC-Aircraft",
        {"train": part(["A310", "A320"], family=[0, 0, 1], variant=[1, 1, 0])},
    )
    assert data.train.labels.tolist() == [1, 1, 0]
    ten = part([str(label) for label in range(10)], label=[0, 4, 9])
    data = hub(monkeypatch, "hf:blanchon/EuroSAT_RGB", {"train": ten, "validation": ten, "test": ten})
    assert data.class_names[4:6] == ("Industrial Buildings", "Pasture Land") and len(data.val) == 3
    wnids = part(None, wnid=["n02", "n01", "n02"], class_name=["goldfish", "tench", "goldfish"])
    data = hub(monkeypatch, "axiong/imagenet-r", {"test": wnids})
    assert (
        data.class_names == ("tench", "goldfish")
        and data.test.labels.tolist() == [1, 0, 1]
        and len(data.train) == 0
    )
    assert hints("somebody/else") is None


def test_the_document_s_table_is_the_catalogue():
    text = (Path(__file__).parents[2] / "docs/protocol.md").read_text(encoding="utf-8")
    for key, entry in ENTRIES.items():
        sizes = " / ".join(f"{entry.sizes[part]:,}" if part in entry.sizes else "–" for part in PARTS)
        files = ", ".join(f"`{name}`" for name in entry.expected())
        row = f"| {entry.title} | `{key}` | {files} | {entry.classes:,} | {sizes} | {entry.template} |"
        assert row in text, row
        assert all(name in text for name in entry.hub)


def test_every_test_that_the_document_names_is_there():
    root = Path(__file__).parents[2]
    named = re.findall(
        r"`(tests/[\w/]+\.py)::(\w+)`", (root / "docs/protocol.md").read_text(encoding="utf-8")
    )
    assert len(named) >= 10
    for file, test in named:
        assert f"def {test}(" in (root / file).read_text(encoding="utf-8"), f"{file} has no {test}"
