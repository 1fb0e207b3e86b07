"""Exporting: a run's image tower and its head as one ONNX graph, compared with torch before it is there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from wordsight.backbones.hub import run_folder
from wordsight.config import WordsightError
from wordsight.data import Picture, open_dataset
from wordsight.data.account import Account
from wordsight.data.pictures import pictures_in, readable
from wordsight.digests import file_digest
from wordsight.doubts import NONE, Doubts
from wordsight.early import GRAPH
from wordsight.export import licences_of
from wordsight.extras import needed
from wordsight.files import new_folder, write_file
from wordsight.fitted import Fitted, is_asking, is_captioner, is_embedder, open_backbone, open_by_names
from wordsight.model_card import CARD, LISTED, public, write_card
from wordsight.names import class_list
from wordsight.onnx import DIGEST, FACTS, KEY, Facts, opened
from wordsight.onnx.eight_bits import check_kind, compared, eight_bits
from wordsight.onnx.pixels import pixels_of, recipe_of
from wordsight.runs import NO_BACKBONE, Run

OPSET = 18  # onnxruntime 1.14 and later, and its web form, know it
LOOKED_AT = 32  # images that a graph is compared on, 8 times as many where it is made of 8 bits
CLOSE = 1e-4  # how far a probability may be from torch's
SHAPES = ((37, 50), (50, 37), (300, 231), (500, 333))  # of test images for the recipe


class Samples(NamedTuple):
    """Images that a graph is compared on, as the tower's pixels."""

    pixels: UInt8[np.ndarray, "n 3 H W"]
    recipe: dict[str, Any]


class Traced(nn.Module):
    """From pixels to probabilities; what becomes the graph."""

    means: Tensor | None

    def __init__(self, fitted: Fitted, doubts: Doubts):
        super().__init__()
        self.fitted = (fitted,)  # apart, so that its towers are not this module's parameters twice
        self.method = fitted.method
        means = None if doubts.means is None else torch.from_numpy(doubts.means)
        self.register_buffer("means", means)

    @property
    def outputs(self) -> list[str]:
        return ["probabilities", "logits", "embedding", *(["distance"] if self.means is not None else [])]

    def forward(self, pixels: UInt8[Tensor, "B 3 H W"]) -> tuple[Tensor, ...]:
        backbone = self.fitted[0].backbone
        assert backbone is not None  # `fitted_of` refuses runs without one
        vectors = backbone.encode_image(pixels)
        logits = self.method.traced(vectors).float()
        found = (logits.softmax(1), logits, vectors)
        return found if self.means is None else (*found, nearest(vectors, self.means))


def nearest(vectors: Float[Tensor, "B D"], means: Float[Tensor, "C D"]) -> Float[Tensor, " B"]:
    """As doubts.unlike.distances."""
    squares = vectors.square().sum(1)[:, None] + means.square().sum(1)
    return (squares - 2 * vectors @ means.T).min(1).values


