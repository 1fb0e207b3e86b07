"""What every method of the table keeps to. A new method is tested by standing in METHODS."""

import copy
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from standins import CLASSIFIERS

from wordsight.backbones import unit
from wordsight.config import METHODS, RunSettings, WordsightError, resolve
from wordsight.files import write_tensors
from wordsight.fitted import predict_logits
from wordsight.fitting import fit_method
from wordsight.methods import Classifier, FitData, Learner
from wordsight.onnx import opened
from wordsight.reader import read_yaml
from wordsight.runs import Run, RunFacts, build_method
from wordsight.sentences import ClassTexts, class_texts

NAMES = ("red", "green", "blue", "yellow")
DIM, SCALE = 12, 20.0
LABELLED_ONLY = {"linear_probe"}  # methods that score only classes with labelled images, and say so
SENTENCES = {
    "red": ("a red rose", "blood is red"),
    "green": ("grass",),
    "blue": (),
    "yellow": ("a yellow lemon", "sun", "yellow sand"),
}
WEIGHED = {"aape"}  # methods that weigh their parts otherwise beside classes without labels
FORMS = ["aape skip", "aape literal", "aape h_only"]  # forms of a method that are trained
SETTINGS = {"cocoop": {"reduction": 2}}  # a bottleneck of 12/16 is one unit, which may be dead
QUICK = {"epochs": 3, "min_steps": 15, "batch_size": 6}
known: dict[str, Classifier] = {}  # what was fitted, by the method's name


@pytest.fixture(params=[*CLASSIFIERS, *FORMS])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def data():
    """Images [24, 12] around a direction a class, and their labels."""
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % len(NAMES)
    return unit(
        torch.randn(len(NAMES), DIM, generator=stream)[labels] + 0.7 * torch.randn(24, DIM, generator=stream)
    ), labels


@pytest.fixture(scope="module")
def texts(backbone):
    return class_texts(backbone.encode_text, NAMES, sentences=SENTENCES)


def facts(names=NAMES):
    return RunFacts(tuple(names), DIM, SCALE, "a photo of a {}.")


def settings_of(name):
    name, _, form = name.partition(" ")
    own = {"form": form} if form else SETTINGS.get(name, {})
    plain = RunSettings(data="d", method=name, settings=own)
    return RunSettings(data="d", method=name, settings=own, train=QUICK if plain.train else {})


def attached(name, backbone):
    torch.manual_seed(0)
    return build_method(settings_of(name), facts(), backbone)


def fitted(name, data, texts, backbone):
    """A copy, which a test may change, of the one that was fitted first."""
    if name not in known:
        known[name] = fit_anew(name, data, texts, backbone)
    return copy.deepcopy(known[name])


def fit_anew(name, data, texts, backbone):
    images, labels = data
    return fit_method(settings_of(name), facts(), FitData(images[:, None], labels, texts, 1), backbone)


@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_of_a_method_what_its_class_does(name):
    told = METHODS[name]
    assert told == resolve(METHODS, name, "method").entry(told.target, told.summary)


@cache
def configured(folder):
    return {read_yaml(path)["method"] for path in folder.glob("*.yaml")}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_written_down(name):
    """In its own words, in a page, and in a YAML with its paper's settings."""
    root = Path(__file__).parents[2]
    assert "__doc__" in vars(resolve(METHODS, name, "method")) and resolve(METHODS, name, "method").__doc__, (
        f"{name} has no docstring of its own"
    )
    titles = [
        page.read_text(encoding="utf-8").splitlines()[0] for page in (root / "docs" / "methods").glob("*.md")
    ]
    assert any(name in re.findall(r"\w+", title) for title in titles), (
        f"no page in docs/methods/ has {name} in its title"
    )
    assert name in configured(root / "src" / "wordsight" / "configs"), (
        f"a YAML in configs/ has method: {name}"
    )


def test_scores_one_finite_row_an_image(name, data, texts, backbone):
    method = fitted(name, data, texts, backbone)
    logits = predict_logits(method, data[0])
    assert logits.shape == (24, 4) and logits.isfinite().all() and logits.dtype == torch.float32
    assert predict_logits(method, data[0][:0]).shape == (0, 4)
    assert torch.allclose(method.prompt(data[0]).norm(dim=1), torch.ones(24), atol=1e-5)


def test_is_saved_and_loaded_to_the_same_scores(name, data, texts, backbone, tmp_path):
    method = fitted(name, data, texts, backbone)
    run = Run.start(tmp_path / "run", settings_of(name), facts(), SENTENCES)
    run.keep_weights(method.weights())
    run.finish()
    loaded = Run.open(tmp_path / "run").method(backbone)
    loaded.choose(texts)
    assert torch.equal(predict_logits(loaded, data[0]), predict_logits(method, data[0]))


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_demands_exactly_the_saved_tensors(name, data, texts, backbone, tmp_path, damage):
    run = Run.start(tmp_path / "run", settings_of(name), facts(), SENTENCES)
    run.keep_weights(fitted(name, data, texts, backbone).weights())
    run.finish()
    path = run.folder / "weights.safetensors"
    tensors = load_file(path)
    if damage != "extra" and not tensors:
        assert not list(
            attached(name, backbone).weights()
        )  # a method without fitted tensors has none to lose
        return
    first = next(iter(tensors), "another")
    if damage == "missing":
        del tensors[first]
    elif damage == "extra":
        tensors["another"] = torch.zeros(2)
    else:
        tensors[first] = torch.zeros(*tensors[first].shape, 2)
    write_tensors(path, tensors)
    with pytest.raises(
        WordsightError, match={"missing": "missing", "extra": "not known", "shape": "has shape"}[damage]
    ) as error:
        run.method(backbone)
    assert "another" in str(error.value) if damage == "extra" else first in str(error.value)


