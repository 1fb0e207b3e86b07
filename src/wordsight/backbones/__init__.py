"""Backbone: an image tower and a text tower with one space of unit vectors. The contract, and the way from a
name to one.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from wordsight.config import BACKBONES, WordsightError, nearest, resolve

MICRO = Path(__file__).parent / "micro"  # the bundled micro CLIP, a folder in transformers' layout
OWN_FILE = "wordsight_backbone.json"  # marks a folder that is ours rather than transformers'
GIVES_TEXT = "`wordsight join` or a two_tower run gives it a text tower"


class Backbone(ABC):
    """What every method sees of a vision-language model. Towers are frozen, in eval mode, and give unit
    vectors of width `dim`.
    """

    name: str  # what the user wrote
    source: str = (
        ""  # where it is found from any folder: an absolute path, a hub name or `micro`; "" if made here
    )
    dim: int  # D, the shared width
    device: torch.device  # where the towers are; vectors may stay there
    dtype: torch.dtype = torch.float32  # in which the towers compute
    logit_scale: float  # zero-shot logits are logit_scale * cosine
    image_fingerprint: (
        str  # changes with everything that decides an image vector: weights, preprocessing, dtype
    )
    text_fingerprint: str  # the same for text vectors

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

    @property
    def image_tower(self) -> Backbone:
        """Whose image vectors are cached: itself, or the backbone whose vectors `image_vectors` turns into
        these.
        """
        return self

    def image_vectors(self, vectors: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """This backbone's image vectors, from those of `eyes`."""
        return vectors

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
    """The backbone behind a name: `micro`, a local folder, a run folder of two_tower, or a hub name such as
    `openai/clip-vit-base-patch16` (`hf:` may stand before it). `text=False`: an image encoder alone will do
    (Vision), as eyes for a text tower that is still to be trained; also one .safetensors file of a ViT.

    Errors: WordsightError when it is neither a folder, cached, nor reachable; nothing is substituted for it.
    """
    kind, path = _find(str(name).removeprefix("hf:"), text)
    if text and kind == "vision":
        raise WordsightError(
            f"backbone {str(name)!r} is an image encoder alone, without a text tower; {GIVES_TEXT}"
        )
    backbone = resolve(BACKBONES, kind, "backbone kind").from_pretrained(
        path, name=str(name), device=pick_device(device), dtype=dtype
    )
    backbone.source = source_of(name)
    return backbone


def source_of(name: str | Path) -> str:
    """A backbone's name as any folder may write it: the path of a local folder or file is made absolute."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and str(name) != "micro" else str(name).removeprefix("hf:")


def _find(name: str, text: bool) -> tuple[str, str]:
    """What kind of backbone a name is, and where it lies."""
    from wordsight.backbones import hub

    if name == "micro":
        return "clip", str(MICRO)
    path = Path(name).expanduser()
    name = str(path)
    if path.is_file() and path.suffix == ".safetensors":
        return "vision", name
    if not path.is_dir() and "/" not in name and nearest(name, ("micro",)):
        raise WordsightError(
            f"backbone {name!r} is neither a folder nor known here{nearest(name, ('micro',))}"
        )
    folder = path if path.is_dir() else hub.own(name)
    if folder is not None and (folder / OWN_FILE).is_file():
        facts = hub.read_json(folder / OWN_FILE)
        return str(facts.get("kind") if isinstance(facts, dict) else None), str(folder)
    if folder is not None and not (folder / "config.json").is_file():
        raise WordsightError(
            f"backbone folder {name!r} holds neither config.json (transformers) nor {OWN_FILE} (of "
            f"`wordsight join` or a two_tower run)"
        )
    if text:
        return "clip", name
    folder = folder or hub.local(name, "image")
    return "vision" if "text_config" not in hub.read_json(folder / "config.json") else "clip", str(folder)


def pick_device(device: str) -> torch.device:
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise WordsightError(
                f"device={device!r} is not known; give auto, cpu, cuda, cuda:1 or mps"
            ) from error
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fingerprint(tensors: dict[str, Tensor], *facts: object) -> str:
    """A hash of weights and of whatever else decides a vector."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()


def unit(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """Rows scaled to length one."""
    return torch.nn.functional.normalize(x, dim=-1)
