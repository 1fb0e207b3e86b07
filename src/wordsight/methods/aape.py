"""AAPE: natural-language sentences, condensed into a prompt embedding per image, adapt CLIP's class weights.

"Aggregate-and-Adapt Natural Language Prompts for Downstream Generalization of CLIP", Huang et al., NeurIPS
2024 (arXiv 2410.23698). Here the settings and the default form, which is solved; aape_trained.py has the
paper's own, which are trained. Shapes: B images, n labelled images, C classes, D shared width."""

from __future__ import annotations

import importlib
import math
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from wordsight.backbones import Backbone, unit
from wordsight.config import TrainSettings, WordsightError
from wordsight.methods import Classifier, FitData, Space
from wordsight.methods.evidence import Affine, Scored, Spectrum, logistic, ridge, weigh
from wordsight.sentences import ClassTexts
from wordsight.settings import AAPESettings

FORMS = {"solved": "wordsight.methods.aape:SolvedAAPE"} | dict.fromkeys(
    ("literal", "skip", "h_only"), "wordsight.methods.aape_trained:TrainedAAPE"
)
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of h's ridge map, in units of the mean squared singular value
SHARES = (1.0, 0.5, 0.2, 0.05)  # of the words beside the offsets
STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # penalties of the offsets, strong ones first
# what is expected beforehand (all chosen on training and validation images of six sets, benchmarks/aape): the
# words' share where they name SURE of the images beyond chance or more, the penalty up to CROWD classes, and
# how many nats each step from it must earn
SHARE, SURE, PENALTY, CROWD, DOUBT = 0.5, 0.4, 0.1, 60, 0.7
FOLDS = 4  # in which labelled images are left out, at most
WARMTHS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)  # by which left-out scores are tempered
ROUNDS = 3  # times that the classes are parted in two, each half once left out
LEAST_CLASSES = 10  # from which leaving some of them out says something
MOST_CLASSES = 120  # that are left out together, or that strengths are chosen by: more say nothing more
HARM = 0.5  # points of accuracy that classes without labels may lose beside labelled ones, where it was seen


class AAPE(Classifier):
    """Sentences are condensed into a prompt embedding that is made from the image alone, and it adapts what
    words say of classes.

    A labelled class: t (s x.w_c + x.o_c + b_c). One without labels: s_0 x.w_c, as zero-shot, or with
    `prompt=true` a_1 x.w_c + a_2 (h(x) - p).(p_c - p).

    w_c is the class vector (`words=`, by default calibrated), p_c the aggregated prompt (the mean of the
    sentences) and p their mean; h is the ridge map from images to the prompts of their classes, which is
    eq. 2's distillation solved; o_c, b_c are logistic regression's, started from the words' scores. As in the
    paper, h needs neither sentences nor labels at prediction, and serves classes that had no labels.

    Differs from the paper: labelled classes have offsets, as strong as images that were left out say, and
    words count beside them; h is linear and solved, not a perceptron trained with the task's loss, and
    h(x).p_c is added to the words' score where the paper has g([w_c; h(x)]), its weight chosen by the
    likelihood of classes that were left out. h was not seen to help beside these, so it is off unless asked
    for. With `form=literal`, `skip` and `h_only` it is trained as in the paper (TrainedAAPE);
    docs/methods/aape.md has the figures of all."""

    Settings = AAPESettings
    needs_sentences = True
    settings: AAPESettings
    paper_training: ClassVar[TrainSettings] = TrainSettings(
        epochs=40, batch_size=32, optimizer="adamw", lr=1e-3
    )

    @classmethod
    def formed(cls, own: AAPESettings) -> type[AAPE]:
        module, _, name = FORMS[own.form].partition(":")
        return getattr(importlib.import_module(module), name)

    @classmethod
    def training(cls, shots: int | None, own: Any = None) -> TrainSettings | None:
        return None if own is None or own.form == "solved" else cls.paper_training

    @classmethod
    def own_words(cls, own: Any = None) -> str:
        """Calibrated; the paper's class name, where it is trained as the paper has it."""
        return "calibrated" if own is None or own.form == "solved" else "names"