def test_other_classes_are_set_after_training(name, data, texts, backbone):
    method = fitted(name, data, texts, backbone)
    before = predict_logits(method, data[0])
    others = class_texts(
        backbone.encode_text, ("blue", "purple", "red"), sentences=SENTENCES | {"purple": ("violets",)}
    )
    if name in LABELLED_ONLY:
        with pytest.raises(WordsightError, match="has seen no images of purple"):
            method.choose(others)
        others = class_texts(backbone.encode_text, ("blue", "red"), sentences=SENTENCES)
    method.choose(others)
    logits = predict_logits(method, data[0])
    assert logits.shape == (24, len(others.names)) and logits.isfinite().all()
    if name not in WEIGHED:  # a known class keeps what it learned
        assert torch.allclose(logits[:, [0, -1]], before[:, [2, 0]], atol=1e-4)
    method.choose(texts)
    assert torch.equal(predict_logits(method, data[0]), before)


def test_the_order_of_classes_only_orders_the_scores(name, data, texts, backbone):
    method = fitted(name, data, texts, backbone)
    before, order = predict_logits(method, data[0]), [2, 0, 3, 1]
    turned = ClassTexts(
        *(
            tuple(part[i] for i in order) if isinstance(part, tuple) else part[order]
            for name, part in vars(texts).items()
            if name != "template"
        )
    )
    method.choose(turned)
    assert torch.allclose(predict_logits(method, data[0]), before[:, order], atol=1e-5)


def test_an_image_is_scored_alone(name, data, texts, backbone):
    method = fitted(name, data, texts, backbone)
    whole = predict_logits(method, data[0])
    assert torch.allclose(
        torch.cat([predict_logits(method, image[None]) for image in data[0]]), whole, atol=1e-4
    )


class Head(torch.nn.Module):
    """A method as a graph is traced of it."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, images):
        return self.method.traced(images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_graph_of_it_gives_the_same_in_batches_of_any_size(name, data, texts, backbone, tmp_path):
    """Or it says why there is none."""
    method, images = fitted(name, data, texts, backbone), data[0].repeat(40, 1)
    if name == "cocoop":
        with pytest.raises(WordsightError, match="no graph"):
            method.traced(images)
        return
    file, axes = str(tmp_path / "head.onnx"), {"images": {0: "batch"}}
    how = {"input_names": ["images"], "dynamic_axes": axes, "opset_version": 18, "dynamo": False}
    torch.onnx.export(Head(method).eval(), (images[:2],), file, **how)
    session = opened(file)
    with torch.no_grad():
        for count in (1, 3, len(images)):
            found = session.run(None, {"images": images[:count].numpy()})[0]
            assert found == pytest.approx(method.score(images[:count]).numpy(), abs=2e-4)


def test_training_mode_changes_no_type_and_no_score(name, data, texts, backbone):
    method = fitted(name, data, texts, backbone)
    assert not method.training
    assert torch.equal(predict_logits(method.train(), data[0]), predict_logits(method.eval(), data[0]))


def test_features_rounded_to_bfloat16_give_nearly_the_same(name, data, texts, backbone):
    method = fitted(name, data, texts, backbone)
    exact, rounded = (predict_logits(method, images) for images in (data[0], data[0].bfloat16().float()))
    assert (exact.argmax(1) == rounded.argmax(1)).float().mean() >= 0.9
    assert torch.allclose(exact, rounded, atol=0.03 * exact.abs().max().item())


def test_fitting_twice_gives_the_same_bits(name, data, texts, backbone):
    first, second = (fit_anew(name, data, texts, backbone).weights() for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "name", [name for name in CLASSIFIERS if issubclass(resolve(METHODS, name, "method"), Learner)] + FORMS
)
def test_gradients_reach_what_is_trained_and_nothing_else(name, data, texts, backbone):
    images, labels = data
    method = attached(name, backbone)
    method.begin(FitData(images[:, None], labels, texts, 1))
    method.choose(texts)
    optimizer = torch.optim.SGD(method.parameter_groups(), lr=0.1)
    frozen = {key: tensor.clone() for key, tensor in method.named_buffers()}
    grouped = [parameter for group in method.parameter_groups() for parameter in group["params"]]
    assert sorted(map(id, grouped)) == sorted(
        id(parameter) for parameter in method.parameters() if parameter.requires_grad
    )
    for _ in range(3):  # a layer behind one that starts at zero is reached once that has moved
        optimizer.zero_grad()
        terms = method.loss({"images": images, "labels": labels})
        assert isinstance(terms, dict) and all(
            term.shape == () and term.isfinite() for term in terms.values()
        )
        sum(terms.values()).backward()
        optimizer.step()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, key
    assert all(torch.equal(frozen[key], tensor) for key, tensor in method.named_buffers())


def test_an_ensemble_of_one_sentence_is_zero_shot(data, backbone):
    texts = class_texts(
        backbone.encode_text, NAMES, sentences={name: (f"a photo of a {name}.",) for name in NAMES}
    )
    mean, single = (fit_anew(name, data, texts, backbone) for name in ("sentence_mean", "zero_shot"))
    assert torch.allclose(predict_logits(mean, data[0]), predict_logits(single, data[0]), atol=1e-5)
    assert torch.equal(predict_logits(mean, data[0]).argmax(1), predict_logits(single, data[0]).argmax(1))
