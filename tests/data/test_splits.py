"""The few-shot draw and the base/new halves equal the field's."""

import json
import random

import numpy as np
import pytest

from wordsight.config import WordsightError
from wordsight.data import Dataset, Picture, Split
from wordsight.data.splits import base_new, few_shot, held_out, keep_classes, prepare, select_classes

# protocol 2.1: classes, train/val/test, test images of base/new, last base and first new name
FACTS = {
    "Caltech101": (100, (4128, 1649, 2465), (1549, 916), ("helicopter", "ibis")),
    "OxfordPets": (37, (2944, 736, 3669), (1881, 1788), ("keeshond", "leonberger")),
    "StanfordCars": (196, (6509, 1635, 8041), (4002, 4039), ("1998 Eagle Talon Hatchback", "2012 FIAT 500 Abarth")),
    "OxfordFlowers": (102, (4093, 1633, 2463), (1053, 1410), ("petunia", "wild pansy")),
    "DescribableTextures": (47, (2820, 1128, 1692), (864, 828), ("marbled", "matted")),
    "EuroSAT": (10, (13500, 5400, 8100), (4200, 3900), ("Industrial Buildings", "Pasture Land")),
    "UCF101": (101, (7639, 1898, 3783), (1934, 1849), ("Long_Jump", "Lunges")),
}


@pytest.fixture(scope="module")
def coop(shared):
    folder = shared / "data/sentences/coop_splits"
    if not folder.is_dir():
        pytest.skip(f"CoOp's split files are not at {folder}")

    def read(name: str) -> Dataset:
        parts = json.loads((folder / f"split_zhou_{name}.json").read_text(encoding="utf-8"))
        names = {label: name for items in parts.values() for _, label, name in items}
        splits = {part: split([path for path, _, _ in items], [label for _, label, _ in items]) for part, items in parts.items()}
        return Dataset(name, tuple(names[label] for label in sorted(names)), **splits)

    return read


def split(names, labels) -> Split:
    return Split([Picture(str(name), bytes) for name in names], np.array(labels, dtype=np.int64))


def dataset(labels, **parts) -> Dataset:
    return Dataset("toy", tuple(f"class {label}" for label in range(max(labels) + 1)), split(range(len(labels)), labels), **parts)


def names(split: Split) -> list[str]:
    return [picture.name for picture in split.pictures]


@pytest.mark.parametrize("name", FACTS)
def test_coops_sizes_and_base_new_boundary(coop, name):
    classes, sizes, halves, boundary = FACTS[name]
    data = coop(name)
    assert len(data.class_names) == classes
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    base, new = select_classes(data, "base"), select_classes(data, "new")
    assert (len(base.test), len(new.test)) == halves
    assert (base.class_names[-1], new.class_names[0]) == boundary
    assert set(new.test.labels) == set(range(len(new.class_names)))


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("shots", [1, 16])
def test_draw_equals_dassls(coop, name, shots):
    data = coop(name)
    for seed in (1, 2, 3):
        random.seed(seed)  # the recipe of protocol 2.3, with the global stream as Dassl has it
        expected = [dassl(data.train, shots), dassl(data.val, min(shots, 4))]
        assert [names(part) for part in few_shot(data, shots, seed)] == expected


def dassl(part: Split, shots: int) -> list[str]:
    by_label = {}
    for picture, label in zip(part.pictures, part.labels.tolist()):
        by_label.setdefault(label, []).append(picture.name)
    return [name for items in by_label.values() for name in (random.sample(items, shots) if len(items) >= shots else items)]


def test_draw_equals_published_indices(coop):
    """cross_modal_adaptation, indices/dtd/shot_1-seed_1.json."""
    train, val = few_shot(coop("DescribableTextures"), 1, 1)
    assert names(train)[:4] == ["banded/banded_0117.jpg", "blotchy/blotchy_0136.jpg", "braided/braided_0172.jpg", "bubbly/bubbly_0128.jpg"]
    assert names(train)[-1] == "zigzagged/zigzagged_0070.jpg"
    assert names(val)[:4] == ["banded/banded_0132.jpg", "blotchy/blotchy_0139.jpg", "braided/braided_0061.jpg", "bubbly/bubbly_0079.jpg"]


def test_draw_leaves_the_global_stream_alone_and_repeats():
    data = dataset([0, 1] * 20)
    random.seed(7)
    expected = random.random()
    random.seed(7)
    first = few_shot(data, 4, 1)
    assert random.random() == expected
    assert names(first[0]) == names(few_shot(data, 4, 1)[0]) != names(few_shot(data, 4, 2)[0])
    assert len(first[1]) == 0


def test_too_few_images_names_the_classes():
    labels = [0] * 5 + [label for label in range(1, 14) for _ in range(2)]
    with pytest.raises(WordsightError) as error:
        few_shot(dataset(labels), 4, 1)
    message = str(error.value)
    assert "13 of 14 classes have fewer: class 1 2, class 2 2" in message and "... and 3 more" in message and "shots=2 or fewer" in message
    assert "class 11" not in message
    with pytest.raises(WordsightError, match="shots=0 draws nothing"):
        few_shot(dataset(labels), 0, 1)
    with pytest.raises(WordsightError, match="class 1 0; add images to them"):
        few_shot(dataset([0, 0, 2, 2]), 1, 1)


def test_without_a_test_part_the_rest_is_tested():
    data = dataset([0, 1, 2, 3] * 10)
    prepared = prepare(data, 3, 1)
    assert len(prepared.train) == 12 and len(prepared.test) == 28
    assert not set(names(prepared.train)) & set(names(prepared.test))
    with pytest.raises(WordsightError, match="no test part"):
        held_out(data, None, 1)
    with pytest.raises(WordsightError, match="draws every image"):
        held_out(data, 10, 1)


def test_base_and_new_are_halves_of_one_draw():
    data = dataset([4, 3, 2, 1, 0] * 10, test=split("abcde", [0, 1, 2, 3, 4]))
    whole, base, new = (prepare(data, 2, 1, which) for which in ("all", "base", "new"))
    assert sorted(names(base.train) + names(new.train)) == sorted(names(whole.train))
    assert base.class_names == ("class 0", "class 1", "class 2") and new.class_names == ("class 3", "class 4")
    assert names(new.test) == ["d", "e"] and new.test.labels.tolist() == [0, 1]
    assert prepare(data, None).train is data.train


def test_base_new_boundary_and_choices():
    assert base_new(5) == (range(3), range(3, 5)) and base_new(4) == (range(2), range(2, 4))
    with pytest.raises(WordsightError, match="did you mean 'base'"):
        select_classes(dataset([0, 1, 2, 3]), "bas")
    with pytest.raises(WordsightError, match="leaves 1 of 3 classes"):
        select_classes(dataset([0, 1, 2]), "new")
    assert keep_classes(split("abc", [5, 9, 5]), [9, 5]).labels.tolist() == [1, 0, 1]