class SolvedAAPE(AAPE):
    """AAPE's default form: everything is solved, and nothing is trained (see AAPE)."""

    unlabelled: Tensor
    labelled: Tensor
    share: Tensor
    middle: Tensor
    prompt_map: Tensor
    prompt_bias: Tensor
    offset_map: Tensor
    offset_bias: Tensor
    class_weights: Tensor
    class_bias: Tensor

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: AAPESettings):
        super().__init__(class_names, space, settings)
        scale = float(self.logit_scale)
        self.register_buffer("unlabelled", torch.tensor([scale, 0.0]))  # a_1 and a_2
        self.register_buffer("labelled", torch.tensor([scale, 1.0]))  # t s and t
        self.register_buffer("share", torch.ones(()))  # of the offsets, beside classes without labels
        self.register_buffer("middle", torch.zeros(self.dim))  # p
        self.register_buffer("prompt_map", torch.zeros(self.dim, self.dim))
        self.register_buffer("prompt_bias", torch.zeros(self.dim))
        self.register_buffer("offset_map", torch.zeros(self.dim, len(class_names)))
        self.register_buffer("offset_bias", torch.zeros(len(class_names)))

    # -- fitting ---------------------------------------------------------------------------------------------

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        known = Known(
            data.centre.cpu(), data.labels.cpu(), data.texts.name_vectors.cpu(), data.texts.means().cpu()
        )
        if not all(part.isfinite().all() for part in (known.images, known.words, known.prompts)):
            raise WordsightError("image or text vectors are not finite; look at the features")
        self.middle.copy_(known.prompts.mean(0))
        self._solve_prompt(known)
        self._solve_offsets(known)
        return super().setup(data)

    def _solve_prompt(self, known: Known) -> None:
        """h, its penalty and its weight: under which classes that were left out are named best, among
        themselves."""
        start = [float(self.logit_scale), 0.0]
        self.unlabelled.copy_(torch.tensor(start))
        if not self.settings.prompt or len(known.words) < LEAST_CLASSES:
            return
        parted = [known.without(held) for held in _halves(len(known.words))]
        best: tuple[float, list[float], float] | None = None
        for penalty in PENALTIES:
            scored = [_by_prompt(inside, outside, penalty) for inside, outside in parted]
            weights, fit = weigh(scored, start, len(known.words))
            if best is None or fit > best[2]:
                best = penalty, weights, fit
        assert best is not None  # there is a penalty
        self.unlabelled.copy_(torch.tensor(best[1]))
        h = ridge(known.spectrum, known.prompts[known.labels], best[0])
        self.prompt_map.copy_(h.map)
        self.prompt_bias.copy_(h.bias)

    def _solve_offsets(self, known: Known) -> None:
        """o_c and b_c, as strong as images that were left out say; and how much of them may count beside
        classes without labels."""
        if not self.settings.offsets:
            return
        scale = float(self.logit_scale)
        some = known.some()
        share, penalty, warmth = _strength(some, scale)
        self.labelled.copy_(torch.tensor([warmth * share * scale, warmth]))
        solved = known.offsets(share * scale, penalty * math.sqrt(len(known.words) / len(some.words)))
        self.offset_map.copy_(solved.map)
        self.offset_bias.copy_(solved.bias)
        if len(some.words) >= LEAST_CLASSES:
            self.share.fill_(_beside_others(some, share * scale, penalty))

    # -- prediction ------------------------------------------------------------------------------------------

    def set_classes(self, texts: ClassTexts) -> None:
        """All parts are linear in the image, so each class becomes one vector and one number."""
        rows = self.rows_of(texts).to(self.middle.device)
        words, prompts = texts.name_vectors.to(self.middle), texts.means().to(self.middle) - self.middle
        if self.settings.offsets and bool((rows >= 0).any()):
            scale, warmth = self.labelled
            share = warmth * (1.0 if bool((rows >= 0).all()) else self.share)
            # row -1: a class without labels has no offset
            vectors = scale * words + share * F.pad(self.offset_map.T, (0, 0, 0, 1))[rows]
            bias = share * F.pad(self.offset_bias, (0, 1))[rows]
        else:
            scale, weight = self.unlabelled
            vectors = scale * words + weight * prompts @ self.prompt_map.T
            bias = weight * prompts @ (self.prompt_bias - self.middle)
        self.register_buffer("class_weights", vectors, persistent=False)
        self.register_buffer("class_bias", bias, persistent=False)

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return torch.addmm(self.class_bias, images, self.class_weights.T)

    def prompt(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """What the image says, in the text's space: its product with a text is what classes without labels
        are scored by."""
        scale, weight = self.unlabelled
        return unit(scale * images + weight * (images @ self.prompt_map + self.prompt_bias - self.middle))


@dataclass(frozen=True)
class Known:
    """Labelled images, and what words say of their classes."""

    images: Float[Tensor, "n D"]
    labels: Int[Tensor, " n"]
    words: Float[Tensor, "C D"]
    prompts: Float[Tensor, "C D"]

    @cached_property
    def spectrum(self) -> Spectrum:
        return Spectrum.of(self.images)

    def of_classes(self, rows: list[int]) -> Known:
        """The same of these classes alone."""
        chosen = torch.tensor(rows)
        place = torch.full((len(self.words),), -1)
        place[chosen] = torch.arange(len(chosen))
        inside = place[self.labels] >= 0
        return Known(
            self.images[inside], place[self.labels[inside]], self.words[chosen], self.prompts[chosen]
        )

    def without(self, held: list[int]) -> tuple[Known, Known]:
        """Of these classes, and of the others."""
        left = set(held)
        return self.of_classes(held), self.of_classes([c for c in range(len(self.words)) if c not in left])

    def some(self) -> Known:
        """Of so many classes as say enough, drawn once and for all."""
        count = len(self.words)
        return self.of_classes(sorted(random.Random(0).sample(range(count), min(count, MOST_CLASSES))))

    def offsets(self, scale: float, penalty: float) -> Affine:
        prior = scale * self.images @ self.words.T
        return logistic(self.spectrum, self.labels, prior, [penalty])[0]


def _halves(count: int) -> list[list[int]]:
    """Halves of the classes, always the same."""
    rng, found = random.Random(0), []
    for _ in range(ROUNDS):
        order = rng.sample(range(count), count)
        found += [sorted(part[:MOST_CLASSES]) for part in (order[: count // 2], order[count // 2 :])]
    return found


def _by_prompt(inside: Known, outside: Known, penalty: float) -> Scored:
    """Classes that were left out, by their words and by an h that did not see them."""
    h = ridge(outside.spectrum, outside.prompts[outside.labels], penalty)
    middle = outside.prompts.mean(0)
    parts = [inside.images @ inside.words.T, (h(inside.images) - middle) @ (inside.prompts - middle).T]
    return Scored(torch.stack(parts), inside.labels)


def _expected(known: Known) -> tuple[float, float]:
    """The words' share and the offsets' penalty, beforehand: words that name few of the images count less,
    and where many classes compete, each one's offset is held closer to zero."""
    count = len(known.words)
    right = float(((known.images @ known.words.T).argmax(1) == known.labels).float().mean())
    beyond_chance = (right - 1 / count) / (1 - 1 / count)
    return (
        SHARE * min(1.0, max(0.1, beyond_chance / SURE)),
        PENALTY * math.sqrt(max(1.0, count / CROWD)),
    )


def _strength(known: Known, scale: float) -> tuple[float, float, float]:
    """How much the words count beside the offsets, the offsets' penalty, and the temperature: under which
    images that were left out are likeliest, once their scores are tempered.

    Classes of one image leave nothing out, so what is expected is taken; elsewhere, each step from it on the
    grid must earn DOUBT."""
    expected = _expected(known)
    counts = known.labels.bincount(minlength=len(known.words))
    folds = min(FOLDS, int(counts.median()))
    if folds < 2:
        return *expected, 1.0
    fold = torch.empty_like(known.labels)
    for row in range(len(counts)):
        own = (known.labels == row).nonzero()[:, 0]
        fold[own] = torch.arange(len(own)) % folds
    parts = [(fold == number).nonzero()[:, 0] for number in range(folds)]
    rest = [(fold != number).nonzero()[:, 0] for number in range(folds)]
    spectra, labels = [Spectrum.of(known.images[rows]) for rows in rest], known.labels[torch.cat(parts)]
    said = scale * known.images @ known.words.T
    best: tuple[float, float, float, float] | None = None
    for share in SHARES:
        paths = [
            logistic(spectrum, known.labels[seen], share * said[seen], STRENGTHS)
            for spectrum, seen in zip(spectra, rest)
        ]
        for penalty, *solved in zip(STRENGTHS, *paths):
            left_out = torch.cat(
                [share * said[out] + one(known.images[out]) for one, out in zip(solved, parts)]
            )
            loss, warmth = min((float(F.cross_entropy(t * left_out, labels)), t) for t in WARMTHS)
            away = abs(math.log(share / expected[0], 2.5)) + abs(math.log10(penalty / expected[1]))
            if best is None or len(labels) * loss + DOUBT * away < best[0]:
                best = len(labels) * loss + DOUBT * away, share, penalty, warmth
    assert best is not None  # there is a share and a penalty
    return best[1:]


def _beside_others(known: Known, scale: float, penalty: float) -> float:
    """The largest share of the offsets by which classes that were left out, beside those that were not, lose
    no more than HARM."""
    lost: dict[float, list[float]] = {share: [] for share in (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)}
    for held in _halves(len(known.words))[::2]:
        inside, outside = known.without(held)
        solved = outside.offsets(scale, penalty)(inside.images)
        words = torch.cat([inside.words, outside.words])
        plain = scale * inside.images @ words.T
        right = (plain.argmax(1) == inside.labels).float().mean()
        for share, found in lost.items():
            moved = plain + F.pad(share * solved, (len(inside.words), 0))
            found.append(100 * float(right - (moved.argmax(1) == inside.labels).float().mean()))
    kept = [share for share, found in lost.items() if sum(found) / len(found) <= HARM]
    return max(kept, default=0.0)
