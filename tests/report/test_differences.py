"""Differences of two methods over seeds and test images: what covers what it says, and the words for it."""

import numpy as np
import pytest
from fabricated import fabricate

from wordsight.files import csv_text
from wordsight.metrics import crossed_margin, harmonic_mean, margin
from wordsight.report import as_markdown, comparisons, read_rows
from wordsight.report.differences import Difference, Figure, gap, in_words, paired_difference


def drawn(rng, seeds, images, seed_spread=0.0, shift=0.0):
    """Right or wrong, in percent, of a method at each seed on each image: [seeds, images]."""
    score = 0.8 + shift + rng.normal(0, 1, images)
    score = score + rng.normal(0, seed_spread, (seeds, 1)) + rng.normal(0, 0.3, (seeds, images))
    return 100.0 * (score > 0)


def scores(hits, part="all", data="a"):
    """Figures of a method that keeps what it predicted, from [seeds, images]."""
    return {
        (data, seed): {part: Figure(row.mean(), {str(at): bool(hit) for at, hit in enumerate(row)})}
        for seed, row in enumerate(hits)
    }


def plain(values, data="a"):
    """Figures of a method that keeps accuracies alone."""
    return {(data, seed): {"all": Figure(value)} for seed, value in enumerate(values)}


def width(difference):
    return difference.high - difference.mean


# -- the interval


@pytest.mark.parametrize("seed_spread", [0.0, 0.3])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_covers_what_it_says_however_much_seeds_decide(seeds, seed_spread):
    rng, worlds = np.random.default_rng(seeds), 300
    gaps = [
        drawn(rng, seeds, 80, seed_spread) - drawn(rng, seeds, 80, seed_spread) for _ in range(worlds)
    ]  # of two methods that are alike, so that the truth is no difference
    held = [abs(one.mean()) <= crossed_margin([[one]]) for one in gaps]
    assert np.mean(held) > 0.95 - 2 * (0.05 * 0.95 / worlds) ** 0.5
    by_seed = [one.mean(1)[rng.integers(seeds, size=(200, seeds))].mean(1) for one in gaps]
    old = [low <= 0 <= high for low, high in (np.percentile(means, [2.5, 97.5]) for means in by_seed)]
    assert np.mean(old) < 0.9  # a bootstrap of so few pairs, without the images


def test_with_many_seeds_it_is_that_of_a_bootstrap_over_seeds_and_images():
    rng = np.random.default_rng(1)
    gaps = drawn(rng, 40, 150, 0.3, shift=0.2) - drawn(rng, 40, 150, 0.3)
    seeds, images = rng.integers(40, size=(2_000, 40)), rng.integers(150, size=(2_000, 150))
    means = [gaps[row][:, column].mean() for row, column in zip(seeds, images)]
    assert crossed_margin([[gaps]]) == pytest.approx(1.96 * np.std(means), rel=0.06)


def test_equal_seeds_are_one_and_more_images_narrow_the_interval():
    rng = np.random.default_rng(2)
    ours, theirs = drawn(rng, 1, 100), drawn(rng, 1, 100)
    one = paired_difference(scores(ours), scores(theirs), "all")
    again = paired_difference(scores(np.repeat(ours, 3, 0)), scores(np.repeat(theirs, 3, 0)), "all")
    assert again == one and one.seeds == (1,) and one.images == 100
    assert width(one) == pytest.approx(margin([(ours - theirs)[0]]))
    wider = paired_difference(scores(np.tile(ours, 4)), scores(np.tile(theirs, 4)), "all")
    assert width(wider) == pytest.approx(width(one) / 2, rel=0.02)


def test_images_that_one_of_the_two_was_not_tested_on_do_not_count():
    ours = {("a", 1): {"all": Figure(50.0, {"x": True, "y": False, "z": True, "other": False})}}
    theirs = {("a", 1): {"all": Figure(0.0, {"x": False, "y": False, "z": True})}}
    found = paired_difference(ours, theirs, "all")
    assert found.mean == pytest.approx(100 / 3) and found.images == 3


def test_seeds_that_were_tested_on_other_images_are_of_the_images_together():
    gaps = np.array([[100.0, 0.0, np.nan, 0.0], [np.nan, 0.0, 100.0, 0.0]])
    full = np.array([[100.0, 0.0, 100.0, 0.0]])
    assert crossed_margin([[gaps]]) < crossed_margin([[gaps[:1, [0, 1, 3]]]])
    assert crossed_margin([[np.repeat(full, 2, 0)]]) == pytest.approx(crossed_margin([[full]]))


def test_h_changes_as_its_slopes_say():
    rng = np.random.default_rng(3)
    means = rng.uniform(30, 90, (2, 2))
    value, slopes = gap(means)
    assert value == pytest.approx(harmonic_mean(*means[0]) - harmonic_mean(*means[1]))
    for place in np.ndindex(2, 2):
        moved = means.copy()
        moved[place] += 1e-4
        assert (gap(moved)[0] - value) / 1e-4 == pytest.approx(slopes[place], rel=1e-3)
    assert gap(np.zeros((2, 2)))[0] == 0


def test_h_is_compared_on_base_and_new_images_of_all_datasets():
    rng = np.random.default_rng(4)
    base, new = [[drawn(rng, 3, 60, 0.1, shift) for shift in (0.8, 0.0)] for _ in (0, 1)]
    sides = [
        {
            key: scores(base[at])[key] | scores(new[at], "new")[key] | {"base": scores(base[at])[key]["all"]}
            for key in scores(base[at])
        }
        for at in (0, 1)
    ]
    found = paired_difference(*sides, "H")
    means = [harmonic_mean(base[at].mean(), new[at].mean()) for at in (0, 1)]
    assert found.mean == pytest.approx(means[0] - means[1]) and found.images == 120
    assert found.seeds == (3,) and found.level is None and found.verdict == "higher"


