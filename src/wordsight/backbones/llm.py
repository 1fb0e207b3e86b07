"""LLM: a frozen image side and a language model as text tower, in one space. What CLAMP trains; the LM inside
still writes.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from wordsight.backbones import OWN_FILE, Backbone, fingerprint, if_moved, load_backbone, place_of, unit
from wordsight.backbones.checkpoint import exactly
from wordsight.backbones.hub import (
    HERE,
    check_complete,
    first_line,
    on_hub,
    read_facts,
    save_json,
)
from wordsight.backbones.text_tower import BASE_FOLDER, TextTower
from wordsight.config import WordsightError
from wordsight.early import WEIGHTS_FILE
from wordsight.files import new_folder, write_file, write_tensors
from wordsight.reader import to_dict

FORMAT = 1
TEXT_FOLDER, IMAGE_FOLDER, CARD = "text", "image", "README.md"


class LLM(Backbone):
    """The image side of any backbone, and an LM that says in vectors what it sees.

    The space is the image side's, centred: image = unit(vision(x) - image_mean), text = what the text tower
    gives. CLAMP (Teterwak et al. 2023), section 3. Differs from the paper: its vision tower is CLIP's, whose
    vectors are taken as they are; those of a plain classifier or of DINO share a large mean, which says
    nothing of an image and would be all that a text could learn at first, so it can be taken away
    (`image_mean`).

    Vectors are made without gradient; whoever trains `text` must not ask for `text_fingerprint` before the
    training has ended."""

    def __init__(
        self,
        image: Backbone,
        text: TextTower,
        *,
        image_mean: Float[Tensor, " D"] | None,
        logit_scale: float,
        name: str,
    ):
        """`image_mean` is the mean of the unit vectors of training images; None takes nothing away. Errors:
        WordsightError for other widths.
        """
        if text.dim != image.dim:
            raise WordsightError(
                f"the text tower gives vectors of width {text.dim}, but the image tower {image.name!r} of "
                f"{image.dim}; set dim={image.dim}"
            )
        mean = torch.zeros(image.dim) if image_mean is None else image_mean.detach().float()
        if mean.shape != (image.dim,) or not mean.isfinite().all():
            raise WordsightError(
                f"image_mean has shape {tuple(mean.shape)}; it must be {image.dim} finite numbers, as wide "
                f"as an image vector"
            )
        if not 0 < logit_scale <= 1e6:
            raise WordsightError(f"logit_scale={logit_scale} is not possible; give one above 0, at most 1e6")
        self.image, self.text, self.name = image, text, name
        self.image_mean = mean.to(image.device)
        self.logit_scale = float(logit_scale)
        self.dim, self.device, self.dtype = image.dim, image.device, image.dtype

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str, device: torch.device, dtype: str = "float32"
    ) -> LLM:
        """From a folder of `save_pretrained`, or a finished run folder. `dtype` is the LM's; the image tower
        stays in the one it was trained with.

        Errors: WordsightError for whatever is absent or does not fit, and for an image tower or LM that has
        changed since."""
        path = Path(path)
        kinds = {"image": (str, type(None)), "image_fingerprint": str, "image_dtype": str}
        facts = read_facts(path / OWN_FILE, "backbone", "llm", FORMAT, **kinds)
        check_complete(path, name)
        image = _load_image(path, facts, name, device)
        shape = {"image_mean": torch.empty(image.dim), "log_scale": torch.empty(())}
        found = exactly(path / WEIGHTS_FILE, shape, f"backbone {name!r}")
        text = TextTower.load(path / TEXT_FOLDER, device=device, dtype=dtype)
        scale = math.exp(min(float(found["log_scale"]), 700.0))  # beyond, a float ends
        return cls(image, text, image_mean=found["image_mean"], logit_scale=scale, name=name)

    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        return self.image.preprocess(image, box)

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.image.recipe

    @torch.no_grad()
    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return self.image_vectors(self.image.encode_image(pixels))

    @property
    def image_tower(self) -> Backbone:
        return self.image

    def image_vectors(self, vectors: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Vectors of the image side as this backbone's own: centred, at length one."""
        return unit(vectors - self.image_mean.to(vectors.device))

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        return self.text.encode(texts).to(self.device)

    @property
    def max_tokens(self) -> int:
        return self.text.max_tokens

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return self.text.truncated(texts)

    @cached_property
    def image_fingerprint(self) -> str:
        return fingerprint({"image_mean": self.image_mean}, "llm", self.image.image_fingerprint)

    @cached_property
    def text_fingerprint(self) -> str:
        return self.text.fingerprint()

    # Saving

    def weights(self) -> dict[str, Tensor]:
        """All of weights.safetensors: what belongs to neither tower."""
        return {
            "image_mean": self.image_mean.cpu().contiguous(),
            "log_scale": torch.tensor(math.log(self.logit_scale)),
        }

    def save_pretrained(
        self, folder: str | Path, *, copy_base: bool | None = None, copy_image: bool | None = None
    ) -> None:
        """Write a folder that `load_backbone` reads back to the same vectors, under a temporary name until
        all is there.

        `copy_base` and `copy_image`: write the LM and the image tower too, or only where they are found and
        what tells whether they are still the same. By default each is copied where it has no name or place to
        load it by, and an LM that was itself trained always is."""
        with new_folder(folder) as temporary:
            self.write_into(temporary, copy_base=copy_base, copy_image=copy_image)
            write_tensors(temporary / WEIGHTS_FILE, self.weights())

    def save_whole(self, folder: str | Path) -> None:
        self.save_pretrained(folder, copy_base=True, copy_image=True)

    @property
    def parts(self) -> dict[str, str]:
        return {"language model": self.text.plain.name_or_path or "", "image tower": self.image.source}

    def write_into(
        self, folder: str | Path, *, copy_base: bool | None = None, copy_image: bool | None = None
    ) -> None:
        """All but weights.safetensors, into a folder where other files may lie: a run writes those last
        itself, for they say that it is finished.

        What an earlier attempt that was killed has left of it is replaced.
        """
        folder, place = Path(folder), place_of(self.image)
        if place is None and copy_image is False:
            raise WordsightError(
                f"the image tower {self.image.name!r} has no name or folder to load it by, so it must be "
                f"saved; leave copy_image out"
            )
        copied = place is None if copy_image is None else copy_image
        for part in (TEXT_FOLDER, IMAGE_FOLDER):
            shutil.rmtree(folder / part, ignore_errors=True)
        self.text.save(folder / TEXT_FOLDER, copy_base=copy_base)
        if copied:
            self.image.save_whole(folder / IMAGE_FOLDER)
        facts = {
            "kind": "llm",
            "format": FORMAT,
            "image": None if copied else place,
            "image_fingerprint": self.image.image_fingerprint,
            "image_dtype": str(self.image.dtype).removeprefix("torch."),
        }
        lm = None if (folder / TEXT_FOLDER / BASE_FOLDER).is_dir() else self.text.plain.name_or_path
        write_file(folder / CARD, self._card(facts["image"], lm))
        save_json(folder / OWN_FILE, facts)

    def write_whole(self, folder: str | Path) -> None:
        """The same, where it needs nothing outside the folder."""
        self.write_into(folder, copy_base=True, copy_image=True)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Add a Wordsight backbone",
    ) -> str:
        """Upload the folder; `load_backbone(repo_id)` reads it. Returns the commit's address.

        An LM or image tower that lies in a folder of this machine is uploaded too, for its path says nothing
        to others."""
        from huggingface_hub import HfApi

        api, place = HfApi(token=token), place_of(self.image)
        here = place is not None and place != "micro" and Path(place).exists()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "backbone"
            self.save_pretrained(
                folder,
                copy_base=True if Path(self.text.plain.name_or_path or "").is_dir() else None,
                copy_image=True if here else None,
            )
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(
                api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=commit_message)
            )

    def _card(self, image: str | None, lm: str | None) -> str:
        """`image` and `lm` are where the towers are found, None for a copy in this very folder."""
        settings, named = self.text.settings, [name for name in (lm, image) if name and on_hub(name)]
        bases = f"base_model: [{', '.join(named)}]\n" if named else ""
        kept = (
            "with the adapters off, the LM writes as it did before, token for token: "
            "`backbone.text.generate(...)`."
            if self.text.writes_as_before
            else "not kept: the LM itself was changed, or it has no word head."
        )
        lines = "\n".join(f"| `{key}` | `{value}` |" for key, value in to_dict(settings).items())
        return (
            f"---\nlibrary_name: wordsight\npipeline_tag: zero-shot-image-classification\ntags: "
            f"[wordsight, clamp, {self.text.plain.config.model_type}]\n"
            f"{bases}---\n# {Path(self.name).name}\n\n"
            "A backbone of Wordsight: a frozen image tower, and a language model as text tower in the same "
            "space of unit vectors "
            f"(CLAMP, arXiv 2312.01629), D = {self.dim}.\n\n"
            f"- Language model: {f'`{lm}`' if lm else 'in `text/base/`'} "
            f"({self.text.plain.config.model_type})\n"
            f"- Image tower: {f'`{image}`' if image else 'in `image/`'}\n- Writing: {kept}\n\n"
            "```python\nfrom wordsight.backbones import load_backbone\n\n"
            f"backbone = load_backbone({HERE})  # this folder or repository\n"
            'text = backbone.encode_text(["a photo of a cat."])\n```\n\n'
            f"| setting of the text tower | value |\n|---|---|\n{lines}\n"
        )


def _load_image(path: Path, facts: dict[str, Any], name: str, device: torch.device) -> Backbone:
    """The image tower that the text tower was trained with, and no other."""
    place, inside = facts["image"], path / IMAGE_FOLDER
    try:
        with if_moved(f"write its place as 'image' in {path / OWN_FILE}"):
            image = load_backbone(place or inside, device=str(device), dtype=facts["image_dtype"], text=False)
    except WordsightError as error:
        raise WordsightError(
            f"the image tower of backbone {name!r}, {str(place or inside)!r}, cannot be loaded: "
            f"{first_line(error)}"
        ) from error
    if image.image_fingerprint != facts["image_fingerprint"]:
        raise WordsightError(
            f"the image tower {str(place or inside)!r} has changed since {name!r} was trained; its "
            f"features would not fit. "
            "Give it back as it was, or train again"
        )
    if place is None:
        # so that whoever saves this again saves it too
        image.name, image.source = f"the image tower of {name}", ""
    return image
