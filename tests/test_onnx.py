"""A run as one ONNX graph: it says what the run says, without torch, or is not written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from standins import COLOURS, paint

import wordsight
from wordsight.backbones.pixels import Preprocess
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.digests import file_digest
from wordsight.onnx import DIGEST, FACTS, KEY, Graph
from wordsight.onnx.exporting import SHAPES, export_graph
from wordsight.onnx.pixels import pixels_of, recipe_of
from wordsight.onnx.predicting import predict as by_graph
from wordsight.prediction import predict


@pytest.fixture(scope="module")
def run(photos, tiny_clip, tmp_path_factory):
    words = {"data": str(photos), "backbone": str(tiny_clip), "method": "aape", "folds": 2}
    out = str(tmp_path_factory.mktemp("runs") / "run")
    return wordsight.fit(**words, shots=4, references=False, out=out).folder


@pytest.fixture(scope="module")
def graph(run, tmp_path_factory):
    return export_graph(run, tmp_path_factory.mktemp("graphs") / "graph")


@pytest.fixture
def images(tmp_path):
    """Sixteen and more, so that they are no one batch; one is damaged, one is of no class."""
    for index in range(19):
        name = list(COLOURS)[index % 5]
        paint(COLOURS[name], index).resize((20 + index, 31)).save(tmp_path / f"{index:02}.png")
    (tmp_path / "19.png").write_bytes(b"no image")
    return sorted(map(str, tmp_path.glob("*.png")))


@pytest.mark.slow
def test_the_graph_says_what_the_run_says(run, graph, images, capsys):
    ours, theirs = predict(run, images, error=0.2), by_graph(graph, images, error=0.2)
    said, told = list(ours), list(theirs)
    assert [one.image for one in told] == [one.image for one in said] == images[:19]
    for one, other in zip(told, said):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        assert (one.among, one.unsure, one.unlike) == (other.among, other.unsure, other.unlike)
    assert theirs.skipped == ours.skipped and theirs.class_names == ours.class_names
    assert {True, False} >= {one.unlike for one in told} and theirs.lowest == pytest.approx(ours.lowest)
    capsys.readouterr()
    words = [str(graph / "model.onnx"), *images[:2], "--top", "3", "--unsure", "0.9", "--json"]
    assert main(["predict", *words]) == 0
    shown = json.loads(capsys.readouterr().out)["predictions"]
    by_run = predict(run, images[:2], unsure=0.9)
    for entry, other in zip(shown, [by_run.entry(one, 3) for one in by_run]):
        assert entry.keys() == other.keys() and entry["unsure"] == other["unsure"]
        assert [one["class"] for one in entry["classes"]] == [one["class"] for one in other["classes"]]
    (first,) = wordsight.predict(graph, images[:1])
    assert first.probabilities == pytest.approx(told[0].probabilities)


@pytest.mark.slow
def test_the_folder_says_what_the_numbers_mean(graph, run):
    facts = json.loads((graph / FACTS).read_text())
    assert facts.pop(DIGEST) == file_digest(graph / "model.onnx")
    model = onnx.load(str(graph / "model.onnx"))
    assert {one.key: json.loads(one.value) for one in model.metadata_props}[KEY] == facts
    assert facts["class_names"] == ["blue", "green", "red"] and facts["method"] == "aape"
    crop = {"height": 8, "width": 8}
    assert facts["pixels"] == {"resize": {"shortest_edge": 8}, "resample": 3, "crop": crop}
    assert facts["checked"]["largest_difference"] < 1e-4 and len(facts["chances"]) == 12
    card = (graph / "README.md").read_text()
    assert "uint8 [batch, 3, 8, 8]" in card and "wordsight predict graph image.jpg" in card
    assert "in their order: blue, green, red\n" in card and "--classes" not in card and "## Figures" in card
    assert str(run.parent) not in card + (graph / FACTS).read_text()
    opened_graph = Graph(graph)
    assert opened_graph.outputs == ["probabilities", "logits", "embedding", "distance"]
    found = opened_graph(np.zeros((3, 3, 8, 8), np.uint8))
    assert found["embedding"].shape == (3, 12) and found["distance"].shape == (3,)
    assert np.linalg.norm(found["embedding"], axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_eight_bits_say_what_they_change(run, images, tmp_path_factory, capsys):
    folder, out = str(Path(images[0]).parent), tmp_path_factory.mktemp("eight")
    for kind in ("weights", "all"):
        words = ["--onnx", "--int8", kind, "--images", folder]
        assert main(["export", str(run), str(out / kind), *words]) == 0
        lost = json.loads((out / kind / FACTS).read_text())["eight_bits"]
        assert lost["kind"] == kind and lost["images"] == 19 and 0 < lost["largest_difference"] < 0.2
        ours = np.stack([one.probabilities for one in predict(run, images)])
        theirs = np.stack([one.probabilities for one in by_graph(out / kind, images)])
        assert np.abs(ours - theirs).max() == pytest.approx(lost["largest_difference"], abs=1e-4)
        card = (out / kind / "README.md").read_text()
        assert f"8 bits ({kind}): on 19 images the same class as torch" in card
    assert "quantiz" not in capsys.readouterr().err
    marked = {kind: next(iter(by_graph(out / kind, images))).unlike for kind in ("weights", "all")}
    assert marked["all"] is None is not marked["weights"]
    with pytest.raises(WordsightError, match="measured in float32, and this graph computes in 8 bits"):
        by_graph(out / "all", images, error=0.1)


@pytest.mark.slow
def test_without_torch(graph, images):
    code = (
        "import sys; from wordsight.cli import main; code = main(sys.argv[1:]); "
        "print([one for one in ('torch', 'transformers', 'sklearn') if one in sys.modules]); sys.exit(code)"
    )
    words = [sys.executable, "-c", code, "predict", str(graph), images[0]]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]" and images[0] in answer.stdout


@pytest.mark.slow
def test_other_classes_by_name_are_in_the_graph(run, tmp_path, images):
    out = export_graph(run, tmp_path / "out", classes="yellow,red")
    assert Graph(out).facts.class_names == ("yellow", "red") and "distance" not in Graph(out).outputs
    for one, other in zip(by_graph(out, images), predict(run, images, classes="yellow,red")):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4) and one.unlike is None
    card = (out / "README.md").read_text()
    assert "in their order: yellow, red\n" in card and "Figures" not in card and "results" not in card


@pytest.mark.slow
def test_what_a_graph_cannot_do_is_said(run, graph, images, tmp_path, monkeypatch, capsys):
    def said(*words):
        assert main([*map(str, words)]) == 2
        return capsys.readouterr().err

    assert "--classes is not possible" in said("predict", graph, images[0], "--classes", "a,b")
    assert "shows no sentences" in said("predict", graph, images[0], "--explain")
    assert "give --onnx too" in said("export", run, tmp_path / "no", "--int8", "all")
    assert "already holds something" in said("export", run, graph, "--onnx")
    model = onnx.load(str(graph / "model.onnx"))
    model.opset_import[0].version = 99
    onnx.save(model, str(tmp_path / "later.onnx"))
    assert "it is of a later opset than that knows" in said("predict", tmp_path / "later.onnx", images[0])
    bare = onnx.load(str(graph / "model.onnx"))
    del bare.metadata_props[:]
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    assert "is no graph of `wordsight export --onnx`" in said("predict", tmp_path / "bare.onnx", images[0])
    (tmp_path / "broken.onnx").write_bytes((graph / "model.onnx").read_bytes()[:500])
    assert "cannot be opened by onnxruntime" in said("predict", tmp_path / "broken.onnx", images[0])
    assert "does not exist" in said("predict", tmp_path / "none.onnx", images[0])
    monkeypatch.setattr("wordsight.onnx.exporting.CLOSE", 0.0)
    assert "this run is not exported" in said(
        "export", run, tmp_path / "far", "--onnx", "--images", images[0]
    )
    assert not list(tmp_path.glob("*far*"))


def small_graph(path, *, taken="pixels", kind=onnx.TensorProto.UINT8, facts=None):
    """Its scores are the means of the colours."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("Cast", [taken], ["numbers"], to=onnx.TensorProto.FLOAT),
        node("GlobalAveragePool", ["numbers"], ["means"]),
        node("Flatten", ["means"], ["logits"]),
    ]
    sides = [value(taken, kind, ["batch", 3, 4, 4])], [value("logits", onnx.TensorProto.FLOAT, ["batch", 3])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "small", *sides), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    known = {"class_names": ["red", "green", "blue"], "pixels": {}, "format": 1}
    onnx.helper.set_model_props(model, {KEY: json.dumps(known | (facts or {}))})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"facts": {"class_names": ["red", "green"]}}, "it scores 3 classes and names 2"),
        ({"facts": {"far": 1.0}}, "does not fit its own metadata.*its outputs are logits"),
        ({"facts": {"far": "x"}}, "what .*small.onnx says of itself is damaged: far='x' is not a number"),
        ({"taken": "x"}, "is no graph of `wordsight export --onnx`: it takes x"),
        ({"kind": onnx.TensorProto.FLOAT}, "it takes pixels, and not pixels of uint8"),
    ],
)
def test_a_graph_that_does_not_fit_its_metadata_is_refused(changed, says, tmp_path):
    with pytest.raises(WordsightError, match=says):
        Graph(small_graph(tmp_path / "small.onnx", **changed))


