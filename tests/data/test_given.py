"""Labels from Python."""

import numpy as np
import pandas as pd
import pytest

from wordsight.data.given import encoded_labels, known_labels
from wordsight.files import WordsightError

NOT_LABELLED = [
    [float("nan"), "cat", "dog"],
    [None, "cat", "dog"],
    ["  ", "cat", "dog"],
    pd.Series([pd.NA, "cat", "dog"], dtype="string"),
    pd.Series([None, "cat", "dog"]),
    pd.Categorical([None, "cat", "dog"]),
    pd.Series([None, 1, 2]),
    np.array([None, "cat", "dog"], dtype=object),
]


@pytest.mark.parametrize("labels", NOT_LABELLED, ids=repr)
def test_an_image_without_a_label_is_no_class(labels):
    with pytest.raises(
        WordsightError, match=r"1 of 3 labels are missing, the first at place 0; .* unlabelled="
    ):
        encoded_labels(labels, 3)


def test_a_number_among_texts_does_not_become_one():
    with pytest.raises(WordsightError, match=r"several types \(int, str\)"):
        encoded_labels([1, "cat", "dog"], 3)


@pytest.mark.parametrize(
    "labels", [iter(["b", "a", "b"]), ("b", "a", "b"), pd.Series(["b", "a", "b"]), np.array(["b", "a", "b"])]
)
def test_labels_of_every_form_are_the_same(labels):
    classes, places = encoded_labels(labels, 3)
    assert classes.tolist() == ["a", "b"] and places.tolist() == [1, 0, 1]


def test_numbers_of_a_list_stay_numbers():
    assert (
        encoded_labels([2, 1, 2], 3)[0].dtype.kind == "i"
        and encoded_labels([2.0, 1, 2], 3)[0].dtype.kind == "f"
    )


def test_known_labels_are_one_for_each_image():
    classes = np.array(["a", "b"])
    assert known_labels(iter(["b", "a"]), classes, 2).tolist() == [1, 0]
    with pytest.raises(WordsightError, match="3 images and 2 labels"):
        known_labels(["b", "a"], classes, 3)
    with pytest.raises(WordsightError, match="'c' is none of the 2 classes"):
        known_labels(["b", "c"], classes, 2)