def export_graph(
    run: str | Path,
    out: str | Path,
    *,
    classes: str | Sequence[str] | None = None,
    images: Sequence[Any] = (),
    int8: str | None = None,
    backbone: str | None = None,
) -> Path:
    """Write a run's image tower and head as one ONNX graph into the new folder `out`: uint8 pixels
    [B, 3, H, W] in, probabilities, logits and image vectors out, and how far an image is from the training
    images. `wordsight predict out image.jpg` needs no torch.

    `classes` are other ones, by name. The graph is compared with torch on `images`, or on the run's own
    where its data still lies there: no probability may be further than 1e-4 from torch's. `int8`: "weights"
    keeps the weights alone as 8 bits, "all" computes in 8 bits, too; what that changes on these images
    stands in the card.

    Errors: WordsightError for a run that has no such graph, and where the graph gives something else than
    torch; nothing is left of `out` then."""
    check_kind(int8)
    with needed("onnx", "export --onnx"):
        import onnx
        import onnxruntime  # noqa: F401
    there = Run.open(run_folder(run))
    fitted, doubts = fitted_of(there, classes, backbone)
    doubts = NONE if int8 == "all" else doubts  # which were measured with float32's vectors and scores
    samples = _samples(there, fitted, images, LOOKED_AT * (8 if int8 else 1))
    facts = Facts(
        fitted.texts.names,
        samples.recipe,
        there.settings.method,
        public(there.settings.backbone) or "",
        fitted.facts.template,
        OPSET,
        far=doubts.far if doubts.distances is not None else None,
        chances=() if doubts.chances is None else tuple(doubts.chances.tolist()),
        chances_of=doubts.by,
        max_pixels=there.settings.max_pixels,
    )
    with new_folder(out) as folder:
        path, traced = folder / GRAPH, Traced(fitted, doubts)
        _write(traced, samples.pixels[:2], path)
        checked = _checked(traced, path, samples.pixels[:LOOKED_AT])
        facts = replace(facts, checked=checked)
        if int8:
            eight_bits(path, int8)
            facts = replace(facts, eight_bits={"kind": int8, **compared(traced, path, samples.pixels)})
        model = onnx.load(str(path))
        onnx.helper.set_model_props(model, {KEY: facts.to_json()})
        write_file(path, model.SerializeToString())
        write_file(folder / FACTS, facts.to_json(**{DIGEST: file_digest(path)}) + "\n")
        assert fitted.backbone is not None
        parts, name = licences_of(fitted.backbone.parts, folder, there.folder), Path(out).name
        body, names = _body(there, facts, name, path.stat().st_size), facts.class_names
        write_file(folder / CARD, write_card(there, folder, name, parts, None, body, names))
    return Path(out).expanduser()


def fitted_of(run: Run, classes: str | Sequence[str] | None, backbone: str | None) -> tuple[Fitted, Doubts]:
    """The run's method over these classes, on the CPU, and what it knows of its doubts. Errors:
    WordsightError for what has no graph."""
    settings, own = run.settings, run.facts.classes
    if is_asking(run) or is_captioner(run):
        raise WordsightError(f"{run.folder} is a {settings.method}, which writes; a graph holds a classifier")
    if settings.backbone == NO_BACKBONE:
        raise WordsightError(f"{run.folder} was fitted on feature matrices and has no image tower to export")
    if settings.dtype != "float32":
        raise WordsightError(
            f"{run.folder} computes in {settings.dtype}, which onnxruntime has no image towers for on a CPU; "
            f"fit it with dtype=float32"
        )
    names = class_list(classes, own) if classes else list(own)
    if is_embedder(run):
        fitted = open_by_names(run, names, backbone)
    else:
        fitted = Fitted.open(run, open_backbone(run, backbone, device="cpu"))
    fitted = fitted if tuple(names) == fitted.texts.names else fitted.with_classes(names)
    return fitted, Doubts.read(run.folder).over(own, names)


# -- images --------------------------------------------------------------------------------------------------


def _samples(run: Run, fitted: Fitted, images: Sequence[Any], most: int) -> Samples:
    """Pixels of real images, made by the graph's own recipe once it is seen to be the backbone's. Errors:
    WordsightError where there are no images, or no recipe."""
    backbone = fitted.backbone
    assert backbone is not None
    read, _ = readable(_spread(list(_pictures(run, images)), most))
    if not read:
        raise WordsightError("none of the images that a graph is to be compared on can be read; give others")
    try:
        recipe = recipe_of(backbone.recipe)
    except WordsightError as error:
        raise WordsightError(
            f"backbone {backbone.name!r} has no recipe for its pixels that works without torch: {error}"
        ) from error
    for image in [*_drawn(), *list(read.values())[:LOOKED_AT]]:
        if not np.array_equal(pixels_of(image, recipe), backbone.preprocess(image).numpy()):
            raise WordsightError(
                f"backbone {backbone.name!r} makes other pixels than resizing and cropping give, so a graph "
                f"of it would be fed with something else"
            )
    return Samples(np.stack([pixels_of(image, recipe) for image in read.values()]), recipe)


def _pictures(run: Run, images: Sequence[Any]) -> Sequence[Picture]:
    if images:
        return list(pictures_in(images, Account()))
    try:
        data = open_dataset(run.settings.data, run.settings.label)
    except WordsightError as error:
        raise WordsightError(
            f"a graph is compared with torch on real images, and the run's own cannot be read ({error}); "
            f"give --images FOLDER"
        ) from error
    parts = (data.test, data.val, data.train)
    return next(list(part.pictures) for part in parts if part is not None and len(part))