def test_pixels_that_a_graph_cannot_take_are_refused(tmp_path):
    graph = Graph(small_graph(tmp_path / "small.onnx"))
    assert graph(np.full((2, 3, 4, 4), 7, np.uint8))["logits"].tolist() == [[7, 7, 7]] * 2
    with pytest.raises(WordsightError, match=r"takes pixels of \[3, 4, 4\], but its metadata make"):
        graph(np.zeros((1, 3, 8, 4), np.uint8))


def test_an_image_that_is_too_large_for_the_run_is_too_large_for_its_graph(tmp_path):
    pixels = {"resize": {"height": 4, "width": 4}, "resample": 0, "crop": None}
    facts = {"max_pixels": 100, "pixels": pixels}
    graph = small_graph(tmp_path / "small.onnx", facts=facts)
    given = [Image.new("RGB", (10, 10), "red"), Image.new("RGB", (11, 10))]
    answers = by_graph(graph, given)
    assert len(list(answers)) == 1 and "max_pixels=100" in answers.skipped[0]["reason"]
    assert len(list(by_graph(graph, given, max_pixels=200))) == 2


def test_a_graph_whose_content_changed_is_refused(tmp_path):
    """A flipped bit of a weight is a weight, too; without what lies beside it nobody can tell."""
    path = tmp_path / "model.onnx"
    small_graph(path)
    (tmp_path / FACTS).write_text(json.dumps({DIGEST: file_digest(path)}))
    assert Graph(path).outputs
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WordsightError, match="is damaged: its content is not what was written"):
        Graph(tmp_path)


