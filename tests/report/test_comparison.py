"""The comparison in closed form: ranks, H of the means, and published columns against printed averages."""

from statistics import fmean

import pytest

from wordsight.config import WordsightError
from wordsight.metrics import harmonic_mean
from wordsight.report.comparison import compare, mean_over
from wordsight.report.differences import Figure
from wordsight.report.published import dataset_of, published, tables
from wordsight.report.rows import Value, figures_of


def scores(table):
    """{(dataset, seed): {part: accuracy}} as figures."""
    return {key: {part: Figure(value) for part, value in parts.items()} for key, parts in table.items()}


def test_h_is_of_the_means_over_datasets():
    found = scores(
        {
            ("a", 1): {"base": 90.0, "new": 30.0},
            ("a", 2): {"base": 70.0, "new": 50.0},
            ("b", 1): {"base": 60.0, "new": 60.0},
        }
    )
    assert mean_over(found, "base") == 70 and mean_over(found, "new") == 50
    assert mean_over(found, "H") == pytest.approx(2 * 70 * 50 / 120)
    assert mean_over(scores({("a", 1): {"base": 1.0}}), "H") is None
    lacking = scores({("a", 1): {"base": 80.0, "new": 40.0}, ("a", 2): {"base": 20.0}})
    assert mean_over(lacking, "H") == pytest.approx(2 * 80 * 40 / 120)
    found = figures_of([{"base": 80.0, "new": 40.0}, {"base": 20.0}])
    assert found["H"] == Value(pytest.approx(2 * 80 * 40 / 120), 0.0, 1) and found["base"].mean == 50


def test_ranks_are_averaged_over_datasets_among_those_that_have_all():
    methods = {
        "a": scores({("x", 1): {"all": 1.0}, ("y", 1): {"all": 3.0}}),
        "b": scores({("x", 1): {"all": 2.0}, ("y", 1): {"all": 2.0}}),
        "c": scores({("x", 1): {"all": 9.0}}),
    }
    found = {standing.label: standing.ranks for standing in compare(methods, "b")}
    assert found == {"a": {"all": 1.5}, "b": {"all": 1.5}, "c": {}}
    with pytest.raises(WordsightError, match="reference 'd' is not among"):
        compare(methods, "d")


@pytest.mark.parametrize("name", tables()["tables"])
def test_every_published_column_has_the_mean_that_its_source_prints(name):
    table = tables()["tables"][name]
    assert table["source"] and table["says"] and set(table["datasets"]) <= tables()["folders"].keys()
    for method, column in table["methods"].items():
        means = {part: fmean(values) for part, values in column["figures"].items()}
        means |= {"H": harmonic_mean(means["base"], means["new"])} if "new" in means else {}
        assert means.keys() == column["printed"].keys() and all(
            len(values) == len(table["datasets"]) for values in column["figures"].values()
        )
        for part, mean in means.items():
            assert abs(mean - column["printed"][part]) < 0.0105, (method, part, mean)


def test_published_figures_are_found_by_the_name_of_the_folder():
    assert (
        dataset_of("../data/oxford_pets") == "OxfordPets"
        and dataset_of("hf:org/food-101") == "Food101"
        and dataset_of("dtd10") is None
    )
    both = published("coop", "d/caltech-101", "d/caltech-101", 16, ("base", "new", "H"))
    assert both["base-to-new"] == {
        "base": 98.0,
        "new": 89.81,
        "H": pytest.approx(93.73, abs=0.01),
    } and both.keys() == {"base-to-new"}
    assert published("coop", "imagenet", "imagenet_sketch", 16, ("all",)) == {"domain-shift": {"all": 47.99}}
    assert published("coop", "imagenet", "eurosat", 16, ("all",)) == {"cross-dataset": {"all": 46.39}}
    assert (
        published("coop", "digits", "eurosat", 16, ("all",))
        == {}
        == published("aape", "eurosat", "eurosat", 16, ("all",))
    )
    assert published("tip_adapter", "eurosat", "eurosat", 16, ("all",)) == {"few-shot": {"all": 70.54}}
    assert published("tip_adapter", "eurosat", "eurosat", 8, ("all",)) == {}
    assert published("zero_shot", "eurosat", "eurosat", 0, ("base", "new")).keys() == {"base-to-new"}
