"""Classifier keeps scikit-learn's conventions, and says the same of an image in whatever form it comes."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator
from standins import CLASSIFIERS, COLOURS, TOWER_LEARNERS, mostly_slow, paint

from wordsight import estimator
from wordsight.config import METHODS, WordsightError, resolve
from wordsight.estimator import Classifier, load
from wordsight.fitted import encode_classes
from wordsight.prediction import predict
from wordsight.runs import Run

KINDS = ("text", "numbers", "named numbers", "no backbone")
QUICK = {"epochs": 2, "min_steps": 10}
A_STEP = {"max_steps": 1}  # where it matters that something was trained, not what
COLOUR_NAMES = ["red", "green", "blue"]
SENTENCES = {
    "red": ["a red rose", "red blood"],
    "green": ["green grass", "a green leaf"],
    "blue": ["the blue sky"],
}


def make(backbone, method="aape", train=QUICK, **settings):
    learns = hasattr(resolve(METHODS, method, "method"), "training_defaults")
    return Classifier(backbone, method, train=train if learns else {}, **settings)


@pytest.fixture(scope="module")
def images():
    return [paint(COLOURS[name], seed) for seed, name in enumerate(COLOUR_NAMES * 4)]


@pytest.fixture(scope="module")
def labels():
    return COLOUR_NAMES * 4


@pytest.fixture(scope="module")
def fitted(backbone, images, labels):
    return make(backbone, sentences=SENTENCES).fit(images, labels)


# -- scikit-learn's conventions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",  # of which the checks have no backbone, only matrices; one of them stands for the others
    mostly_slow((name for name in CLASSIFIERS if name not in TOWER_LEARNERS), "linear_probe"),
)
def test_scikit_learn_s_own_checks_pass(method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(make(None, method, A_STEP), on_fail=None, on_skip=None)
    assert [
        (result["check_name"], result["exception"]) for result in results if result["status"] == "failed"
    ] == []
    # Skipped by scikit-learn itself: array-API inputs are tested only where SCIPY_ARRAY_API=1 is set before
    # scipy is imported; the method takes no sparse matrix, no string features and no sample weights, for
    # which it has no checks here to skip.
    assert {result["check_name"] for result in results if result["status"] == "skipped"} <= {
        "check_array_api_input"
    }
    assert len(results) > 40 and not any(result["status"] == "xfail" for result in results)


def test_a_table_of_one_column_of_paths_is_a_list_of_images(fitted, images, tmp_path):
    paths = [str(tmp_path / f"{row}.png") for row in range(3)]
    for image, path in zip(images, paths):
        image.save(path)
    for table in (np.array(paths)[:, None], pandas.DataFrame({"path": paths})):
        assert fitted.predict(table).tolist() == fitted.predict(paths).tolist()
    with pytest.raises(WordsightError, match="a table of 2 columns: give that of paths"):
        fitted.predict(pandas.DataFrame({"path": paths, "label": "red"}))
    fitted.save(tmp_path / "run")
    for given in (pandas.DataFrame({"path": paths}), iter(paths), (path for path in paths), tuple(paths)):
        answers = predict(tmp_path / "run", given, backbone=fitted.fitted_.backbone)
        assert [answer.image for answer in answers] == paths


def test_labels_that_differ_in_case_alone_are_classes_where_no_word_is_read():
    X = np.repeat(np.eye(4, 8), 3, 0).astype(np.float32)
    for names in (["A", "a", "B", "b"], ["a_b", "a b", "I", "i"]):
        y = np.repeat(names, 3)
        assert make(None, "linear_probe").fit(X, y).predict(X).tolist() == y.tolist()


def test_it_is_not_calibrated_on_images_that_it_was_fitted_to(fitted, images, labels):
    with pytest.raises(WordsightError, match="2 of these 3 images are ones that it was fitted to"):
        clone(fitted).fit(images, labels).calibrate([*images[:2], paint((9, 9, 9), 1)], labels[:3])


def test_it_is_a_classifier_of_scikit_learn():
    assert make(None).__sklearn_tags__().estimator_type == "classifier"
    assert len(list(estimator_checks_generator(make(None, "zero_shot")))) > 40


def test_cloning_keeps_every_parameter(backbone):
    original = make("micro", sentences=SENTENCES, settings={"width": 4}, class_names=["a"], seed=3)
    copied = clone(original)
    assert copied.get_params() == original.get_params() and copied is not original
    assert clone(make(backbone)).backbone.dim == backbone.dim


def test_cross_validation_and_grid_search(backbone, images, labels):
    matrix = np.concatenate([make(backbone).encode(images), make(backbone).encode(images)])
    assert cross_val_score(make(backbone, "zero_shot"), matrix, labels * 2, cv=3).mean() > 0.9
    grid = {"settings": [{"strength": value} for value in np.array([1e-6, 1e4])]}
    search = GridSearchCV(make(None, "linear_probe"), grid, cv=3, scoring="neg_log_loss").fit(
        matrix, labels * 2
    )
    assert search.best_params_ == {"settings": {"strength": 1e-6}}
    assert search.best_estimator_.score(matrix, labels * 2) > 0.9


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_scores_are_probabilities_of_the_sorted_classes(backbone, images, labels, method):
    classifier = make(backbone, method).fit(images, labels)
    assert classifier.classes_.tolist() == sorted(COLOUR_NAMES) and classifier.n_features_in_ == backbone.dim
    chances = classifier.predict_proba(images)
    assert chances.shape == (12, 3) and np.allclose(chances.sum(1), 1)
    assert (classifier.classes_[chances.argmax(1)] == classifier.predict(images)).all() and classifier.score(
        images, labels
    ) > 0.9
    scores = classifier.decision_function(images)
    assert np.allclose(np.exp(scores) / np.exp(scores).sum(1, keepdims=True), chances, atol=1e-5)


def test_two_classes_have_one_score(backbone, images, labels):
    keep = [row for row, label in enumerate(labels) if label != "blue"]
    classifier = make(backbone, "zero_shot").fit([images[row] for row in keep], [labels[row] for row in keep])
    chances, scores = classifier.predict_proba(images), classifier.decision_function(images)
    assert scores.shape == (12,) and np.allclose(1 / (1 + np.exp(-scores)), chances[:, 1], atol=1e-6)


# -- forms of an image ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", CLASSIFIERS)
def test_every_form_of_an_image_is_the_same_image(backbone, images, labels, tmp_path, method):
    paths = [tmp_path / f"{row}.png" for row in range(len(images))]
    for image, path in zip(images, paths):
        image.save(path)
    matrix = make(backbone).encode(images)
    assert matrix.dtype == np.float32 and np.allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)
    arrays = [np.asarray(image) for image in images]
    forms = [
        images,
        paths,
        [str(path) for path in paths],
        arrays,
        np.stack(arrays),
        matrix,
        matrix.astype(np.float64),
        matrix.tolist(),
        3 * matrix,
    ]
    first = make(backbone, method, A_STEP, sentences=SENTENCES).fit(images, labels)
    chances, reasons = first.predict_proba(images), first.explain(images)
    for form in forms:
        refitted = make(backbone, method, A_STEP, sentences=SENTENCES).fit(form, labels)
        assert np.allclose(refitted.predict_proba(images), chances, atol=1e-4)
        assert np.allclose(first.predict_proba(form), chances, atol=1e-5)
        assert [[line[:2] for line in why] for why in first.explain(form)] == [
            [line[:2] for line in why] for why in reasons
        ]


def test_labels_are_text_or_numbers(backbone, images, labels):
    numbers = [{"red": 7, "green": 2, "blue": 5}[label] for label in labels]
    named = make(backbone, "zero_shot", class_names=["green", "blue", "red"]).fit(
        images, numbers
    )  # in the order of the sorted labels
    assert named.predict(images).tolist() == numbers
    assert (
        named.predict_proba(images)[:, 2].tolist()
        == make(backbone, "zero_shot").fit(images, labels).predict_proba(images)[:, 2].tolist()
    )
    assert make(backbone, "linear_probe").fit(images, np.array(numbers)).predict(images).tolist() == numbers


# -- keeping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, method",
    mostly_slow(
        [
            (kind, name)
            for kind in KINDS
            for name in CLASSIFIERS
            if kind != "no backbone" or name not in TOWER_LEARNERS
        ],
        *(("text", name) for name in CLASSIFIERS),
        *((kind, "aape") for kind in KINDS),
    ),
)
def test_save_and_load_keep_every_prediction(backbone, images, labels, tmp_path, method, kind):
    y = labels if kind == "text" else [COLOUR_NAMES.index(label) for label in labels]
    X = make(backbone).encode(images) if kind == "no backbone" else images
    names = COLOUR_NAMES if kind == "named numbers" else None
    used = None if kind == "no backbone" else backbone
    classifier = make(used, method, class_names=names, seed=np.int64(4)).fit(X, y)
    classifier.save(tmp_path / "run")
    loaded = load(tmp_path / "run", backbone=used)
    assert (
        loaded.predict(X).tolist() == classifier.predict(X).tolist()
        and loaded.classes_.dtype == classifier.classes_.dtype
    )
    assert np.allclose(loaded.predict_proba(X), classifier.predict_proba(X), atol=1e-6)
    assert loaded.get_params()["method"] == method and loaded.seed == 4
    assert [[line[:2] for line in why] for why in loaded.explain(X)] == [
        [line[:2] for line in why] for why in classifier.explain(X)
    ]


def test_numbers_of_numpy_can_be_saved(backbone, images, labels, tmp_path):
    classifier = Classifier(
        backbone,
        "aape",
        settings={"form": "skip", "width": np.int64(4), "distill": np.float32(0.5)},
        train={**QUICK, "lr": np.float64(0.01)},
    )
    kept = load(classifier.fit(images, labels).save(tmp_path / "run"), backbone=backbone)
    assert (kept.settings["width"], kept.settings["distill"], kept.train["lr"]) == (4, 0.5, 0.01)


def test_a_loaded_classifier_is_fitted_again_on_the_same_words(backbone, fitted, images, labels, tmp_path):
    fitted.save(tmp_path / "run")
    again = clone(load(tmp_path / "run", backbone=backbone)).set_params(backbone=backbone).fit(images, labels)
    assert np.allclose(again.predict_proba(images), fitted.predict_proba(images))


def test_a_backbone_folder_is_enough_to_load(tiny_clip, images, labels, tmp_path):
    classifier = make(str(tiny_clip), "zero_shot", device="cpu").fit(images, labels)
    loaded = load(classifier.save(tmp_path / "run"))
    assert np.array_equal(loaded.predict_proba(images), classifier.predict_proba(images))


def test_a_backbone_that_moved_is_named_by_its_path(tiny_clip, images, labels, tmp_path):
    there, here = shutil.copytree(tiny_clip, tmp_path / "there"), tmp_path / "here"
    folder = make(there, "zero_shot").fit(images, labels).save(tmp_path / "run")
    there.rename(here)
    with pytest.raises(
        WordsightError, match=r"does not exist.*Where it has moved, name its place: backbone="
    ):
        load(folder)
    loaded = load(folder, backbone=here)
    assert np.allclose(loaded.predict_proba(loaded.encode(images)), loaded.predict_proba(images))


# -- other classes -------------------------------------------------------------------------------------------


def test_other_classes_are_chosen_by_name(fitted, images):
    weights = {name: tensor.clone() for name, tensor in fitted.method_.weights().items()}
    before = fitted.decision_function(images)
    assert fitted.with_classes(name for name in ("red", "green")).classes_.tolist() == ["red", "green"]
    other = fitted.with_classes(["yellow", "red", "green"], {"yellow": ["a yellow lemon", "yellow sand"]})
    after = other.decision_function(images)
    assert np.allclose(
        after[:, [2, 1]], before[:, [1, 2]], atol=1e-4
    )  # what it was fitted on keeps what it learned
    assert other.predict([paint(COLOURS["yellow"], 50)]).tolist() == ["yellow"]
    assert any(
        name == "yellow" and text in ("a yellow lemon", "yellow sand")
        for name, text, _ in other.explain([paint(COLOURS["yellow"], 50)], 2)[0]
    )
    assert all(torch.equal(weights[name], tensor) for name, tensor in other.method_.weights().items())
    assert np.array_equal(fitted.decision_function(images), before) and fitted.classes_.tolist() == [
        "blue",
        "green",
        "red",
    ]


def test_chosen_classes_can_be_chosen_again(fitted, images):
    twice = fitted.with_classes(["red", "purple"]).with_classes(["blue", "green", "red"])
    assert np.allclose(twice.decision_function(images), fitted.decision_function(images), atol=1e-5)


def test_other_classes_from_a_file(fitted, tmp_path):
    (tmp_path / "s.json").write_text('{"yellow": ["a yellow lemon"], "Purple": ["a purple plum"]}')
    other = fitted.with_classes(["yellow", "purple", "red"], str(tmp_path / "s.json"))
    assert other.fitted_.sentences["purple"] == ("a purple plum",) and other.fitted_.sentences[
        "red"
    ] == tuple(SENTENCES["red"])
    with pytest.raises(WordsightError, match=r"s\.json has no sentences for 1 of 2 classes: 'orange'"):
        fitted.with_classes(["orange", "purple"], str(tmp_path / "s.json"))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["red"], "at least 2 class names, each once"),
        ([], "at least 2 class names, each once"),
        (["red", "red"], "names a class twice"),
        (["red", "blue", "Red "], "names a class twice.*'red' and 'Red '"),
    ],
)
def test_classes_that_cannot_be_chosen_among(fitted, names, says):
    with pytest.raises(WordsightError, match=says):
        fitted.with_classes(names)


def test_only_what_was_fitted_is_saved(fitted, tmp_path):
    with pytest.raises(WordsightError, match="over other classes is not saved"):
        fitted.with_classes(["red", "purple"]).save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_explaining_names_the_closest_sentences_first(fitted, backbone, images, labels):
    for why in fitted.explain(images, top=2):
        assert (
            len(why) == 2 and why[0][2] >= why[1][2] and all(text in SENTENCES[name] for name, text, _ in why)
        )
    itself = make(backbone, "zero_shot", sentences=SENTENCES).fit(
        images, labels
    )  # the image alone is compared with the sentences
    assert [why[0][0] for why in itself.explain(images, top=1)] == labels
    assert len(fitted.explain(images[:1], top=99)[0]) == 5


@pytest.mark.parametrize("method", ["sentence_mean", "aape"])
def test_the_decisive_sentence_is_the_one_whose_absence_costs_most(backbone, images, labels, method):
    """Held against classifiers that never had the sentence."""
    whole = make(backbone, method, sentences=SENTENCES).fit(images, labels)
    scores = whole.fitted_.logits(whole._images(images))
    for image, own, found in zip(whole._images(images), scores, whole.decisive(images)):
        row = int(own.argmax())
        name, left = whole.classes_[row], {}
        for text in SENTENCES[name]:
            texts = encode_classes(
                backbone,
                whole.fitted_.facts,
                whole.classes_,
                {**SENTENCES, name: [one for one in SENTENCES[name] if one != text]},
            )
            left[text] = replace(whole.fitted_, texts=texts).logits(image[None])[0]
        whole.fitted_.method.choose(whole.fitted_.texts)  # which these classifiers share
        lowest = min(left, key=lambda text: left[text][row])
        if own[row] - left[lowest][row] < 1e-4:
            assert found is None
            continue
        assert (found.name, found.sentence) == (name, lowest)
        assert found.raised == pytest.approx(float(own[row] - left[lowest][row]), abs=1e-4)
        assert found.runner_up == whole.classes_[int(own.topk(2).indices[1])]
        assert found.without == whole.classes_[int(left[lowest].argmax())]
        assert found.probability == pytest.approx(float(left[lowest].softmax(0).max()), abs=1e-4)


def test_a_sentence_may_decide_alone(backbone):
    """A class whose name says another colour is predicted by its one sentence, and not without it."""
    images, told = [paint(COLOURS["red"], 1), paint(COLOURS["yellow"], 2)], ["red red red"]
    sentences = {"green": told, "yellow": ["a yellow lemon"]}
    classifier = make(backbone, "sentence_mean", sentences=sentences).fit(images, ["green", "yellow"])
    found, _ = classifier.decisive(images)
    assert found[:3] == ("green", "yellow", *told) and found.without == "yellow" and found.probability > 0.5


def test_what_reads_no_sentences_has_no_decisive_one(backbone, images, labels):
    for method in ("linear_probe", "coop", "zero_shot"):
        fitted = make(backbone, method, train=A_STEP, sentences=SENTENCES).fit(images, labels)
        assert fitted.decisive(images) == [None] * len(images), method


# -- mistakes ------------------------------------------------------------------------------------------------


def test_mistakes_end_in_sentences(backbone, images, labels, fitted):
    cases = [
        (lambda: make(backbone).fit(images, ["red"] * 12), "all labels are of one class, 'red'"),
        (lambda: make(backbone).fit(images, labels[:-1]), "12 images and 11 labels"),
        (lambda: make(backbone).fit(images, [*labels, "red"]), "12 images and 13 labels"),
        (lambda: make(backbone).fit(images, None), "requires y to be passed"),
        (
            lambda: make(backbone).fit(images[0], labels),
            "expected a list of images, not one Image; put it in a list",
        ),
        (lambda: make(backbone).fit("photos/a.png", ["red"]), "not one str; put it in a list"),
        (lambda: fitted.predict(Path("a.png")), "put it in a list"),
        (
            lambda: fitted.predict(np.zeros((8, 8, 3), np.uint8)),
            r"an array of shape \(8, 8, 3\) is one image, so put it in a list",
        ),
        (lambda: fitted.predict([3]), "image 0 is a int; an image is a path"),
        (
            lambda: make(backbone).fit(np.ones((12, 5), np.float32), labels),
            "feature matrix of width 5 does not fit backbone 'colours'.*have 12",
        ),
        (
            lambda: fitted.predict(np.ones((2, 5), np.float32)),
            "X has 5 features, but Classifier is expecting 12",
        ),
        (lambda: make(backbone).fit([], []), "there are no images to fit to"),
        (lambda: make(backbone).fit(images[:2], np.eye(2)), "y should be a 1d array"),
        (lambda: make(backbone).fit(images[:2], [("a", 1), "b"]), "labels are of type"),
        (
            lambda: make(backbone).fit(images[:4], ["One", "one ", "One", "two"]),
            "names a class twice .*'One' and 'one '",
        ),
        (lambda: fitted.explain(images[:1], top=-1), "-1 sentences are asked for"),
        (lambda: fitted.predict(["none.png"]), r"none of 1 images could be read; the first: none\.png"),
        (
            lambda: fitted.predict([np.zeros((4, 4), np.float32), images[0]]),
            "1 images cannot be read.*expected uint8",
        ),
        (
            lambda: make(backbone, "aaep").fit(images, labels),
            "method 'aaep' is not known.*did you mean 'aape'",
        ),
        (
            lambda: make(backbone, settings={"with": 3}).fit(images, labels),
            "unknown setting 'settings.with'.*did you mean 'width'",
        ),
        (
            lambda: make(backbone, class_names=["a", "b"]).fit(images, labels),
            "class_names has 2 names, the labels have 3 classes",
        ),
        (
            lambda: make(backbone, class_names=["a", "b", "a"]).fit(images, labels),
            "the list of classes names a class twice",
        ),
        (
            lambda: make(backbone, sentences={"red": ["x"]}).fit(images, labels),
            "has no sentences for 2 of 3 classes",
        ),
        (
            lambda: make(backbone, device="gpu").fit(images, labels),
            "device='gpu' is not known; give auto, cpu",
        ),
        (
            lambda: make(None, "zero_shot").fit(np.eye(4), list("aabb")).with_classes(["a", "c"]),
            "new classes need words",
        ),
        (lambda: make(None).encode(images), "no image tower"),
        (
            lambda: make(None, "coop").fit(np.eye(4), list("aabb")),
            "coop learns token prompts of a text tower; there is no backbone here",
        ),
        (lambda: make(3).fit(images, labels), "backbone='3' is of type int; give the name or the folder"),
        (lambda: load("nowhere", backbone=3), "is no run folder"),
        (lambda: make(backbone, sentences=["x"]).fit(images, labels), "is of type list; give {class"),
        (lambda: make(backbone, settings=[3]).fit(images, labels), r"settings=\[3\] is not a table"),
        (lambda: Classifier(backbone, "two_tower").fit(images, labels), "'two_tower' classifies no vectors"),
    ]
    for act, message in cases:
        with pytest.raises(ValueError, match=message):
            act()
    for name in ("predict", "predict_set", "unlike", "explain", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(make(backbone), name)(images)


def test_nothing_of_another_fit_stays_where_one_is_saved_over_it(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 6)), np.repeat(["a", "b"], 20)
    first = Classifier(None, "zero_shot").fit(X, y).calibrate(X, y)
    run = Run.open(first.save(tmp_path / "run"))
    run.log({"event": "eval", "accuracy": 99.0})
    (run.folder / "predictions-all.csv").write_text("")
    load(run.folder).calibrate(X, y).save(run.folder)
    assert run.events("eval") and load(run.folder).doubts_.chances is not None, "it is the same fit"
    Classifier(None, "zero_shot").fit(X[::-1], y).save(run.folder)
    assert not run.events() and not list(run.folder.glob("*.csv"))
    assert load(run.folder).doubts_.chances is None


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_left_out_of_fitting(backbone, images, labels, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    mixed = [images[0], str(tmp_path / "bad.png"), *images[1:]]
    classifier = make(backbone).fit(mixed, [labels[0], "blue", *labels[1:]])
    why = "not an image, or of a kind that Pillow does not read"
    assert classifier.skipped_ == [(str(tmp_path / "bad.png"), why)]
    assert np.array_equal(
        classifier.predict_proba(images), make(backbone).fit(images, labels).predict_proba(images)
    )
    with pytest.raises(WordsightError, match="1 images cannot be read"):
        classifier.predict(mixed)


def test_a_class_whose_every_image_is_unreadable_is_named(backbone, images, labels, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    mixed = [str(tmp_path / "bad.png") if label == "green" else image for image, label in zip(images, labels)]
    with pytest.raises(WordsightError, match="no training image that can be read is left of green"):
        make(backbone, "linear_probe").fit(mixed, labels)


# -- the hub -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_classifier_goes_to_the_hub_and_back(tiny_clip, images, labels, monkeypatch, tmp_path):
    import shutil

    from wordsight.backbones import hub

    fitted = make(str(tiny_clip), "tip_adapter").fit(images, labels)

    class Api:
        def __init__(self, token=None):
            assert token == "t"

        def create_repo(self, repo_id, private=None, exist_ok=False):
            assert (repo_id, private, exist_ok) == ("me/colours", True, True)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert fitted.push_to_hub("me/colours", private=True, token="t") == "https://huggingface.co/me/colours"
    card = (tmp_path / "hub" / "README.md").read_text()
    assert (
        card.startswith("---\nlibrary_name: wordsight")
        and 'wordsight.load("hf:me/colours")' in card
        and "blue, green, red" in card
    )
    there = {"me/colours": str(tmp_path / "hub")}
    monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, **_: there[repo_id])
    assert np.array_equal(load("hf:me/colours").predict_proba(images), fitted.predict_proba(images))


@pytest.mark.parametrize("error", [OSError("no network\nsecond line"), RuntimeError()])
def test_a_hub_that_does_not_answer_is_said(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("wordsight.backbones.hub.snapshot_download", fail)
    with pytest.raises(
        WordsightError, match=r"hf:me/none cannot be read from the hub: (no network$|RuntimeError$)"
    ):
        load("hf:me/none")


def test_pictures_of_passes_pictures_through(images):
    pictures = estimator.pictures_of([images[0], np.asarray(images[1])])
    assert estimator.pictures_of(pictures) == pictures and isinstance(pictures[0].load(), Image.Image)