def test_a_graph_in_place_of_a_run_is_named(tmp_path, capsys):
    graph = small_graph(tmp_path / "model.onnx")
    for given in (graph, tmp_path):
        assert main(["eval", str(given)]) == 2
        assert "is an ONNX graph, which predicts alone" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_without_its_images_needs_others(photos, tiny_clip, tmp_path, images):
    data = shutil.copytree(photos, tmp_path / "own")
    words = {"backbone": str(tiny_clip), "method": "zero_shot", "device": "cpu", "references": False}
    run = wordsight.fit(**words, data=str(data), shots=2, out=str(tmp_path / "run")).folder
    shutil.rmtree(data)
    with pytest.raises(WordsightError, match=r"own cannot be read.*give --images"):
        export_graph(run, tmp_path / "out")
    assert export_graph(run, tmp_path / "out", images=images).is_dir()
    with pytest.raises(WordsightError, match="none of the images"):
        export_graph(run, tmp_path / "two", images=images[-1:])


def test_pixels_are_those_of_transformers():
    """Of every form of resizing that a recipe has."""
    shared = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3}
    shared |= {"image_std": [0.5] * 3, "do_resize": True, "resample": 3}
    cropped = {"size": {"shortest_edge": 9}, "crop_size": {"height": 8, "width": 8}}
    stretched = {"size": {"height": 7, "width": 9}, "resample": 2}
    for kind, values in {"CLIP": cropped, "ViT": stretched}.items():
        transform = Preprocess.from_pretrained(
            {"image_processor_type": f"{kind}ImageProcessor", **shared, **values}
        )
        recipe = recipe_of(transform.to_dict())
        for shape in SHAPES:
            image = Image.effect_noise(shape, 90).convert("RGB")
            assert (pixels_of(image, recipe) == transform(image).numpy()).all()
    with pytest.raises(WordsightError, match="longest_edge"):
        recipe_of({"size": {"longest_edge": 3}})
