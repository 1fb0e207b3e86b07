"""Joined: any image encoder and any text encoder made one backbone by a linear map that is fitted in closed
form, in seconds.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from wordsight.backbones import OWN_FILE, Backbone, TokenReader, fingerprint, pick_device, unit
from wordsight.backbones.clip import (
    DTYPES,
    TOKENIZER_FILES,
    TOKENS_PER_BATCH,
    _quiet,
    _reading,
    _shape,
    _tokenizer_facts,
)
from wordsight.backbones.encoders import encoder_config, load_encoder, width_of
from wordsight.backbones.hub import free, local, read_json
from wordsight.backbones.images import FILE as PREPROCESSOR_FILE
from wordsight.backbones.vision import ImageTower, image_source, image_tower
from wordsight.config import WordsightError

FORMAT = 1
MAP_FILE = "map.safetensors"
MAP_NAMES = ("image_mean", "text_mean", "text_to_shared")
# where the text encoder does not say: sentences about classes are shorter, and a longer cap costs only memory
MAX_TOKENS = 256
BATCH = 32
SAMPLE = 2000  # targets among which the temperature is measured, at most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JoinSettings:
    """What `join` needs to know. Fitted on class names where the image encoder has a classification head, or
    on image-caption pairs.
    """

    vision: str  # folder or hub name of an image encoder, or a safetensors file of a ViT with timm's names
    text: str  # folder or hub name of a text encoder
    out: str  # the folder to write
    names: str | None = (
        # class names in the head's order: a text file (one a line) or JSON; by default those in the encoder's
        # config.json
        None
    )
    template: str = "a photo of a {}."  # the sentence that stands for a class name
    images: str | None = (
        None  # folder or manifest of images whose mean vector centres image vectors; read by the caller
    )
    captions: str | None = None  # CSV of images and captions, instead of names; read by the caller
    ridge: float = 3.0  # lambda: how strongly the map is pulled to zero
    pooling: Literal["auto", "cls", "mean", "pooler"] = (
        "auto"  # what of the image encoder's output is the image's vector
    )
    text_pooling: Literal["auto", "mean", "cls", "last"] = (
        "auto"  # auto: as 1_Pooling/config.json of sentence-transformers says, or mean
    )
    preprocessor: str | None = None  # a preprocessor_config.json to use instead of the image encoder's own
    device: str = "auto"


class TextTower(NamedTuple):
    """A text encoder with its tokenizer; its vector is pooled over the tokens and scaled to length one."""

    model: PreTrainedModel
    tokenizer: Any
    pooling: str
    max_tokens: int

    def __call__(self, texts: list[str]) -> Float[Tensor, "B W"]:
        return self.pooled(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return {key: value.to(self.model.device) for key, value in tokens.items()}

    def pooled(self, tokens: dict[str, Tensor]) -> Float[Tensor, "B W"]:
        states = self.model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"]
        if self.pooling == "cls":
            return unit(states[:, 0])
        if self.pooling == "last":
            return unit(states[torch.arange(len(states), device=mask.device), mask.sum(1) - 1])
        return unit((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    def lengths(self, texts: list[str]) -> list[int]:
        ids = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        known, highest = (
            self.model.get_input_embeddings().num_embeddings,
            max((max(row, default=0) for row in ids), default=0),
        )
        if highest >= known:
            raise WordsightError(
                f"the tokenizer gives token {highest}, but the text encoder knows only {known}: they do "
                f"not belong together"
            )
        return [len(row) for row in ids]

    def width(self, name: str) -> int:
        return width_of(self, ["a"], name)


class Joined(Backbone, TokenReader):
    """Two frozen encoders that were never trained together, in one space.

    The space is the image encoder's, centred: image = unit(vision(x) - image_mean), text = unit((text(t) -
    text_mean) @ text_to_shared). Made by `join`; kept as a folder that needs nothing outside it."""

    def __init__(
        self,
        vision: ImageTower,
        text: TextTower,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        *,
        name: str,
        device: torch.device,
        dtype: str,
    ):
        self.name = name
        self.device = device
        self.dtype = DTYPES[dtype]
        self.vision = vision._replace(model=vision.model.eval().requires_grad_(False).to(device))
        self.text = text._replace(model=text.model.eval().requires_grad_(False).to(device))
        self.tensors = {key: tensors[key].float().to(device) for key in MAP_NAMES}  # the map stays in float32
        self.facts = facts
        self.logit_scale = float(facts["logit_scale"])
        self.dim = len(self.tensors["image_mean"])
        self.truncated_texts = 0  # texts that were longer than the text encoder reads and lost their tail

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str, device: torch.device, dtype: str = "float32"
    ) -> Joined:
        """From a folder of `join`. Errors: WordsightError for whatever is absent or does not fit; no tensor
        is random, nothing is unpickled.
        """
        if dtype not in DTYPES:
            raise WordsightError(f"dtype={dtype!r} is not a choice; the choices are {', '.join(DTYPES)}")
        path = Path(path)
        facts = _read_facts(path / OWN_FILE)
        vision = image_tower(path / "vision", name, facts["pooling"], whole=True, dtype=DTYPES[dtype])
        text = _text_tower(
            path / "text", name, facts["text_pooling"], facts["max_tokens"], whole=True, dtype=DTYPES[dtype]
        )
        tensors = _read_map(path / MAP_FILE, name, vision.width(name), text.width(name))
        return cls(vision, text, tensors, facts, name=name, device=device, dtype=dtype)

    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        return self.vision.transform(image, box)

    @torch.no_grad()
    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return unit(self.vision(pixels) - self.tensors["image_mean"])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        if not texts:
            return torch.empty(0, self.dim, device=self.device)
        vectors, cut = _encode_texts(self.text, texts, self.name)
        self.truncated_texts += cut
        return self._shared(vectors)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [length > self.text.max_tokens for length in self.text.lengths(list(texts))]

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self.text.tokenize(texts)

    def encode_tokens(
        self, tokens: dict[str, Tensor], ends: Int[Tensor, "N 2"] | None = None
    ) -> Float[Tensor, "N D"]:
        return self._shared(self.text.pooled(tokens))

    @property
    def token_embedding(self) -> nn.Module:
        return self.text.model.get_input_embeddings()

    def _shared(self, vectors: Float[Tensor, "N W"]) -> Float[Tensor, "N D"]:
        return unit((vectors - self.tensors["text_mean"]) @ self.tensors["text_to_shared"])

    @cached_property
    def image_fingerprint(self) -> str:
        tensors = self.vision.model.state_dict() | {"image_mean": self.tensors["image_mean"]}
        return fingerprint(
            tensors,
            _shape(self.vision.model.config),
            self.vision.transform.facts(),
            self.vision.pooling,
            self.dtype,
        )

    @cached_property
    def text_fingerprint(self) -> str:
        tensors = self.text.model.state_dict() | {
            key: self.tensors[key] for key in ("text_mean", "text_to_shared")
        }
        reading = (_tokenizer_facts(self.text.tokenizer), self.text.pooling, self.text.max_tokens)
        return fingerprint(tensors, _shape(self.text.model.config), reading, self.dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both encoders in transformers' layout and the map, under a temporary name until all is
        there.
        """
        folder = free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.saving")
        shutil.rmtree(temporary, ignore_errors=True)  # of a save that was killed
        with _quiet():
            self.vision.model.save_pretrained(temporary / "vision")
            self.text.model.save_pretrained(temporary / "text")
        self.text.tokenizer.save_pretrained(temporary / "text")
        (temporary / "vision" / PREPROCESSOR_FILE).write_text(
            json.dumps(self.vision.transform.to_dict(), indent=2) + "\n", encoding="utf-8"
        )
        save_file(
            {key: value.cpu().contiguous() for key, value in self.tensors.items()}, temporary / MAP_FILE
        )
        (temporary / OWN_FILE).write_text(json.dumps(self.facts, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder)


# Fitting


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
    text = _text_source(settings)
    for tower in (vision, text):
        tower.model.eval().to(device)
    image_mean = _mean(vision, images)
    if pairs is not None:
        targets, captions, image_mean, group = _from_pairs(vision, pairs, image_mean)
        on = f"{len(captions)} captions of {len(targets)} images"
    else:
        targets, names = _from_head(settings, vision, head, own_names)
        captions, group = [settings.template.format(name) for name in names], torch.arange(len(names))
        on = f"{len(names)} class names"
    texts = _encode_texts(text, captions, settings.text)[0].cpu()
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
    if not settings.ridge > 0:
        raise WordsightError(f"ridge={settings.ridge} is not possible; give a number above 0, such as 3")
    if settings.template.count("{}") != 1 or settings.template.replace("{}", "").count("{"):
        raise WordsightError(
            f"template={settings.template!r} must hold {{}} once, where the class name stands"
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


@torch.no_grad()
def _encode_texts(text: TextTower, texts: Sequence[str], name: str) -> tuple[Float[Tensor, "N W"], int]:
    """Vectors in the order of `texts`, each distinct text once, longest first; and how many distinct texts
    lost their ends.
    """
    distinct = list(dict.fromkeys(texts))
    lengths = [min(length, text.max_tokens + 1) for length in text.lengths(distinct)]
    cut = sum(length > text.max_tokens for length in lengths)
    if cut:
        log.warning(
            "%d of %d texts are longer than the %d tokens that %s reads; their ends were cut off",
            cut,
            len(distinct),
            text.max_tokens,
            name,
        )
    order = sorted(range(len(distinct)), key=lambda row: -lengths[row])
    vectors, start = [], 0
    while start < len(order):
        rows = order[start : start + max(1, TOKENS_PER_BATCH // max(1, lengths[order[start]]))]
        vectors.append(text([distinct[row] for row in rows]))
        start += len(rows)
    place = {distinct[row]: position for position, row in enumerate(order)}
    return torch.cat(vectors)[[place[words] for words in texts]], cut


# Reading encoders


def _text_source(settings: JoinSettings) -> TextTower:
    folder = local(settings.text, "text")
    pooling = settings.text_pooling
    if pooling == "auto":
        said = (
            read_json(folder / "1_Pooling" / "config.json")
            if (folder / "1_Pooling" / "config.json").is_file()
            else {}
        )
        pooling = next(
            (
                ours
                for key, ours in (("mean_tokens", "mean"), ("cls_token", "cls"), ("lasttoken", "last"))
                if said.get(f"pooling_mode_{key}")
            ),
            "mean",
        )
    longest = (
        read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        if (folder / "sentence_bert_config.json").is_file()
        else None
    )
    return _text_tower(folder, settings.text, pooling, longest, whole=False)


def _text_tower(
    folder: Path,
    name: str,
    pooling: str,
    max_tokens: int | None,
    *,
    whole: bool,
    dtype: torch.dtype = torch.float32,
) -> TextTower:
    config = encoder_config(folder, name, "input_ids")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise WordsightError(
            f"text encoder {str(folder)!r} holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])} or the "
            f"like); copy it from its origin"
        )
    with _quiet(), _reading(name, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise WordsightError(
            f"the tokenizer of {name!r} knows no words, only {tokenizer.all_special_tokens}: its "
            f"vocabulary file is missing"
        )
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # decoders have none; the mask hides it
    reads = [
        max_tokens or MAX_TOKENS,
        tokenizer.model_max_length,
        getattr(config, "max_position_embeddings", None) or MAX_TOKENS,
    ]
    tower = TextTower(
        load_encoder(folder, name, config, pooler=False, whole=whole, dtype=dtype),
        tokenizer,
        pooling,
        min(reads),
    )
    tower.width(name)
    return tower


# Files


def _read_facts(file: Path) -> dict[str, Any]:
    facts = read_json(file) if file.is_file() else {}
    kinds = {
        "kind": str,
        "format": int,
        "logit_scale": (int, float),
        "pooling": str,
        "text_pooling": str,
        "max_tokens": int,
    }
    for key, kind in kinds.items():
        if not isinstance(facts.get(key), kind):
            raise WordsightError(
                f"{file} has {key}={facts.get(key)!r}; it is not a folder that `wordsight join` wrote, or "
                f"was edited"
            )
    if facts["pooling"] not in ("cls", "mean", "pooler") or facts["text_pooling"] not in (
        "mean",
        "cls",
        "last",
    ):
        raise WordsightError(
            f"{file} has pooling={facts['pooling']!r}, text_pooling={facts['text_pooling']!r}; the choices "
            f"are cls, mean, pooler and mean, cls, last"
        )
    if facts["kind"] != "joined" or facts["format"] != FORMAT:
        raise WordsightError(
            f"{file} is of kind {facts['kind']!r} and format {facts['format']}; this version reads kind "
            f"'joined', format {FORMAT}"
        )
    return facts


def _read_map(file: Path, name: str, width: int, text_width: int) -> dict[str, Tensor]:
    if not file.is_file():
        raise WordsightError(
            f"backbone {name!r} holds no {MAP_FILE}; it is not complete, make it again with `wordsight join`"
        )
    with _reading(name, MAP_FILE):
        tensors = load_file(file)
    expected = {"image_mean": (width,), "text_mean": (text_width,), "text_to_shared": (text_width, width)}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if found != expected:
        raise WordsightError(
            f"{MAP_FILE} of {name!r} holds {found}, but its encoders need exactly {expected}"
        )
    if not all(value.isfinite().all() for value in tensors.values()):
        raise WordsightError(f"{MAP_FILE} of {name!r} holds numbers that are not finite")
    return tensors


def _read_names(file: Path) -> list[str]:
    if not file.is_file():
        raise WordsightError(f"names={str(file)!r} does not exist")
    if file.suffix == ".json":
        found = read_json(file)
        names = found.get("classes") if isinstance(found, dict) else found
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise WordsightError(f"{file} holds neither a list of class names nor one under 'classes'")
        return names
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
