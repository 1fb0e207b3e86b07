"""AAPE: natural-language sentences, condensed into one prompt embedding per image, adapt CLIP's class
weights.

"Aggregate-and-Adapt Natural Language Prompts for Downstream Generalization of CLIP", Huang et al., NeurIPS
2024 (arXiv 2410.23698). Shapes: B images, C classes, D shared width, r inner width, N sentences of a class, H
heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight import losses
from wordsight.backbones import Backbone, unit
from wordsight.config import TrainSettings, WordsightError
from wordsight.methods import Classifier, FitData, Learner, Space
from wordsight.methods.aggregators import AGGREGATORS
from wordsight.sentences import ClassTexts

PAIRS_IN_CACHE = (
    32_768  # image-class pairs scored at once: their r-wide activations stay in the processor's cache
)
CALIBRATION_IMAGES = 2_000  # more than this many labelled images cannot move three numbers


@dataclass(frozen=True)
class AAPESettings:
    """The settings that act on the residual form alone say so. Choices measured in benchmarks/aape."""

    # how the class weights follow the image; see above
    form: Literal["residual", "as_in_paper", "h_only"] = "residual"
    # r, of the generator and of the projection; the paper's is 32. Prediction costs r numbers a pair beside
    # zero-shot's D
    width: int = 8
    # what condenses sentences into the prompt h is distilled from
    aggregator: Literal["attention", "mlp", "mean", "random"] = "attention"
    # what the aggregator's slot starts as: the paper's eq. 1, or "input-adapted" as its text says
    query: Literal["mean", "mean+image"] = "mean"
    heads: int = 4  # of the attention aggregator; fewer where they do not divide D
    distill: float = 5.0  # weight of the distillation loss; the paper: 3 to 9 work about as well
    # residual: weight of the pull of adapted class weights towards the words they started from
    pull: float = 0.05
    class_residual: bool = True  # residual: each labelled class also learns an offset of its own
    # residual: name against sentences, image centre and temperature by likelihood on the labelled images
    calibrate: bool = True
    # residual: how much of the learned change applies to classes that had no labels
    new_strength: float = 0.05

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1:
            raise WordsightError(
                f"settings.width={self.width} and settings.heads={self.heads} must both be 1 or more"
            )


class AAPE(Classifier, Learner):
    """Class weights that follow the image: w_c(x) = w_c + r_c + s_c g([w_c ; h(x)]); score = cosine to x,
    times a temperature.

    Generator h and projection g are two-layer perceptrons (section 3.2 and eq. 3); h is distilled from
    sentences that an aggregator condenses (eqs. 1 and 2) and needs neither sentences nor aggregator at
    prediction.

    As in the paper with `form=as_in_paper` (w_c(x) = g([w_c ; h(x)])) and `form=h_only` (cos(h(x), w_c)).
    Differs from the paper in the default, `form=residual`, which starts exactly at zero-shot and therefore
    cannot lose what the words knew:
      - the last layer of g starts at zero and is added to w_c; classes without labels get `new_strength` of
        it;
      - h(x) = x + perceptron(x), its last layer zero too: what it says starts at the image and moves to the
        sentences, also after few steps;
      - w_c mixes name and sentences, images are centred, and the temperature is set, each by likelihood on
        the labelled images (`calibrate`);
      - labelled classes learn an offset r_c (as in TaskRes); classes without labels have none.
    With a weak text space the paper's form forgets the classes it did not train on (benchmarks/aape).
    """

    Settings = AAPESettings
    mix: Tensor
    centre: Tensor
    scale: Tensor
    words: Tensor
    rows: Tensor
    strength: Tensor
    needs_sentences = True
    training_only = ("aggregator.",)
    training_defaults = TrainSettings(epochs=40, batch_size=32, optimizer="adamw", lr=1e-3)

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: AAPESettings):
        super().__init__(class_names, space, settings)
        dim, width = self.dim, settings.width
        self.residual = settings.form == "residual"
        self.generator = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim))
        if settings.form != "h_only":  # g([w ; h]) = project(relu(from_class(w) + from_prompt(h)))
            self.from_class = nn.Linear(dim, width)
            self.from_prompt = nn.Linear(dim, width, bias=False)
            self.project = nn.Linear(width, dim)
        if self.residual:
            for last in (cast(nn.Linear, self.generator[-1]), self.project):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        learns = self.residual and settings.class_residual
        self.class_residual = nn.Parameter(torch.zeros(len(class_names), dim)) if learns else None
        # share of the sentences in w_c; the paper's w_c is the name alone
        self.register_buffer("mix", torch.tensor(0.5 if self.residual else 0.0))
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.tensor(float(self.logit_scale)))

    # -- fitting ---------------------------------------------------------------------------------------------

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        if self.residual and self.settings.calibrate:
            mix, centre, scale = calibrate(data.centre, data.labels, data.texts)
            self.mix.fill_(mix)
            self.centre.copy_(centre)
            self.scale.fill_(scale)
        groups = [
            vectors if len(vectors) else name[None]
            for vectors, name in zip(data.texts.sentence_vectors, data.texts.name_vectors)
        ]
        if self.settings.aggregator == "random":
            stream = torch.Generator().manual_seed(data.seed)
            groups = [vectors[torch.randint(len(vectors), (1,), generator=stream)] for vectors in groups]
        self.sentences = nn.utils.rnn.pad_sequence(groups, batch_first=True)  # [C, N, D]
        self.present = (
            torch.arange(self.sentences.shape[1])
            < torch.tensor([len(vectors) for vectors in groups])[:, None]
        )
        self.aggregator = AGGREGATORS[self.settings.aggregator](self.dim, self.settings.heads)
        return super().setup(data)

    def parameter_groups(self) -> list[dict[str, Any]]:
        own = [self.class_residual] if self.class_residual is not None else []
        rest = [parameter for parameter in self.parameters() if all(parameter is not other for other in own)]
        return [{"params": rest, "lr_scale": 1.0}] + ([{"params": own, "lr_scale": 3.0}] if own else [])

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Eq. 4 (distillation and cross entropy), the aggregator's reward, and the pull of the residual
        form.
        """
        images, labels = self.centred(batch["images"]), batch["labels"]
        prompt = self.condense(images, labels)
        said = self.generate(images)
        cosines, kept = self.cosines(images, said)
        terms = {
            "cross_entropy": F.cross_entropy(self.scale * cosines, labels),
            "distill": self.settings.distill * losses.embedding_distillation(said, prompt),
        }
        if prompt.requires_grad:
            terms["reward"] = -losses.clip_reward(images, prompt)
        if self.residual and self.settings.pull:
            assert kept is not None  # as the pull asked for it
            terms["pull"] = self.settings.pull * losses.pull(kept)
        return terms

    def condense(self, images: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """The aggregated prompt p_a of each image: a unit vector made of its class's sentences (eq. 1)."""
        sentences, present = self.sentences.to(images.device), self.present.to(images.device)
        if self.settings.query == "mean+image":
            return self.aggregator(sentences[labels], present[labels], images)
        classes, place = labels.unique(
            return_inverse=True
        )  # without the image in the query, a class has one prompt
        return self.aggregator(sentences[classes], present[classes], None)[place]

    # -- prediction ------------------------------------------------------------------------------------------

    def set_classes(self, texts: ClassTexts) -> None:
        place = {name: row for row, name in enumerate(self.class_names)}
        rows = [place.get(name, -1) for name in texts.names]
        device = self.scale.device
        labelled = torch.tensor([row >= 0 for row in rows], device=device)
        words = unit((1 - self.mix) * texts.name_vectors.to(device) + self.mix * texts.means().to(device))
        self.register_buffer("words", words, persistent=False)
        self.register_buffer("rows", torch.tensor(rows, device=device), persistent=False)
        strength = torch.where(labelled, 1.0, self.settings.new_strength if self.residual else 1.0).to(words)
        self.register_buffer("strength", strength, persistent=False)

    def generate(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """h(x): the prompt embedding said of each centred image. Not a unit vector. The residual form starts
        at the image itself.
        """
        return images + self.generator(images) if self.residual else self.generator(images)

    def centred(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return unit(images - self.centre)

    def prompt(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return unit(self.generate(self.centred(images)))

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        images = self.centred(images)
        said = self.generate(images)
        if self.settings.form == "h_only":
            return self.scale * unit(said) @ self.words.T
        side = self.class_side()
        scores, reach, inner = images @ side.fixed.T, images @ side.V, self.from_prompt(said)
        block = max(1, PAIRS_IN_CACHE // len(self.words))
        for first in range(0, len(images), block):
            some = slice(first, first + block)
            scores[some] = self.bend(scores[some], reach[some], inner[some], side)[0] * self.scale
        return scores

    def start(self) -> Float[Tensor, "C D"]:
        """What g's output is added to: w_c + r_c, or zero in the paper's form."""
        if not self.residual:
            return torch.zeros_like(self.words)
        if self.class_residual is None:
            return self.words
        offsets = F.pad(self.class_residual, (0, 0, 0, 1))  # row -1 is zero: a class without labels
        return self.words + offsets[self.rows]

    def class_weights(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C D"]:
        """w_c(x) for centred images, written plainly: what `cosines` must equal, and too large to build for
        many classes.
        """
        said = self.generate(images)
        inner = F.relu(self.from_class(self.words)[None] + self.from_prompt(said)[:, None])
        return self.start() + self.strength[:, None] * self.project(inner)

    def class_side(self) -> ClassSide:
        """All of `cosines` that no image changes; computed once for many images."""
        V, strength = self.project.weight, self.strength
        fixed = self.start() + strength[:, None] * self.project.bias
        linear = 2 * strength * (V.T @ fixed.T)
        return ClassSide(
            fixed,
            self.from_class(self.words).T.contiguous(),
            V,
            V.T @ V,
            linear,
            strength,
            fixed.square().sum(-1),
        )

    def cosines(
        self, images: Float[Tensor, "B D"], said: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"] | None]:
        """cos(x, w_c(x)) and, where the pull needs it, cos(w_c, w_c(x)), without the B x C x D tensor.

        With z = relu(...) of width r, V and v the last layer, u_c = w_c + r_c + s_c v and s_c the strength:
        x . w_c(x) = x . u_c + s_c (V'x) . z   and   |w_c(x)|^2 = |u_c|^2 + z . (s_c^2 V'V z + 2 s_c V'u_c).
        """
        if self.settings.form == "h_only":
            return unit(said) @ self.words.T, None
        side = self.class_side()
        return self.bend(
            images @ side.fixed.T,
            images @ side.V,
            self.from_prompt(said),
            side,
            keep=self.residual and self.settings.pull > 0,
        )

    def bend(
        self,
        dots: Float[Tensor, "B C"],
        reach: Float[Tensor, "B r"],
        inner: Float[Tensor, "B r"],
        side: ClassSide,
        keep: bool = False,
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"] | None]:
        """The part of `cosines` that is r wide, given x . u_c, V'x and what h(x) gives to z.

        Classes lie in the last dimension, where they fill the processor's vectors: several times faster than
        r there."""
        z = (side.inner + inner[:, :, None]).relu_()  # [B, r, C]
        bent = torch.addcmul(side.linear, side.gram @ z, side.strength.square())
        lengths = ((z * bent).sum(1) + side.squares).clamp_min_(1e-12).rsqrt_()
        cosines = torch.addcmul(dots, side.strength, (reach[:, None] @ z)[:, 0]) * lengths
        if not keep:
            return cosines, None
        along = (self.words * side.fixed).sum(-1) + side.strength * ((self.words @ side.V).T * z).sum(1)
        return cosines, along * lengths


class ClassSide(NamedTuple):
    fixed: Float[Tensor, "C D"]  # u_c
    inner: Float[Tensor, "r C"]  # what w_c gives to z
    V: Float[Tensor, "D r"]
    gram: Float[Tensor, "r r"]  # V'V
    linear: Float[Tensor, "r C"]  # 2 s_c V'u_c
    strength: Float[Tensor, " C"]
    squares: Float[Tensor, " C"]  # |u_c|^2


# -- calibration ---------------------------------------------------------------------------------------------


def calibrate(
    images: Float[Tensor, "n D"], labels: Int[Tensor, " n"], texts: ClassTexts
) -> tuple[float, Float[Tensor, " D"], float]:
    """How much sentences weigh beside the name, how far images move to their common centre, and the
    temperature, in closed form.

    Zero-shot classification of the labelled images is scored on a grid, and what is returned is the mean over
    a posterior. Nothing is trained, so the labelled images are as good as unseen ones; but words are judged
    class by class, so a class counts as two observations however many images it has, and the prior exp(-2
    mix) leans to the name: with few classes little moves, with many the likelihood decides (benchmarks/aape).
    Ours; neither paper has it. Returns (mix, centre [D], scale)."""
    if len(images) > CALIBRATION_IMAGES:
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:CALIBRATION_IMAGES]
        images, labels = images[chosen], labels[chosen]
    middle = images.sum(0) / (len(images) + 10)  # ten images' worth of doubt: the mean of a few is no centre
    grid, scales = (
        torch.linspace(0, 1, 5),
        torch.tensor([3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 70.0, 100.0, 150.0]),
    )
    means = texts.means()
    fit, warmth = (
        torch.empty(5, 5),
        torch.empty(5, 5),
    )  # mean log-likelihood under the best temperature, and that temperature's logarithm
    for i, mix in enumerate(grid):
        words = unit((1 - mix) * texts.name_vectors + mix * means)
        for j, shift in enumerate(grid):
            cosines = unit(images - shift * middle) @ words.T
            likelihood = torch.stack([-F.cross_entropy(scale * cosines, labels) for scale in scales])
            fit[i, j], warmth[i, j] = likelihood.max(), scales[likelihood.argmax()].log()
    posterior = (2 * len(texts.names) * fit - 2 * grid[:, None]).flatten().softmax(0).view_as(fit)
    mix, shift = (posterior.sum(1) @ grid).item(), (posterior.sum(0) @ grid).item()
    if not math.isfinite(mix + shift):
        raise WordsightError("image or text vectors are not finite; look at the features")
    return mix, shift * middle, (posterior * warmth).sum().exp().item()
