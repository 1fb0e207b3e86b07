"""Trees in CLIP_benchmark's layout: how many tars, which names and templates, and what the samples are."""

import io

import numpy as np
import pytest
from making import fails, fill, names, png, put, tar

from wordsight.config import WordsightError
from wordsight.data import open_dataset
from wordsight.data.pairs import open_pairs
from wordsight.data.splits import fingerprint, select_classes


def tree(root, classes="cat\ndog\n", shards=1, count=None, **members):
    """Two images a shard, of labels 0 and 1."""
    for shard in range(shards):
        samples = {
            f"s{shard}{label}{end}": content
            for label in (0, 1)
            for end, content in ((".png", png(10 * shard + label)), (".cls", str(label).encode()))
        }
        tar(root / "test" / f"{shard}.tar", samples | members if shard == 0 else samples)
    put(root / "test" / "nshards.txt", str(shards if count is None else count))
    put(root / "classnames.txt", classes)
    return root


def array(values, dtype=np.int64) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, dtype))
    return buffer.getvalue()


def test_a_tree_is_its_test_part_with_its_names_and_templates(tmp_path):
    tree(tmp_path, shards=11)
    put(tmp_path / "zeroshot_classification_templates.txt", "a photo of {c}.\n\nno place\nart of {c}\n")
    found = open_dataset(str(tmp_path))
    assert found.class_names == ("cat", "dog") and not len(found.train) and len(found.test) == 22
    assert found.template == "a photo of {}." and found.templates == ("a photo of {}.", "art of {}")
    assert names(found.test)[4].startswith("2.tar/"), "by number, as CLIP_benchmark reads them"
    assert any("1 template" in note and "no place" in note for note in found.notes)


@pytest.mark.parametrize(
    "count, words",
    [("3", "2.tar is missing"), ("1", "1.tar is not counted"), ("many", "'many'"), ("0", "'0'")],
)
def test_shards_that_are_not_there_are_told(tmp_path, count, words):
    fails(tree(tmp_path, shards=2, count=count), "nshards.txt", words)


def test_a_tree_without_any_tar_is_told(tmp_path):
    put(tmp_path / "test" / "nshards.txt", "2")
    fails(tmp_path, "says 2 shards", "0.tar is missing")


def test_an_empty_class_name_keeps_its_place(tmp_path):
    """CLEVR's fourth: without its line, the labels after it would shift."""
    found = open_dataset(str(tree(tmp_path, "very near\n\nfar\n\n")))
    assert found.class_names == ("very near", "", "far")
    assert any("class 1 has an empty name" in note for note in found.notes)
    fails(tree(tmp_path / "two", "near\n\n\nfar\n"), "names a class twice", "'' and ''")


def test_labels_beyond_the_names_and_equal_names_are_told(tmp_path):
    fails(tree(tmp_path / "short", "cat\n"), "list of 1 class names does not reach: 1")
    fails(tree(tmp_path / "equal", "cat\nCat\n"), "names a class twice", "'cat' and 'Cat'")


def test_the_two_pairs_that_clip_names_alike_are_told_apart(tmp_path):
    listed = [f"class {place}" for place in range(1000)]
    listed[657] = listed[744] = "missile"
    listed[836] = listed[837] = "sunglasses"
    found = open_dataset(str(tree(tmp_path, "\n".join(listed))))
    assert (found.class_names[657], found.class_names[744]) == ("missile", "projectile")
    assert (found.class_names[836], found.class_names[837]) == ("sunglass", "sunglasses")
    assert sum("twice" in note for note in found.notes) == 2


def test_a_kind_that_is_not_known_is_told(tmp_path):
    put(tree(tmp_path) / "dataset_type.txt", "segmentation")
    fails(tmp_path, "'segmentation'", "classification, retrieval, multilabel")


def test_captions_are_lines_in_a_tree_of_retrieval(tmp_path):
    tar(
        tmp_path / "test" / "0.tar",
        {"a.png": png(1), "a.txt": b"one dog\na dog \n\n", "b.png": png(2), "b.txt": b"cat"},
    )
    put(tmp_path / "test" / "nshards.txt", "1\n")
    put(tmp_path / "dataset_type.txt", "retrieval\n")
    assert open_pairs(str(tmp_path), "test").captions == [("one dog", "a dog"), ("cat",)]
    fails(tmp_path, "captions and no classes", "wordsight suite retrieval")


def several(root, first, second=(0, 1, 1)):
    labels = {"a.npy": first if isinstance(first, bytes) else array(first), "b.npy": array(second)}
    tar(root / "test" / "0.tar", {"a.png": png(1), "b.png": png(2), "c.png": png(3)} | labels)
    put(root / "dataset_type.txt", "multilabel")
    put(root / "classnames.txt", "cat\ndog\ncow\n")
    return root


def test_an_image_may_show_several_classes(tmp_path):
    found = open_dataset(str(several(tmp_path / "one", (0, 0, 0))))
    assert found.test.shown.tolist() == [[False] * 3, [False, True, True]] and not len(found.train)
    assert found.test.take([1]).shown.tolist() == [[False, True, True]]
    assert [picture.name for picture in found.unlabelled] == ["c.png"]
    other = open_dataset(str(several(tmp_path / "other", (0, 0, 1))))
    assert fingerprint(other.test) != fingerprint(found.test)
    with pytest.raises(WordsightError, match="show several; leave it out"):
        select_classes(found, "base")


@pytest.mark.parametrize(
    "labels, words",
    [
        (array([0, 2, 1]), "a vector of 0 and 1"),
        (array([0, 1]), "have 2 places, but there are 3 class names"),
        (array([[0, 1, 1]]), "shape (1, 3)"),
        (b"no array", "no NumPy array"),
        (b"PK\x03\x04 a zip", "no NumPy array"),
        (array([0, 1]).replace(b"}", b"{"), "no NumPy array"),
        (array([0, 1]).replace(b"(2,)", b"(9999999999999,)"), "no NumPy array"),
    ],
)
def test_labels_that_are_no_vector_are_told(tmp_path, labels, words):
    fails(several(tmp_path, labels), "a.png", words)


def test_more_labels_than_names_are_told(tmp_path):
    fails(several(tmp_path, (0, 1, 0), (0, 0, 0, 1)), "does not reach: 3")


def test_a_folder_of_images_may_bring_templates(tmp_path):
    fill(tmp_path, "cat/a.png", "dog/b.png")
    put(tmp_path / "zeroshot_classification_templates.txt", "one {c}\ntwo {c}\n")
    assert open_dataset(str(tmp_path)).templates == ("one {}", "two {}")


def test_only_the_test_part_of_images_of_several_classes_is_tested_on(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        samples = [
            (f"{part}{row}{end}", content)
            for row in range(count)
            for end, content in ((".png", png(10 * count + row)), (".npy", array([1, 0])))
        ]
        tar(tmp_path / part / "0.tar", dict(samples))
        put(tmp_path / part / "nshards.txt", "1")
    put(tmp_path / "classnames.txt", "cat\ndog\n")
    put(tmp_path / "dataset_type.txt", "multilabel")
    assert len(open_dataset(str(tmp_path)).test) == 2


def test_a_template_with_braces_of_its_own_is_told_and_a_name_may_hold_odd_line_ends(tmp_path):
    tree(tmp_path, "red\u2028x\ngreen\n")
    put(tmp_path / "zeroshot_classification_templates.txt", "{}: {c}\nart of {c}\n")
    found = open_dataset(str(tmp_path))
    assert found.templates == ("art of {}",) and any("{}: {c}" in note for note in found.notes)
    assert len(found.class_names) == 2 and found.class_names[1] == "green"
