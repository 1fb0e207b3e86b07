"""AAPE as its paper trains it: a generator h of prompt embeddings and a projection g, two-layer perceptrons.

Shapes: B images, C classes, D shared width, r inner width, N sentences of a class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight import losses
from wordsight.backbones import Backbone, unit
from wordsight.methods import FitData, Learner, Space
from wordsight.methods.aape import AAPE
from wordsight.methods.aggregators import AGGREGATORS
from wordsight.sentences import ClassTexts
from wordsight.settings import AAPESettings

# image-class pairs scored at once: their r-wide activations stay in the processor's cache
PAIRS_IN_CACHE = 32_768


class TrainedAAPE(AAPE, Learner):
    """Class weights that follow the image, trained: cos(x, w_c(x)) / tau, with w_c(x) = g([w_c; h(x)])
    (`form=literal`), w_c + g([w_c; h(x)]) (`skip`), or the score cos(h(x), w_c) / tau (`h_only`).

    h is distilled from sentences that an aggregator condenses (section 3.2, eqs. 1 to 4). `literal` is as the
    paper writes it, and cannot be what the authors ran: 32 units cannot carry a class that g was not trained
    on, and new classes are lost even on real CLIP (docs/methods/aape.md). `skip` has figures of the published
    kind; the last layer of g starts at zero, so it starts at zero-shot."""

    words: Tensor
    training_only = ("aggregator.",)
    training_defaults = AAPE.paper_training

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: AAPESettings):
        super().__init__(class_names, space, settings)
        dim, width = self.dim, settings.width
        self.skip = settings.form == "skip"
        if settings.prompt is not False or settings.form == "h_only":
            self.generator = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim))
        else:
            self.generator = None
        if settings.form != "h_only":  # g([w ; h]) = project(relu(from_class(w) + from_prompt(h)))
            self.from_class = nn.Linear(dim, width)
            self.from_prompt = nn.Linear(dim, width, bias=False) if self.generator is not None else None
            self.project = nn.Linear(width, dim)
            if self.skip:
                nn.init.zeros_(self.project.weight)
                nn.init.zeros_(self.project.bias)

    # -- fitting ---------------------------------------------------------------------------------------------

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        groups = [
            vectors if len(vectors) else name[None]
            for vectors, name in zip(data.texts.sentence_vectors, data.texts.name_vectors)
        ]
        if self.settings.aggregator == "random":
            stream = torch.Generator().manual_seed(data.seed)
            groups = [vectors[torch.randint(len(vectors), (1,), generator=stream)] for vectors in groups]
        self.sentences = nn.utils.rnn.pad_sequence(groups, batch_first=True)  # [C, N, D]
        counts = torch.tensor([len(vectors) for vectors in groups])
        self.present = torch.arange(self.sentences.shape[1]) < counts[:, None]
        if self.generator is not None:
            self.aggregator = AGGREGATORS[self.settings.aggregator](self.dim, self.settings.heads)
        return super().setup(data)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Eq. 4 (distillation and cross entropy), and the aggregator's reward."""
        images, labels = batch["images"], batch["labels"]
        said = self.generate(images)
        terms = {"cross_entropy": F.cross_entropy(self.logit_scale * self.cosines(images, said), labels)}
        if self.generator is None:
            return terms
        prompt = self.condense(images, labels)
        terms["distill"] = self.settings.distill * losses.embedding_distillation(said, prompt)
        if prompt.requires_grad:
            terms["reward"] = -losses.clip_reward(images, prompt)
        return terms

    def condense(self, images: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """The aggregated prompt p_a of each image: a unit vector made of its class's sentences (eq. 1)."""
        sentences, present = self.sentences.to(images.device), self.present.to(images.device)
        if self.settings.query == "mean+image":
            return self.aggregator(sentences[labels], present[labels], images)
        # without the image in the query, a class has one prompt
        classes, place = labels.unique(return_inverse=True)
        return self.aggregator(sentences[classes], present[classes], None)[place]

    # -- prediction ------------------------------------------------------------------------------------------

    def set_classes(self, texts: ClassTexts) -> None:
        device = next(self.parameters()).device
        self.register_buffer("words", texts.name_vectors.to(device), persistent=False)

    def generate(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """h(x): the prompt embedding said of each image, not of length one; zero without a prompt."""
        return self.generator(images) if self.generator is not None else torch.zeros_like(images)

    def prompt(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return unit(self.generate(images)) if self.generator is not None else images

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        said = self.generate(images)
        if self.settings.form == "h_only":
            return self.logit_scale * unit(said) @ self.words.T
        side, inner = self.class_side(), self.inner_of(said)
        scores, reach = images @ side.fixed.T, images @ side.V
        block = max(1, PAIRS_IN_CACHE // len(self.words))
        for first in range(0, len(images), block):
            some = slice(first, first + block)
            scores[some] = self.bend(scores[some], reach[some], inner[some], side) * self.logit_scale
        return scores

    def plain(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return self.logit_scale * self.cosines(images, self.generate(images))

    def inner_of(self, said: Float[Tensor, "B D"]) -> Float[Tensor, "B r"]:
        """What h(x) gives to g's inner units."""
        return (
            self.from_prompt(said)
            if self.from_prompt is not None
            else said.new_zeros(len(said), self.settings.width)
        )

    def start(self) -> Float[Tensor, "C D"]:
        """What g's output is added to: w_c, or zero in the literal form."""
        return self.words if self.skip else torch.zeros_like(self.words)

    def class_weights(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C D"]:
        """w_c(x), written plainly: what `cosines` must equal, and too large to build for many classes."""
        inner = F.relu(self.from_class(self.words)[None] + self.inner_of(self.generate(images))[:, None])
        return self.start() + self.project(inner)

    def class_side(self) -> ClassSide:
        """All of `cosines` that no image changes; computed once for many images."""
        V = self.project.weight
        fixed = self.start() + self.project.bias
        inner = self.from_class(self.words).T.contiguous()
        return ClassSide(fixed, inner, V, V.T @ V, 2 * (V.T @ fixed.T), fixed.square().sum(-1))

    def cosines(self, images: Float[Tensor, "B D"], said: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """cos(x, w_c(x)) without the B x C x D tensor.

        With z = relu(...) of width r, V and v the last layer and u_c = w_c + v: x . w_c(x) = x . u_c + (V'x)
        . z and |w_c(x)|^2 = |u_c|^2 + z . (V'V z + 2 V'u_c)."""
        if self.settings.form == "h_only":
            return unit(said) @ self.words.T
        side = self.class_side()
        return self.bend(images @ side.fixed.T, images @ side.V, self.inner_of(said), side)

    def bend(
        self,
        dots: Float[Tensor, "B C"],
        reach: Float[Tensor, "B r"],
        inner: Float[Tensor, "B r"],
        side: ClassSide,
    ) -> Float[Tensor, "B C"]:
        """The part of `cosines` that is r wide, given x . u_c, V'x and what h(x) gives to z.

        Classes lie in the last dimension, where they fill the processor's vectors: several times faster than
        r there."""
        z = (side.inner + inner[:, :, None]).relu_()  # [B, r, C]
        bent = side.linear + side.gram @ z
        lengths = ((z * bent).sum(1) + side.squares).clamp_min_(1e-12).rsqrt_()
        return (dots + (reach[:, None] @ z)[:, 0]) * lengths


class ClassSide(NamedTuple):
    fixed: Float[Tensor, "C D"]  # u_c
    inner: Float[Tensor, "r C"]  # what w_c gives to z
    V: Float[Tensor, "D r"]
    gram: Float[Tensor, "r r"]  # V'V
    linear: Float[Tensor, "r C"]  # 2 V'u_c
    squares: Float[Tensor, " C"]  # |u_c|^2
