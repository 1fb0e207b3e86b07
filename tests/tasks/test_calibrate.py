"""A temperature is fitted to validation images, never to test images, and what an evaluation keeps of it."""

import shutil

import numpy as np
import pytest
from standins import COLOURS, paint

from wordsight import metrics
from wordsight.config import RunSettings
from wordsight.fit import fit
from wordsight.tasks import evaluate
from wordsight.tasks.calibrate import spread


def fill(root, names):
    """train, val and test of four images a class, none twice."""
    for place, part in enumerate(("train", "val", "test")):
        for row, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for index in range(4):
                image = paint(COLOURS[name], 1000 * place + 100 * row + index)
                image.save(root / part / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """In val, one image of each class is in another's folder."""
    names = ("red", "green", "blue", "purple")
    root = fill(tmp_path_factory.mktemp("parts"), names)
    for name, other in zip(names, names[1:] + names[:1]):
        shutil.move(root / "val" / other / "0.png", root / "val" / name / "9.png")
    return root


def measured(data, out, backbone, **others):
    settings = RunSettings(data=str(data), method="zero_shot", out=str(out), **{"shots": 4, **others})
    return fit(settings, backbone=backbone, references=False)


def test_the_temperature_is_of_validation_images_and_no_test_image_decides_it(parts, backbone, tmp_path):
    run = measured(parts, tmp_path / "run", backbone)
    (event,) = run.events("eval")
    kept = event["calibration"]
    assert kept["validation"] == 16 and kept["temperature"] > 0 and "reason" not in kept
    assert sum(kept["curve"]["images"]) == sum(kept["curve_after"]["images"]) == event["images"] == 16
    known = [row for row in zip(*kept["curve"].values()) if row[0]]
    error = sum(count * abs(sure - right) for count, sure, right in known) / 16
    assert event["calibration_error"] == pytest.approx(error) != kept["error_after"]
    other = shutil.copytree(parts, tmp_path / "other")
    shutil.rmtree(other / "test" / "red")
    shutil.copytree(other / "test" / "blue", other / "test" / "red")
    (again,) = measured(other, tmp_path / "again", backbone).events("eval")
    assert again["accuracy"] < event["accuracy"]
    assert again["calibration"]["temperature"] == kept["temperature"]


def test_new_classes_have_the_temperature_of_base_classes(parts, backbone, tmp_path):
    run = measured(parts, tmp_path / "run", backbone, classes="base")
    base, new = (event["calibration"] for event in run.events("eval"))
    assert base["temperature"] == new["temperature"] and base["validation"] == new["validation"] == 8
    assert evaluate(run, classes="new", backbone=backbone)[0]["calibration"] == new


def test_without_validation_images_it_is_said(photos, parts, backbone, tmp_path):
    run = measured(photos, tmp_path / "run", backbone, shots=2)
    (event,) = run.events("eval")
    assert event["calibration"]["temperature"] is None
    assert event["calibration"]["reason"] == "the data has no validation images"
    right = fill(tmp_path / "right", ("red", "green", "blue"))
    (event,) = measured(right, tmp_path / "all", backbone).events("eval")
    assert event["calibration"]["temperature"] is None
    assert "every one is right" in event["calibration"]["reason"]


def test_a_validation_image_that_is_a_test_image_too_is_left_out(parts, backbone, tmp_path):
    both = shutil.copytree(parts, tmp_path / "both")
    shutil.copy(both / "test" / "red" / "1.png", both / "val" / "red" / "1.png")
    (event,) = measured(both, tmp_path / "run", backbone).events("eval")
    assert event["calibration"]["validation"] == 15


def test_other_data_has_a_temperature_of_its_own_validation_part(photos, parts, backbone, tmp_path):
    run = measured(photos, tmp_path / "run", backbone, shots=2)
    (event,) = evaluate(run, data=str(parts), backbone=backbone)
    assert event["calibration"]["validation"] == 16


def test_many_validation_images_are_taken_evenly():
    assert spread(3, 5) == [0, 1, 2] and spread(1001, 3) == [0, 500, 1000]


def test_a_curve_has_every_image_once():
    sure, right = np.array([0.0, 0.05, 0.99, 1.0]), np.array([True, False, True, True])
    curve = metrics.calibration_curve(sure, right, bins=10)
    assert curve.images.tolist() == [2, *[0] * 8, 2] and curve.accuracy[[0, -1]].tolist() == [50, 100]
    assert np.isnan(curve.confidence[1:-1]).all()
    assert curve.error == pytest.approx((2 * 47.5 + 2 * 0.5) / 4)
