"""LiMBeR: a linear map turns the grid of a frozen image tower into soft tokens of a frozen language
model, which then says what the image shows; AAPE's h(x) stands behind them as one more token.

"Linearly Mapping from Image to Text Space", Merullo et al., ICLR 2023 (arXiv 2209.15162); AAPE, section
5. Shapes: B images, G vectors of a grid, Wv their width, D the width of image vectors, W the LM's, P
soft tokens, T text tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wordsight import losses
from wordsight.backbones.prefixed import PrefixedLM
from wordsight.backbones.prompted import prompt_generator
from wordsight.config import RunSettings, TrainSettings, WordsightError
from wordsight.methods import Captioner, Learner
from wordsight.methods.evidence import Spectrum, ridge
from wordsight.settings import LimberSettings

LEAST_SPREAD = 1e-4  # of a channel of grids, by which it is divided
RIDGE = 0.1  # the penalty of the start
SHRUNK = 0.5  # how far soft tokens are from their mean at the start, where the LM's own have size 1


class Limber(Captioner, Learner):
    """A frozen language model says what an image shows: the image tower's grid of patches becomes its first
    tokens, by a linear map that is all that is trained.

    LiMBeR (Merullo et al. 2023), section 3: cross entropy of the caption behind the soft tokens; tower
    and LM stay as they are. AAPE (Huang et al. 2024), section 5: h(x) behind the soft tokens as one
    more. As in the papers. Differs from LiMBeR: the grid is averaged to fewer tokens and each of its
    channels is centred and scaled by what a sample of images has, which is part of the linear map, so
    that soft tokens start at the size of the LM's own, and at `start=ridge` where the LM has the words that
    are said of such images, from where a short training comes further; captions end in the LM's end token.
    A guess where AAPE is silent: a linear map widens h(x)."""

    Settings: ClassVar[type] = LimberSettings
    fits: ClassVar[str] = "wordsight.fit_captions:fit_captions"
    centre: Tensor
    scale: Tensor
    training_defaults = TrainSettings(
        epochs=20,
        batch_size=64,
        lr=8e-3,
        weight_decay=0.01,
        clip_norm=1.0,
        schedule="step",
        warmup_steps=50,
        save_seconds=60,
    )  # for thousands of photos; LiMBeR's, for millions, are in its YAML

    @classmethod
    def check(cls, settings: RunSettings) -> None:
        super().check(settings)
        if settings.sentences is not None:
            raise WordsightError(
                f"sentences={settings.sentences} is about classes, but method=limber learns from captions of "
                f"images; leave it out"
            )

    def __init__(
        self, lm: PrefixedLM, settings: LimberSettings, grid: tuple[int, int], dim: int, text_dim: int = 0
    ):
        """`grid` is G and Wv, `dim` D; `text_dim` is the width of text vectors, which h(x) has too."""
        super().__init__()
        self.lm, self.settings, self.grid = lm, settings, grid
        device = lm.device
        width = grid[1]
        self.register_buffer("centre", torch.zeros(width, device=device))
        self.register_buffer("scale", torch.ones(width, device=device))
        self.map = _started(width, lm.width).to(device)
        self.generator = None
        if settings.learns_h:
            self.generator = prompt_generator(dim, settings.width, text_dim).to(device)
            self.generator.requires_grad_(settings.h == "finetuned")
        inner = text_dim if settings.learns_h else dim
        self.widen = None if settings.h == "none" else _started(inner, lm.width).to(device)
        self.inner = inner

    @property
    def count(self) -> int:
        """P: soft tokens of an image, the one of h(x) included."""
        return self.grid[0] + (self.widen is not None)

    @torch.no_grad()
    def start_at(self, grids: Float[Tensor, "n G Wv"]) -> None:
        """Centre and scale each channel by a sample of grids."""
        channels = grids.float().flatten(0, 1)
        self.centre.copy_(channels.mean(0))
        self.scale.copy_(1 / channels.std(0, correction=0).clamp_min(LEAST_SPREAD))

    @torch.no_grad()
    def start_at_words(
        self,
        sample: Float[Tensor, "n G Wv"],
        means: Float[Tensor, "m Wv"],
        images: Float[Tensor, "m D"],
        words: Float[Tensor, "m W"],
    ) -> None:
        """Let soft tokens begin where the LM has its words: each map becomes, in direction, the ridge map
        from what it is given of an image (of a grid its mean, in `means`) to `words`, the mean vector of an
        image's words in the LM's own layer.

        Its size is such that what it makes of single patches of `sample`, or of image vectors, is SHRUNK of a
        token's size away from the mean, which is that of `words`."""
        parts = [(self.map, self._patches(means), self._patches(sample))]
        if self.widen is not None:
            said = self._widened(self.said(images))
            parts.append((self.widen, said, said))
        wanted = words.cpu() / self.lm.spread
        for layer, given, seen in parts:
            weight = ridge(Spectrum.of(given), wanted, RIDGE).map
            mean = given.cpu().mean(0)
            away = (seen.cpu() - mean).flatten(0, -2)
            second = away.T @ away / len(away)  # by which no soft token of the sample need be made
            size = ((second @ weight) * weight).sum(0).mean().clamp_min(0).sqrt()
            weight = weight * (SHRUNK / size.clamp_min(LEAST_SPREAD))
            layer.weight.copy_(weight.T)
            layer.bias.copy_(wanted.mean(0) - mean @ weight)

    def prefix(self, grids: Float[Tensor, "B G Wv"], images: Float[Tensor, "B D"]) -> Float[Tensor, "B P W"]:
        """The soft tokens of images, of the size of the LM's own. float32."""
        return self._prefix(grids, self.said(images))

    def said(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """h(x), or the image vector itself where there is no h."""
        return self.generator(images) if self.generator is not None else images

    def _prefix(self, grids: Float[Tensor, "B G Wv"], said: Float[Tensor, "B E"]) -> Float[Tensor, "B P W"]:
        tokens = self.map(self._patches(grids))
        if self.widen is not None:
            tokens = torch.cat([tokens, self.widen(self._widened(said))[:, None]], 1)
        return self.lm.spread * tokens

    def _patches(self, grids: Float[Tensor, "... Wv"]) -> Float[Tensor, "... Wv"]:
        return (grids.float() - self.centre) * self.scale

    def _widened(self, said: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """Numbers of a unit vector are about 1 / sqrt(E) large; these of size 1."""
        return said * self.inner**0.5

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """For a batch of `PairBatches` with grids: cross entropy of the captions, and h's distillation where
        it is trained on.
        """
        images, rows = batch["images"], batch["text_of"]
        said = self.said(images)
        prefix = self._prefix(batch["grids"], said)
        terms = {"caption": self.lm.loss(prefix, batch["ids"][rows], batch["lengths"][rows])}
        if self.settings.h == "finetuned" and "target" in batch:
            terms["distill"] = self.settings.distill * losses.embedding_distillation(said, batch["target"])
        return terms

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases are not decayed."""
        trained = [one for one in self.parameters() if one.requires_grad]
        return [
            {"params": [one for one in trained if one.ndim > 1], "lr_scale": 1.0},
            {"params": [one for one in trained if one.ndim < 2], "lr_scale": 1.0, "weight_decay": 0.0},
        ]

    # -- what a run keeps: all but the LM --

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("lm.")}

    def load_weights(self, found: Mapping[str, Tensor]) -> None:
        """Take what `weights` gave. Errors: WordsightError for a tensor too many, too few, or of another
        shape.
        """
        expected = self.weights()
        odd = sorted(expected.keys() ^ found.keys())
        odd += [name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape]
        if odd:
            raise WordsightError(f"the tensors do not fit: {', '.join(odd)}")
        self.load_state_dict(found, strict=False)


def _started(width: int, out: int) -> nn.Linear:
    """A linear map that gives numbers of size 1 for numbers of size 1."""
    layer = nn.Linear(width, out)
    nn.init.normal_(layer.weight, std=width**-0.5)
    nn.init.zeros_(layer.bias)
    return layer
