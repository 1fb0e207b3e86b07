"""The comparison in closed form: intervals, ranks, H of the means, and published columns against their
printed averages.
"""

from statistics import fmean

import numpy as np
import pytest

from wordsight.config import WordsightError
from wordsight.metrics import harmonic_mean, interval
from wordsight.report.comparison import compare, gap, mean_over, paired_difference
from wordsight.report.published import dataset_of, published, tables

THEIRS = {
    (data, seed): {"all": 50.0 + seed + len(data), "base": 60.0 + seed, "new": 40.0}
    for data in ("a", "bb")
    for seed in (1, 2, 3)
}
BETTER = {key: {part: value + 2 for part, value in figures.items()} for key, figures in THEIRS.items()}


def test_a_constant_difference_has_an_interval_without_width():
    difference = paired_difference(BETTER, THEIRS, "all")
    assert (
        difference.mean == pytest.approx(2)
        and difference.low == pytest.approx(2)
        and difference.high == pytest.approx(2)
    )
    assert difference.pairs == 6 and str(difference) == "+2.0 [+2.0, +2.0]"
    assert paired_difference(THEIRS, THEIRS, "H")[:3] == (0, 0, 0)


def test_three_pairs_give_the_ends_of_their_range():
    ours, theirs = (
        {("a", seed): {"all": value} for seed, value in enumerate(values)}
        for values in ((51.0, 53.0, 55.0), (50.0, 50.0, 50.0))
    )
    assert paired_difference(ours, theirs, "all") == pytest.approx(
        (3, 1, 5, 3)
    )  # one draw in 27 is the lowest one three times
    assert paired_difference(ours, theirs, "all") == paired_difference(ours, theirs, "all")


def test_the_interval_is_that_of_the_plain_bootstrap():
    figures = np.random.default_rng(3).uniform(30, 90, (7, 2, 2))
    drawn = np.random.default_rng(0).integers(7, size=(2_000, 7))
    plain = np.percentile(gap(figures[drawn].mean(1)), [2.5, 97.5])
    assert interval(figures, gap) == pytest.approx(plain, rel=1e-12)


def test_fewer_pairs_have_no_interval_and_none_no_difference():
    one, two = {("a", 1): {"all": 50.0}}, {("a", 1): {"all": 50.0}, ("a", 2): {"all": 60.0}}
    assert str(paired_difference(one, {("a", 1): {"all": 49.0}}, "all")) == "+1.0"
    assert paired_difference(two, {("a", 1): {"all": 49.0}, ("a", 2): {"all": 57.0}}, "all") == (
        2,
        None,
        None,
        2,
    )
    assert paired_difference(one, {("a", 2): {"all": 49.0}}, "all") is None
    assert paired_difference(one, one, "H") is None


def test_h_is_of_the_means_over_datasets_and_so_is_its_difference():
    scores = {
        ("a", 1): {"base": 90.0, "new": 30.0},
        ("a", 2): {"base": 70.0, "new": 50.0},
        ("b", 1): {"base": 60.0, "new": 60.0},
    }
    assert mean_over(scores, "base") == 70 and mean_over(scores, "new") == 50
    assert mean_over(scores, "H") == pytest.approx(2 * 70 * 50 / 120)
    assert mean_over({("a", 1): {"base": 1.0}}, "H") is None
    expected = harmonic_mean(64, 42) - harmonic_mean(62, 40)
    assert paired_difference(BETTER, THEIRS, "H").mean == pytest.approx(expected)


def test_a_figure_without_a_seed_stands_beside_every_seed():
    fixed = {("a", None): {"all": 50.0}, ("bb", None): {"all": 51.0}}
    difference = paired_difference(fixed, THEIRS, "all")
    assert difference.pairs == 6 and difference.mean == pytest.approx(
        50.5 - fmean(value["all"] for value in THEIRS.values())
    )
    assert paired_difference(fixed, fixed, "all").pairs == 2


def test_ranks_are_averaged_over_datasets_among_those_that_have_all():
    methods = {
        "a": {("x", 1): {"all": 1.0}, ("y", 1): {"all": 3.0}},
        "b": {("x", 1): {"all": 2.0}, ("y", 1): {"all": 2.0}},
        "c": {("x", 1): {"all": 9.0}},
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