def test_datasets_weigh_alike_and_their_seeds_are_counted_together():
    ours = plain([52.0, 54.0, 53.0]) | plain([61.0, 60.0, 62.0], "b")
    theirs = plain([50.0, 51.0, 52.0]) | {("b", None): {"all": Figure(60.0)}}
    found = paired_difference(ours, theirs, "all")
    assert found.mean == pytest.approx(1.5) and found.seeds == (3, 3) and found.pairs == 6
    assert width(found) == pytest.approx(margin([np.array([2.0, 3, 1]) / 2, np.array([1.0, 0, 2]) / 2]))
    assert found.level == 95  # four degrees of freedom
    assert paired_difference(ours, plain([50.0, 51.0, 52.0]), "all").level is None


def test_without_images_seeds_alone_are_tested_and_one_or_equal_ones_are_not():
    three = paired_difference(plain([51.0, 53.0, 55.0]), plain([50.0] * 3), "all")
    assert width(three) == pytest.approx(4.303 * 2 / 3**0.5, rel=1e-3) and three.level is None
    assert three.verdict == "open" and "over 3 seeds alone, too few" in three.over
    for equal in ([51.0], [51.0, 51.0, 51.0]):
        found = paired_difference(plain(equal), plain([50.0] * len(equal)), "all")
        assert str(found) == "+1.0" and found.low is None and found.verdict == "untested"
    shifted = paired_difference(plain([51.1, 53.3, 55.7]), plain([50.0, 52.2, 54.6]), "all")
    assert shifted.verdict == "untested"  # the same difference at each seed
    assert paired_difference(plain([51.0]), {("a", 2): {"all": Figure(49.0)}}, "all") is None
    assert paired_difference(plain([51.0]), plain([50.0]), "H") is None


# -- the words


def test_three_seeds_are_not_called_95_percent_five_are_and_one_is_said():
    def over(*seeds):
        return Difference.around(1.0, 0.5, seeds, 300).over

    assert over(3) == "Intervals over 300 test images and 3 seeds together, too few seeds to name a level."
    assert over(5) == "95 % intervals over 300 test images and 5 seeds together."
    assert over(3, 3) == "95 % intervals over 300 test images and 3 seeds together."
    assert "one seed" in over(1) and "alone" in over(1) and "no seed decides" in over(0)
    assert over(1, 6).startswith("Intervals over 300 test images and 1 to 6 seeds")


def test_a_sentence_says_which_differences_hold():
    kinds = {"a": (2.0, 1.0), "b": (-2.0, 1.0), "c": (0.5, 1.0), "d": (-3.0, 1.0)}
    found = {name: Difference.around(mean, margin, (5,), 80) for name, (mean, margin) in kinds.items()}
    assert in_words(found | {"e": Difference.around(1.0, None, (1,), 0)}, "x") == [
        "a is higher than x; b and d are lower than x; c is not shown to differ from x. "
        "95 % intervals over 80 test images and 5 seeds together.",
        "e is not tested against x. "
        "Not tested: no two seeds differ, and what was predicted of each image is not kept.",
    ]


# -- from run folders


def keep(folder, right):
    """The table of predictions of a run on 15 images, so many of them right, from the first on."""
    rows = [[f"{at}.png", "x", "x" if at < right else "y", "0.9"] for at in range(15)]
    table = csv_text(("image", "label", "predicted", "probability"), rows)
    (folder / "predictions-all.csv").write_text(table)
    return folder


def run(folder, right, **settings):
    return keep(fabricate(folder, accuracies={"all": 100 * right / 15}, **settings), right)


def test_predictions_are_read_where_they_are_those_of_the_accuracy(tmp_path):
    made = [
        run(tmp_path / f"{method}{seed}", right + seed, method=method, seed=seed)
        for method, right in (("aape", 11), ("taskres", 2))
        for seed in (1, 2)
    ]
    (one,) = comparisons(read_rows(made))
    gap = one.standings[0].differences["all"]
    assert gap.images == 15 and gap.seeds == (2,) and gap.mean == pytest.approx(-60)
    (sentence,) = one.words
    assert sentence.startswith("all: taskres is lower than aape. Intervals over 15 test images and 2 seeds")
    assert sentence in as_markdown(read_rows(made), [one])
    keep(made[0], 3)  # of another evaluation
    (other,) = comparisons(read_rows(made))
    assert other.standings[0].differences["all"].images == 0


def test_two_runs_of_one_seed_are_counted_once_and_told(tmp_path, said):
    made = [run(tmp_path / name, right, seed=1) for name, right in (("a", 12), ("b", 3))]
    (row,) = read_rows([*made, run(tmp_path / "c", 9, seed=2)])
    assert row.seeds == 2 and row.figures["all"].count == 2 and row.figures["all"].mean == pytest.approx(70)
    assert f"{made[1]} is not counted: {made[0]} has the same settings and seed" in said.text


def test_predictions_on_other_data_are_its_own(tmp_path):
    made = []
    for method, right in (("aape", 12), ("taskres", 3)):
        for data in ("far/x", "far/y"):
            folder = tmp_path / f"{method}-{data[-1]}"
            made.append(run(folder, right, method=method, event={"data": data}))
            (folder / "predictions-all.csv").rename(folder / f"predictions-all-{data[-1]}.csv")
    (one,) = comparisons(read_rows(made))
    gap = one.standings[0].differences["all"]
    assert one.elsewhere and gap.images == 30 and gap.seeds == (1, 1) and gap.mean == pytest.approx(-60)
