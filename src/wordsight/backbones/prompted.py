"""Prompted: a backbone whose image vectors are AAPE's h(x), a prompt embedding that was learned from captions
of images; its text tower is the one that encoded them. What fits h is fit_prompted.py.

Shapes: B images, D shared width."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from wordsight.backbones import OWN_FILE, Backbone, fingerprint, load_backbone, place_of, unit
from wordsight.backbones.checkpoint import exactly
from wordsight.backbones.hub import HERE, check_complete, first_line, read_facts, save_json
from wordsight.config import WordsightError
from wordsight.early import WEIGHTS_FILE
from wordsight.files import new_folder, write_file, write_tensors

FORMAT = 1
INNER_FOLDER, CARD = "inner", "README.md"


def prompt_generator(dim: int, width: int, out: int) -> nn.Module:
    """h: two fully connected layers with ReLU, as in the paper; linear where `width` is 0. Its output is not
    of length one.
    """
    if not width:
        return nn.Linear(dim, out)
    return nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, out))


class Prompted(Backbone):
    """image = unit(h(x)), x the image vector of the backbone inside; text as there (AAPE, section 5).

    The towers are not touched, so the cached vectors of the backbone inside serve this one."""

    def __init__(self, inner: Backbone, h: nn.Module, *, width: int, logit_scale: float, name: str):
        """Errors: WordsightError for an inner backbone without a text tower."""
        if not inner.has_text or not inner.text_fingerprint:
            raise WordsightError(
                f"backbone {inner.name!r} has no text tower, whose vectors of captions h is learned from"
            )
        self.inner, self.width, self.name = inner, width, name
        self.h = h.to(inner.device).eval().requires_grad_(False)
        self.dim, self.device, self.dtype = inner.dim, inner.device, inner.dtype
        self.logit_scale = float(logit_scale)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str, device: torch.device, dtype: str = "float32"
    ) -> Prompted:
        """From a folder of `save_pretrained`, or a finished run folder; the towers compute in the dtype that
        h was learned in. Errors: WordsightError for whatever is absent or does not fit, and where the
        backbone inside has changed since.
        """
        path = Path(path)
        kinds = {"inner": (str, type(None)), "width": int, "dtype": str, "image": str, "text": str}
        facts = read_facts(path / OWN_FILE, "backbone", "prompted", FORMAT, **kinds)
        check_complete(path, name)
        inner = _load_inner(path, facts, name, device)
        h = prompt_generator(inner.dim, facts["width"], inner.dim)
        wanted = {f"h.{key}": value for key, value in h.state_dict().items()}
        found = exactly(path / WEIGHTS_FILE, wanted | {"log_scale": torch.empty(())}, f"backbone {name!r}")
        h.load_state_dict({key.removeprefix("h."): found[key] for key in wanted})
        scale = math.exp(min(float(found["log_scale"]), 700.0))  # beyond, a float ends
        return cls(inner, h, width=facts["width"], logit_scale=scale, name=name)

    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        return self.inner.preprocess(image, box)

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.inner.recipe

    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return self._said(self.inner.encode_image(pixels))

    @property
    def image_tower(self) -> Backbone:
        return self.inner.image_tower

    def image_vectors(self, vectors: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return self._said(self.inner.image_vectors(vectors))

    @torch.no_grad()
    def _said(self, vectors: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return unit(self.h(vectors.to(self.device).float())).to(vectors.device)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        return self.inner.encode_text(texts)

    @property
    def max_tokens(self) -> int:
        return self.inner.max_tokens

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return self.inner.truncated(texts)

    @cached_property
    def image_fingerprint(self) -> str:
        return fingerprint(self.h.state_dict(), "prompted", self.width, self.inner.image_fingerprint)

    @property
    def text_fingerprint(self) -> str:
        return self.inner.text_fingerprint

    @property
    def parts(self) -> dict[str, str]:
        return self.inner.parts

    # Saving

    def weights(self) -> dict[str, Tensor]:
        """All of weights.safetensors."""
        tensors = {f"h.{key}": value.cpu().contiguous() for key, value in self.h.state_dict().items()}
        return tensors | {"log_scale": torch.tensor(math.log(self.logit_scale))}

    def save_pretrained(self, folder: str | Path, *, copy: bool | None = None) -> None:
        """Write a folder that `load_backbone` reads back to the same vectors. `copy`: write the backbone
        inside too, or only where it is found; by default it is copied where it has no name or place to load
        it by.
        """
        with new_folder(folder) as temporary:
            self.write_into(temporary, copy=copy)
            write_tensors(temporary / WEIGHTS_FILE, self.weights())

    def save_whole(self, folder: str | Path) -> None:
        self.save_pretrained(folder, copy=True)

    def write_into(self, folder: str | Path, *, copy: bool | None = None) -> None:
        """All but weights.safetensors, into a folder where other files may lie."""
        folder, place = Path(folder), place_of(self.inner)
        copied = place is None if copy is None else copy
        shutil.rmtree(folder / INNER_FOLDER, ignore_errors=True)
        if copied:
            self.inner.save_whole(folder / INNER_FOLDER)
        facts = {
            "kind": "prompted",
            "format": FORMAT,
            "inner": None if copied else place,
            "image": self.inner.image_fingerprint,
            "text": self.inner.text_fingerprint,
            "dtype": str(self.inner.dtype).removeprefix("torch."),
            "width": self.width,
        }
        write_file(folder / CARD, self._card(facts["inner"]))
        save_json(folder / OWN_FILE, facts)

    def write_whole(self, folder: str | Path) -> None:
        """The same, where it needs nothing outside the folder."""
        self.write_into(folder, copy=True)

    def _card(self, inner: str | None) -> str:
        return (
            "---\nlibrary_name: wordsight\npipeline_tag: zero-shot-image-classification\n"
            f"tags: [wordsight, aape]\n---\n# {Path(self.name).name}\n\n"
            "A backbone of Wordsight whose image vectors are h(x), a prompt embedding learned from captions "
            f"of images (AAPE, arXiv 2410.23698, section 5), D = {self.dim}, over "
            f"{f'`{inner}`' if inner else f'the backbone in `{INNER_FOLDER}/`'}.\n\n"
            f'```bash\nwordsight search photos/ "a dog in the snow" backbone={HERE}\n```\n'
        )


def _load_inner(path: Path, facts: dict[str, Any], name: str, device: torch.device) -> Backbone:
    """The backbone that h was learned over, and no other."""
    place = facts["inner"] or path / INNER_FOLDER
    try:
        inner = load_backbone(place, device=str(device), dtype=facts["dtype"])
    except WordsightError as error:
        raise WordsightError(
            f"the backbone that {name!r} stands on, {str(place)!r}, cannot be loaded: {first_line(error)}"
        ) from error
    if (inner.image_fingerprint, inner.text_fingerprint) != (facts["image"], facts["text"]):
        raise WordsightError(
            f"the backbone {str(place)!r} has changed since {name!r} was learned over it; its vectors would "
            f"not fit. Give it back as it was, or fit again"
        )
    if facts["inner"] is None:  # so that whoever saves this again saves it too
        inner.name, inner.source = f"the backbone of {name}", ""
    return inner
