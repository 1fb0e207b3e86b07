"""Backbone: an image tower and a text tower with one space of unit vectors. The contract, and the way from a
name to one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from wordsight.config import BACKBONES, WordsightError, plugins, resolve
from wordsight.early import check_utf8
from wordsight.files import content_hash
from wordsight.reader import nearest

MICRO = Path(__file__).parent / "micro"  # the bundled micro CLIP, a folder in transformers' layout
OWN_FILE = "wordsight_backbone.json"  # marks a folder that is ours rather than transformers'
Text = TypeVar("Text")  # a text, or what stands for one
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GIVES_TEXT = "`wordsight join` or a two_tower run gives it a text tower"
# what an instance must hold beside the methods
FACTS = ("name", "dim", "device", "logit_scale", "image_fingerprint", "text_fingerprint")

log = logging.getLogger("wordsight")


class Backbone(ABC):
    """What every method sees of a vision-language model. Towers are frozen, in eval mode, and give unit
    vectors of width `dim`.
    """

    name: str  # what the user wrote
    # where it is found from any folder: an absolute path, a hub name or `micro`; "" where it was made here
    source: str = ""
    dim: int  # D, the shared width
    device: torch.device  # where the towers are; vectors may stay there
    dtype: torch.dtype = torch.float32  # in which the towers compute
    max_tokens: int = 0  # of a text that the text tower reads; what is longer loses its end
    logit_scale: float  # zero-shot logits are logit_scale * cosine
    # changes with everything that decides an image vector: weights, preprocessing, dtype
    image_fingerprint: str
    text_fingerprint: str  # the same for text vectors
    has_text: bool = True  # false where it can encode no text at all
    # of classes, where it brings some: a file of vectors does, which can encode no others
    sentences: Mapping[str, tuple[str, ...]] | None = None
    # a class method: from_pretrained(path, *, name, device, dtype)
    from_pretrained: ClassVar[Callable[..., Backbone]]

    @abstractmethod
    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        """An RGB image as the tower's pixels: shorter side resized (bicubic), centre crop. `box` (left, top,
        right, bottom in pixels) takes that part instead, resized to the tower's size: an augmented view. Mean
        and standard deviation are applied in encode_image."""

    @abstractmethod
    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Unit image vectors, float32, on the CPU or the tower's device."""

    def encode_grid(self, pixels: UInt8[Tensor, "B 3 H W"], tokens: int) -> Float[Tensor, "B G Wv"]:
        """Vectors of an image's parts: the tower's grid of patches, row by row, neighbours averaged until
        they are `tokens` at most. Float32 and not of length one. Errors: WordsightError for a tower without a
        grid.
        """
        raise WordsightError(
            f"backbone {self.name!r} ({type(self).__name__}) gives one vector an image and no grid of "
            f"patches, which captions are made from; give a ViT, a CLIP or a joined backbone"
        )

    @property
    def image_tower(self) -> Backbone:
        """Whose image vectors are cached: itself, or the backbone whose vectors `image_vectors` turns into
        these.
        """
        return self

    def image_vectors(self, vectors: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """This backbone's image vectors, from those of `image_tower`."""
        return vectors

    @property
    def recipe(self) -> Mapping[str, Any]:
        """How `preprocess` makes pixels, as the contents of a preprocessor_config.json, for whoever makes
        them elsewhere; nothing where it is not known."""
        return {}

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Unit text vectors, float32, in the order of `texts`. Equal texts are encoded once; batches are
        sorted by length.
        """

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether it is too long for the text tower, which reads its beginning alone."""
        return [False] * len(texts)

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `load_backbone` reads back to the same vectors."""

    def save_whole(self, folder: str | Path) -> None:
        """The same, where it needs nothing outside the folder."""
        self.save_pretrained(folder)

    @property
    def parts(self) -> dict[str, str]:
        """What it was made of, and where each comes from: a path, a hub name, or nothing. For model cards."""
        return {"backbone": self.source}


def tell_truncated(truncated: Sequence[bool], max_tokens: int, name: str) -> None:
    """Say of how many texts the text tower `name` reads the beginning alone. Whoever uses their vectors says
    so, those of a cache included.
    """
    if any(truncated):
        log.info(
            "%d of %d texts are longer than the %d tokens that %s reads; their ends are cut off",
            sum(truncated),
            len(truncated),
            max_tokens,
            name,
        )


class TokenReader(ABC):
    """A backbone whose text tower reads token embeddings, so that learned vectors can stand among a text's
    tokens (methods/context.py).
    """

    token_embedding: nn.Module  # the layer that turns token ids into vectors
    # how long a row may be in which several texts share their beginning; 0 where the tower, not being causal,
    # cannot
    row_tokens: int = 0

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids as `input_ids` [N, L], and what else the tower reads beside them, on its device. A causal
        tower's text is cut at the end token of the longest: what stands after cannot matter."""

    @abstractmethod
    def encode_tokens(
        self, tokens: dict[str, Tensor], ends: Int[Tensor, "N 2"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Unit text vectors, float32, of what `tokenize` gave. Gradients pass to whatever is put in place of
        token embeddings.

        Texts that share rows come with `position_ids`, an `attention_mask` [R, 1, L, L] that is added to
        attention's scores, and `ends`: the row and the place of each text's end token. Only towers with
        `row_tokens` read these."""


def load_backbone(
    name: str | Path, *, device: str = "auto", dtype: str = "float32", text: bool = True
) -> Backbone:
    """The backbone behind a name: `micro`, a local folder, a run folder of two_tower, a hub name such as
    `openai/clip-vit-base-patch16` (`hf:` may stand before it), or a class of your own,
    `package.module:Class@argument`. `text=False`: an image encoder alone will do (Vision), for a text tower
    that is still to be trained; also one .safetensors file of a ViT.

    Errors: WordsightError when it is neither a folder, cached, nor reachable; nothing is substituted for it.
    """
    where = str(name).removeprefix("hf:")
    kind, argument = _outside(where)
    if kind:
        return _load_outside(kind, argument, str(name), pick_device(device), dtype)
    kind, path = kind_of(where, text)
    if text and kind == "vision":
        raise WordsightError(
            f"backbone {str(name)!r} is an image encoder alone, without a text tower; {GIVES_TEXT}"
        )
    backbone = resolve(BACKBONES, kind, "backbone kind").from_pretrained(
        path, name=str(name), device=pick_device(device), dtype=dtype
    )
    backbone.source = source_of(name)
    return backbone


def as_given(backbone: Any, what: str = "backbone") -> Backbone | str | None:
    """A backbone as somebody who calls this gives it: one that is open, its name or None; a path is a name.
    Errors: WordsightError for anything else, which is never passed over in favour of another backbone."""
    if isinstance(backbone, os.PathLike):
        return os.fspath(backbone)
    if backbone is None or isinstance(backbone, (Backbone, str)):
        return backbone
    raise WordsightError(
        f"{what}={str(backbone)[:80]!r} is of type {type(backbone).__name__}; give the name or the "
        "folder of a backbone, or one that is open: what `wordsight.load_backbone` gives"
    )


def several(texts: Sequence[Text]) -> Sequence[Text]:
    """Texts as they were given. Errors: WordsightError for one alone, which is a sequence of its letters, and
    for bytes of another encoding, which Python keeps as surrogates."""
    if isinstance(texts, str):
        raise WordsightError(f"one text {texts[:80]!r} was given where a list of texts is expected")
    for text in texts:
        if isinstance(text, str):
            check_utf8(text)
    return texts


@contextlib.contextmanager
def if_moved(remedy: str) -> Iterator[None]:
    """What cannot be opened where it was is told with how to say where it lies now."""
    try:
        yield
    except WordsightError as error:
        raise WordsightError(f"{str(error).splitlines()[0]}. Where it has moved, {remedy}") from error


def place_of(backbone: Backbone) -> str | None:
    """By what a backbone is found again: micro, a hub name, an absolute path or a class. None for one that
    was made here, or whose folder is gone.
    """
    found = backbone.source
    return None if not found or (found.startswith("/") and not Path(found).exists()) else found


def source_of(name: str | Path) -> str:
    """A backbone's name as any folder may write it: the path of a local folder or file is made absolute."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and str(name) != "micro" else str(name).removeprefix("hf:")


def kind_of(name: str, text: bool) -> tuple[str, str]:
    """What kind of backbone a name is, and where it lies."""
    from wordsight.backbones import hub
    from wordsight.backbones.arrays import is_arrays

    if name == "micro":
        return "clip", str(MICRO)
    path = Path(name).expanduser()
    if is_arrays(path):
        return "vectors", str(path)
    if path.is_file() and path.suffix == ".safetensors":
        return "vision", str(path)
    if not path.is_dir() and "/" not in name and nearest(name, ("micro",)):
        raise WordsightError(
            f"backbone {name!r} is neither a folder nor known here{nearest(name, ('micro',))}"
        )
    folder = path if path.is_dir() else hub.own(name)
    if folder is not None and (folder / OWN_FILE).exists():
        facts = hub.read_mapping(folder / OWN_FILE, "backbone")
        return str(facts.get("kind")), str(folder)
    if folder is not None and not (folder / "config.json").exists():
        whole = " or ".join(str(one.parent) for one in sorted(folder.glob("*/config.yaml")))  # an assistant
        raise WordsightError(
            f"backbone folder {name!r} holds neither config.json (transformers) nor {OWN_FILE} (of "
            f"`wordsight join` or a two_tower run)" + f"; give {whole}" * bool(whole)
        )
    if text:
        return "clip", name
    folder = folder or hub.find(name, "image encoder")
    settings = hub.read_mapping(folder / "config.json", "image encoder")
    if "text_config" not in settings:
        return "vision", str(folder)
    from wordsight.backbones.inner_lm import MLLMS

    return "mllm" if settings.get("model_type") in MLLMS else "clip", str(folder)


def _outside(name: str) -> tuple[str, str]:
    """Of `package.module:Class@argument` or an installed package's name for a class: the class, the argument.
    Nothing for every other name.
    """
    kind, _, argument = name.partition("@")
    if name == "micro" or "/" in kind or Path(name).expanduser().exists():
        return "", ""
    theirs = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", kind) or kind in plugins("backbone")
    return (kind, argument or name) if theirs else ("", "")


def _load_outside(kind: str, argument: str, name: str, device: torch.device, dtype: str) -> Backbone:
    """A backbone of a class that is not ours, once it is seen to keep the contract."""
    found = resolve(BACKBONES, kind, "backbone")
    methods = ("from_pretrained", *sorted(Backbone.__abstractmethods__))
    lacks = [one for one in methods if getattr(found, one, None) is getattr(Backbone, one, None)]
    if not isinstance(found, type) or not issubclass(found, Backbone) or lacks:
        raise WordsightError(
            f"backbone {kind!r} does not keep the contract of wordsight.backbones.Backbone: "
            + (f"it lacks {', '.join(lacks)}" if lacks else "it is no subclass of it")
        )
    try:
        backbone = found.from_pretrained(argument, name=name, device=device, dtype=dtype)
        lacks = [one for one in FACTS if getattr(backbone, one, None) is None]
    except WordsightError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise WordsightError(f"backbone {name!r}: {kind} cannot be loaded ({why})") from error
    if lacks:
        raise WordsightError(f"backbone {name!r}: what {kind} gives has no {', '.join(lacks)}")
    backbone.source = name if argument == name else f"{kind}@{source_of(argument)}"
    return backbone


def pick_device(device: str | torch.device) -> torch.device:
    """The device behind a name, `auto` being CUDA where there is one, and with its index: of several cards
    the one that is current. Each thread has a current card of its own, the first until it is told otherwise,
    so the main thread asks, after `join_processes`, and all others use what it was given.

    Errors: WordsightError for what is no device, or is not on this machine."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = _device(device)
    if not _is_here(found):
        raise WordsightError(
            f"device={str(device)!r} is not on this machine; give auto, which takes what there is, or cpu"
        )
    if found.type == "cpu" or found.index is not None:
        return found
    return torch.device(found.type, torch.accelerator.current_device_index())


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise WordsightError(
            f"device={str(name)!r} is not known; give auto, cpu, cuda, cuda:1 or mps"
        ) from error


def _is_here(device: torch.device) -> bool:
    if device.type == "meta":  # holds no numbers
        return False
    if device.type == "cuda":  # counted: trying it would take memory of the first card in every process
        return (device.index or 0) < torch.cuda.device_count()
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError, NotImplementedError):
        return False
    return True


def device_or_cpu(device: str) -> str:
    """The device on which something that was made elsewhere is read: its own, or the CPU where this machine
    has none such, which is told. Errors: WordsightError for what is no device's name.
    """
    if device == "auto" or _is_here(_device(device)):
        return device
    log.info("device=%s is not on this machine; the CPU stands in for it", device)
    return "cpu"


def pick_dtype(dtype: str) -> torch.dtype:
    """In what the towers compute. Errors: WordsightError with the choices."""
    if dtype not in DTYPES:
        raise WordsightError(f"dtype={dtype!r} is not a choice; the choices are {', '.join(DTYPES)}")
    return DTYPES[dtype]


def prints_of(backbone: Backbone, sides: Sequence[str]) -> list[str]:
    """Some of its fingerprints, at once: hashing two towers takes two cores."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(getattr, backbone), sides))


def fingerprint(tensors: dict[str, Tensor], *facts: object) -> str:
    """A hash of weights and of whatever else decides a vector."""
    return content_hash(tensors, facts)


def batches(lengths: Sequence[int], extra: int, budget: int) -> Iterator[list[int]]:
    """Rows in batches of like length, longest first, so that the first batch needs the most memory. `budget`
    counts tokens: padding and `extra` too.
    """
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(rows):
        size = max(1, budget // (lengths[rows[start]] + extra))
        yield rows[start : start + size]
        start += size


def unit(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """Rows scaled to length one."""
    return torch.nn.functional.normalize(x, dim=-1)
