"""join: the linear map between an image encoder and a text encoder, fitted in closed form, in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from wordsight.backbones import pick_device, tell_truncated, unit
from wordsight.backbones.joined import FORMAT, Joined, encode_texts, read_text_encoder
from wordsight.backbones.vision import ImageTower, image_source
from wordsight.config import WordsightError
from wordsight.files import free, read_json, read_text
from wordsight.settings import JoinSettings

BATCH = 32
SAMPLE = 2000  # targets among which the temperature is measured, at most


@torch.no_grad()
def join(
    settings: JoinSettings,
    images: Iterable[Image.Image] | None = None,
    pairs: Iterable[tuple[Image.Image, Sequence[str]]] | None = None,
) -> Joined:
    """Join an image encoder and a text encoder, write the folder `settings.out`, and return the backbone.

    On names (a): sentences of the class names of the image encoder's classification head are mapped to the
    head's rows, centred and scaled to length one; `images` give the mean that centres image vectors (none:
    zero). On pairs (b): captions are mapped to the vectors of their images, centred by the mean over
    `images`, or over the pairs' own.

    logit_scale is ours, no paper's: the temperature under which each left-out sentence (or caption) best
    picks its target among all targets."""
    _check_settings(settings, images, pairs)
    device = pick_device(settings.device)
    vision, head, own_names = image_source(settings.vision, settings.pooling, settings.preprocessor)
    text = read_text_encoder(settings.text, settings.text_pooling)
    for tower in (vision, text):
        # transformers' stub wraps `to` and loses `self`
        tower.model.eval().to(device)  # pyright: ignore[reportArgumentType]
    image_mean = _mean(vision, images)
    if pairs is not None:
        targets, captions, image_mean, group = _from_pairs(vision, pairs, image_mean)
        on = f"{len(captions)} captions of {len(targets)} images"
    else:
        targets, names = _from_head(settings, vision, head, own_names)
        captions, group = [settings.template.format(name) for name in names], torch.arange(len(names))
        on = f"{len(names)} class names"
    truncated = [length > text.max_tokens for length in text.lengths(captions)]
    tell_truncated(truncated, text.max_tokens, settings.text)
    texts = encode_texts(text, captions).cpu()
    wanted = targets[group]
    text_mean, matrix = ridge(texts, wanted, settings.ridge)
    scale, accuracy = temperature(leave_one_out(texts, wanted, settings.ridge, group), targets, group)
    fitted = {
        "vision": settings.vision,
        "text": settings.text,
        "on": on,
        "ridge": settings.ridge,
        "left_out_top1": round(100 * accuracy, 2),
    }
    facts = {
        "kind": "joined",
        "format": FORMAT,
        "logit_scale": round(scale, 4),
        "pooling": vision.pooling,
        "text_pooling": text.pooling,
        "max_tokens": text.max_tokens,
        "fitted": fitted if pairs is not None else fitted | {"template": settings.template},
    }
    tensors = {
        "image_mean": torch.zeros(targets.shape[1]) if image_mean is None else image_mean,
        "text_mean": text_mean,
        "text_to_shared": matrix,
    }
    joined = Joined(vision, text, tensors, facts, name=settings.out, device=device, dtype="float32")
    joined.save_pretrained(settings.out)
    return joined


def ridge(
    texts: Float[Tensor, "N W"], targets: Float[Tensor, "N D"], lam: float
) -> tuple[Float[Tensor, " W"], Float[Tensor, "W D"]]:
    """The mean of `texts`, and the M that makes |(texts - mean) M - targets|^2 + lam |M|^2 smallest. Solved
    in float64.
    """
    mean = texts.double().mean(0)
    centred = texts.double() - mean
    matrix = torch.linalg.solve(_gram(centred, lam), centred.T @ targets.double())
    return mean.to(texts.dtype), matrix.to(texts.dtype)


def leave_one_out(
    texts: Float[Tensor, "N W"], targets: Float[Tensor, "N D"], lam: float, group: Int[Tensor, " N"]
) -> Float[Tensor, "N D"]:
    """What `ridge` would predict for each text had it not seen the texts of the same group, without refitting
    (the mean stays).

    With H the hat matrix and b the rows of a group: y_b - (I - H_bb)^-1 (y_b - (H y)_b).
    """
    centred, wanted = texts.double() - texts.double().mean(0), targets.double()
    weights = torch.linalg.solve(
        _gram(centred, lam), centred.T
    ).T  # H = weights @ centred.T, of which only the blocks are needed
    rest = wanted - weights @ (centred.T @ wanted)
    order, sizes = group.argsort(stable=True), group.bincount()
    predicted = torch.empty_like(wanted)
    for rows in order.split(sizes[sizes > 0].tolist()):
        block = torch.eye(len(rows), dtype=torch.float64) - weights[rows] @ centred[rows].T
        predicted[rows] = wanted[rows] - torch.linalg.solve(block, rest[rows])
    return predicted.to(texts.dtype)


def temperature(
    predicted: Float[Tensor, "N D"], targets: Float[Tensor, "T D"], labels: Int[Tensor, " N"]
) -> tuple[float, float]:
    """The scale of most likelihood for softmax(scale * cosine) to pick each row's target among all, by golden
    section, and the top-1 share.
    """
    step = max(1, math.ceil(len(targets) / SAMPLE))
    kept = labels % step == 0
    cosine, labels = unit(predicted[kept]) @ unit(targets[::step]).T, labels[kept] // step

    def loss(log_scale: float) -> float:
        return torch.nn.functional.cross_entropy(math.exp(log_scale) * cosine, labels).item()

    low, high, golden = 0.0, math.log(200.0), (math.sqrt(5) - 1) / 2
    while high - low > 1e-3:  # the loss is convex in the scale, so it has one valley
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2), (cosine.argmax(1) == labels).float().mean().item()


def _gram(centred: Float[Tensor, "N W"], lam: float) -> Float[Tensor, "W W"]:
    return centred.T @ centred + lam * torch.eye(centred.shape[1], dtype=centred.dtype)


def _check_settings(settings: JoinSettings, images: object, pairs: object) -> None:
    for key, given in (("images", images), ("captions", pairs)):
        if getattr(settings, key) is not None and given is None:
            raise WordsightError(
                f"{key}={getattr(settings, key)!r} was set, but join was not given what it holds; "
                f"`wordsight join` reads it"
            )
    if pairs is not None and settings.names is not None:
        raise WordsightError(
            f"names={settings.names!r} and captions were both given; the map is fitted on one of them"
        )
    free(settings.out)


def _mean(vision: ImageTower, images: Iterable[Image.Image] | None) -> Float[Tensor, " D"] | None:
    if images is None:
        return None
    vectors = _encode_images(vision, images)
    if not len(vectors):
        raise WordsightError("there are no images to take the mean vector of")
    return vectors.mean(0)


def _from_head(
    settings: JoinSettings, vision: ImageTower, head: Tensor | None, own: list[str] | None
) -> tuple[Float[Tensor, "C D"], list[str]]:
    """Unit targets of the classes, and their names."""
    if head is None:
        raise WordsightError(
            f"the image encoder {settings.vision!r} has no classification head to fit on; give "
            f"image-caption pairs (captions=...)"
        )
    names = own if settings.names is None else _read_names(Path(settings.names))
    if names is None:
        raise WordsightError(
            f"the class names of the head of {settings.vision!r} are not known; give names=FILE, one a "
            f"line, in the head's order"
        )
    if len(names) != len(head):
        raise WordsightError(
            f"{settings.names or settings.vision!r} gives {len(names)} class names, but the head of "
            f"{settings.vision!r} has {len(head)} rows"
        )
    if head.shape[1] != vision.width(settings.vision):
        raise WordsightError(
            f"the head of {settings.vision!r} reads vectors of width {head.shape[1]}, but "
            f"pooling={vision.pooling} gives {vision.width(settings.vision)}; "
            "choose another pooling, or give image-caption pairs (captions=...)"
        )
    return unit(head.float() - head.float().mean(0)), names


def _from_pairs(vision: ImageTower, pairs: Iterable[tuple[Image.Image, Sequence[str]]], mean: Tensor | None):
    """Unit targets of the images, all captions, the image mean, and of which image each caption is."""
    captions: list[str] = []
    group: list[int] = []

    def images() -> Iterator[Image.Image]:
        for row, (image, words) in enumerate(pairs):
            if isinstance(words, str) or not words:
                raise WordsightError(f"pair {row} has {words!r} where a list of captions is expected")
            captions.extend(words)
            group.extend([row] * len(words))
            yield image

    vectors = _encode_images(vision, images())
    if len(vectors) < 2:
        raise WordsightError(
            f"{len(vectors)} image-caption pairs are too few to fit a map; hundreds are a start"
        )
    mean = vectors.mean(0) if mean is None else mean
    return unit(vectors - mean), captions, mean, torch.tensor(group)


@torch.no_grad()
def _encode_images(vision: ImageTower, images: Iterable[Image.Image]) -> Float[Tensor, "N D"]:
    vectors, batch = [], []

    def flush() -> None:
        if batch:
            vectors.append(vision(torch.stack(batch)).cpu())
            batch.clear()

    for image in images:
        batch.append(vision.transform(image))
        if len(batch) == BATCH:
            flush()
    flush()
    return torch.cat(vectors) if vectors else torch.empty(0, 0)


def _read_names(file: Path) -> list[str]:
    file = file.expanduser()
    if file.suffix != ".json":
        return [line.strip() for line in read_text(file, "names=").splitlines() if line.strip()]
    found = read_json(file, "names=")
    names = found.get("classes") if isinstance(found, dict) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WordsightError(f"{file} holds neither a list of class names nor one under 'classes'")
    return names