def _spread(pictures: list[Picture], most: int) -> list[Picture]:
    """So many at most, evenly over all."""
    step = max(1, len(pictures) // most)
    return pictures[::step][:most]


def _drawn() -> list[Image.Image]:
    """Gradients of several shapes, in three colours that differ."""
    grey = Image.linear_gradient("L")
    turned = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    return [turned.resize(shape) for shape in SHAPES]


# -- the graph -----------------------------------------------------------------------------------------------


def _write(traced: Traced, pixels: UInt8[np.ndarray, "n 3 H W"], path: Path) -> None:
    """By tracing: the graph is the same as torch.export's, and there in a tenth of its time."""
    names = traced.outputs
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is what `_checked` looks for
            torch.onnx.export(
                traced.eval(),
                (torch.from_numpy(pixels),),
                str(path),
                input_names=["pixels"],
                output_names=names,
                dynamic_axes={name: {0: "batch"} for name in ("pixels", *names)},
                opset_version=OPSET,
                dynamo=False,
            )
    except WordsightError:
        raise
    except Exception as error:  # whatever a tower or method of somebody else's raises when it is traced
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WordsightError(f"this run cannot be written as an ONNX graph: {why[:300]}") from error


def _checked(traced: Traced, path: Path, pixels: UInt8[np.ndarray, "n 3 H W"]) -> dict[str, Any]:
    """Errors: WordsightError where the graph says something else than torch, in batches of any size."""
    session = opened(path)
    with torch.no_grad():
        expected = [output.numpy() for output in traced(torch.from_numpy(pixels))]
    whole = session.run(traced.outputs, {"pixels": pixels})
    single = [session.run(traced.outputs, {"pixels": pixels[row : row + 1]}) for row in range(len(pixels))]
    apart = [np.concatenate(rows) for rows in zip(*single)]
    far = max(float(np.abs(found[0] - expected[0]).max()) for found in (whole, apart))
    off = max(float(np.abs(found[2] - expected[2]).max()) for found in (whole, apart))
    if not max(far, off) <= CLOSE:
        raise WordsightError(
            f"the graph gives probabilities {far:.2g} and vectors {off:.2g} from torch's, where {CLOSE:g} is "
            f"allowed; this run is not exported"
        )
    return {"images": len(pixels), "largest_difference": far, "of_vectors": off}


# -- the card ------------------------------------------------------------------------------------------------


def _body(run: Run, facts: Facts, name: str, size: int) -> str:
    """What a model card says of the graph."""
    side = facts.pixels["crop"] or facts.pixels["resize"]
    classes, lost = len(facts.class_names), facts.eight_bits
    more = f" and {classes - LISTED} more (`wordsight.json`)" if classes > LISTED else ""
    distance = ", `distance` [batch] from the training images" if facts.far is not None else ""
    loss = (
        f"8 bits ({lost['kind']}): on {lost['images']} images the same class as torch in "
        f"{100 * lost['agreement']:.1f} %, probabilities {lost['mean_difference']:.3g} apart on the mean and "
        f"{lost['largest_difference']:.3g} at most.\n"
        if lost
        else ""
    )
    return (
        f"# {name}\n\nAn image classifier taught by words (method `{facts.method}`, "
        f"{public(run.settings.data)}), as one ONNX graph of opset {facts.opset}, {size / 1e6:.1f} MB: image "
        f"tower and head.\n\n"
        f"- in: `pixels`, uint8 [batch, 3, {side['height']}, {side['width']}]: RGB, upright, then "
        f"`{_said(facts.pixels)}` of PIL (`wordsight.json`); mean and deviation are applied inside\n"
        f"- out: `probabilities` and `logits` [batch, {classes}], `embedding` [batch, D]{distance}\n"
        f"- classes, in their order: {', '.join(facts.class_names[:LISTED])}{more}\n\n"
        f"```\npip install onnxruntime wordsight\nwordsight predict {name} image.jpg\n```\n\n"
        f"Compared with torch on {facts.checked['images']} images: probabilities "
        f"{facts.checked['largest_difference']:.1e} apart at most{', before' * bool(lost)}.\n{loss}"
    )


def _said(recipe: dict[str, Any]) -> str:
    return ", ".join(f"{step} {value}" for step, value in recipe.items() if value)
