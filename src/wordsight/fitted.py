"""Fitted: a method with the backbone and the class texts that it scores by. What tasks measure, what the
estimator and the command line predict with, whether it was just trained, read from a run folder, or knows
words alone."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import Backbone, as_given, device_or_cpu, if_moved, kind_of, load_backbone, prints_of
from wordsight.backbones.vectors import Vectors
from wordsight.config import METHODS, WordsightError, is_vectors, resolve
from wordsight.data.features import text_features
from wordsight.data.labels import check_choice
from wordsight.early import is_run
from wordsight.files import read_tensors
from wordsight.methods import Asking, Captioner, Classifier, Embedder
from wordsight.methods.zero_shot import ZeroShot
from wordsight.metrics import Best, best
from wordsight.runs import NO_BACKBONE, Run, RunFacts
from wordsight.sentences import ClassTexts, class_texts, fill
from wordsight.sentences.self_written import sentences_for
from wordsight.settings import NoSettings

if TYPE_CHECKING:
    from wordsight.backbones.generator import Generator
    from wordsight.backbones.prefixed import PrefixedLM
    from wordsight.methods.limber_generator import LimberGenerator

SIDES = ("image_fingerprint", "text_fingerprint")  # of a backbone
SCORES_AT_ONCE = 2**24  # of images times classes, or sentences: 64 MB
MOVED = "name its place: {0}=... (--{0} ...)"
LEAST_RAISED = 1e-4  # below it, a score has changed by rounding alone

log = logging.getLogger("wordsight")


class Closest(NamedTuple):
    """The sentence closest to what a method makes of an image."""

    name: str  # of the class it is about
    sentence: str
    cosine: float


class Decisive(NamedTuple):
    """The sentence that raised the predicted class over the runner-up most, and what would be predicted
    without it."""

    name: str  # the predicted class, which the sentence is about
    runner_up: str
    sentence: str
    raised: float  # what it adds to the logarithm of p(predicted class) / p(runner-up)
    without: str  # the class that would be predicted without it
    probability: float  # of that class then


@dataclass
class Fitted:
    """A fitted method over the classes of `texts`. `backbone` is None where only matrices were seen."""

    method: Classifier
    backbone: Backbone | None
    facts: RunFacts
    sentences: Mapping[str, tuple[str, ...]]
    texts: ClassTexts

    def __post_init__(self) -> None:
        self.method.choose(self.texts)
        self.method.to(self.device).eval()
        if self.backbone is None:  # matrices of a few columns leave float32 too little room
            self.method.double()

    @classmethod
    def open(cls, run: Run, backbone: Backbone | str | None = None) -> Fitted:
        """The classifier in a run folder. Errors: WordsightError where the backbone is not the one it was
        fitted on."""
        run.check_scores()  # before a backbone is read
        facts, sentences = run.facts, run.sentences
        if run.settings.backbone == NO_BACKBONE:
            vectors = run.extra("name_vectors")
            none = ((),) * len(vectors)
            texts = ClassTexts(facts.classes, vectors, none, (vectors[:0],) * len(vectors))
            return cls(run.method(), None, facts, sentences, texts)
        backbone = open_backbone(run, backbone)
        method = run.method(backbone)
        texts = encode_classes(backbone, facts, facts.classes, sentences, words=method.needs_words)
        return cls(method, backbone, facts, sentences, texts)

    @classmethod
    def by_names(cls, backbone: Backbone, names: Sequence[str], template: str) -> Fitted:
        """Zero-shot over a backbone: classes are known by their names alone."""
        facts, sentences = facts_of(backbone, names, template), dict.fromkeys(names, ())
        method = ZeroShot(facts.classes, backbone, NoSettings())
        return cls(method, backbone, facts, sentences, encode_classes(backbone, facts, names, sentences))

    def knowing(self, data: str) -> Fitted:
        """The same method, which also knows the words of a file of vectors where it came from such a file."""
        if not (is_vectors(data) and isinstance(self.backbone, Vectors)):
            return self
        other = load_backbone(data)
        assert isinstance(other, Vectors)  # what such a file is read as
        return replace(self, backbone=self.backbone.knowing(other), method=copy.deepcopy(self.method))

    @property
    def device(self) -> torch.device:
        return self.backbone.device if self.backbone is not None else torch.device("cpu")

    def with_classes(
        self, names: Sequence[str], sentences: Mapping[str, Sequence[str]] | None = None
    ) -> Fitted:
        """The same method over other classes, by name. Classes it was fitted on keep what they learned.

        `sentences` are of classes that it has none of. Errors: WordsightError for fewer than two names, a
        name twice, or where the method cannot score a class that it has seen no images of."""
        if self.backbone is None:
            raise WordsightError("new classes need words: fit with a backbone, which has a text tower")
        check_choice(names)
        told = {**(self.backbone.sentences or {}), **self.sentences, **(sentences or {})}
        known = {name: tuple(told.get(name, ())) for name in names}
        words = self.method.needs_words
        same = tuple(names) == self.texts.names and tuple(known.values()) == self.texts.sentences
        if same and not isinstance(self.backbone, Vectors):  # which may know other words by now
            texts = self.texts
        else:
            texts = encode_classes(self.backbone, self.facts, names, known, words=words)
        return replace(
            self, method=copy.deepcopy(self.method), sentences={**self.sentences, **known}, texts=texts
        )

    def sentences_of_new(self, names: Sequence[str], source: str | None) -> Mapping[str, Sequence[str]]:
        """What a file (or `self`) says about those of `names` that it was not fitted on."""
        if source is None or self.backbone is None:
            return {}
        new = [name for name in names if name not in self.facts.classes]
        return sentences_for(source, new, None, self.backbone)

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scores on the CPU, in float32."""
        return predict_logits(self.method, images.to(self.device))

    def best(self, images: Float[Tensor, "B D"], temperature: float = 1.0) -> Best:
        """What figures need of the scores, as many images at a time as keep them few: memory grows with the
        images and the class vectors alone. `temperature` is what calibrated confidences divide by."""
        parts = images.split(at_once(len(self.texts.names)))
        return Best.joined([best(self.logits(some), temperature=temperature) for some in parts])

    @torch.inference_mode()
    def closest(self, images: Float[Tensor, "B D"], top: int = 1) -> list[list[Closest]]:
        """For each image the sentences of all classes that are closest to its prompt, the closest first. A
        class without sentences has its name in the template."""
        if top < 0:
            raise WordsightError(f"{top} sentences are asked for; give 0 or more")
        lines: list[tuple[str, str]] = []
        texts, vectors = self.texts, []
        for name, own, rows, name_row in zip(
            texts.names, texts.sentences, texts.sentence_vectors, texts.name_vectors
        ):
            lines += [(name, sentence) for sentence in own or (fill(self.facts.template, name),)]
            vectors.append(rows if len(rows) else name_row[None])
        known = torch.cat(vectors).to(self.device)
        found: list[list[Closest]] = []
        for some in images.split(at_once(len(lines))):
            prompts = self.method.explain(some.to(self.device))
            values, places = (prompts @ known.to(prompts).T).topk(min(top, len(lines)))
            found += [
                [Closest(*lines[int(place)], value) for value, place in zip(*row)]
                for row in zip(values.tolist(), places.tolist())
            ]
        return found

    @torch.inference_mode()
    def decisive(self, images: Float[Tensor, "B D"]) -> list[Decisive | None]:
        """For each image the sentence of its predicted class without which the class would score lowest; None
        where no sentence raised it.

        Each sentence of the class is left out in turn, and the class scored anew by what is left: by its name
        alone where that is nothing. Other classes, and what was learned from images, stay as they are."""
        found: list[Decisive | None] = [None] * len(images)
        if self.method.needs_tower:  # it learned tokens, and reads no sentence when it predicts
            return found
        scores, method = self.logits(images), copy.deepcopy(self.method)
        predicted = scores.argmax(1)
        for row in predicted.unique().tolist():
            if not self.texts.sentences[row]:
                continue
            places = (predicted == row).nonzero()[:, 0]
            wider = replace(self, method=method, texts=self.texts.with_each_left_out(row))
            left_out = wider.logits(images[places])[:, len(self.texts.names) :]
            for place, own in zip(places.tolist(), left_out):
                found[place] = self._decided(scores[place], row, own)
        return found

    def _decided(
        self, scores: Float[Tensor, " C"], row: int, left_out: Float[Tensor, " N"]
    ) -> Decisive | None:
        """Of the scores of the predicted class without each of its sentences, the lowest."""
        names, lowest = self.texts.names, int(left_out.argmin())
        raised = float(scores[row] - left_out[lowest])
        if raised < LEAST_RAISED:
            return None
        others = scores.clone()
        others[row] = -torch.inf
        runner_up = names[int(others.argmax())]
        others[row] = left_out[lowest]
        chances = others.double().softmax(0)
        without = int(chances.argmax())
        sentence = self.texts.sentences[row][lowest]
        return Decisive(names[row], runner_up, sentence, raised, names[without], float(chances[without]))


def at_once(classes: int) -> int:
    """How many images are scored together, so that memory grows neither with images nor with classes."""
    return max(1, SCORES_AT_ONCE // classes)


@torch.inference_mode()
def predict_logits(method: Classifier, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
    """Scores on the CPU, in float32."""
    return method.score(images).float().cpu()


def open_backbone(
    run: Run,
    backbone: Backbone | str | None = None,
    *,
    device: str | None = None,
    sides: Sequence[str] = SIDES,
) -> Backbone:
    """The backbone a run was fitted on, or the given one, or one by name where it has moved; on the run's
    device where no other is named. Of its `sides`, which the run uses, each must be as it was.

    Errors: WordsightError where it gives other vectors than it did then."""
    if not run.facts.image_fingerprint:
        raise WordsightError(
            f"{run.folder} was fitted on feature matrices without a backbone; `wordsight.load` in Python "
            f"predicts from such matrices"
        )
    given = as_given(backbone)
    name = given.name if isinstance(given, Backbone) else given or run.settings.backbone
    if not isinstance(given, Backbone):
        device = device or device_or_cpu(run.settings.device)
        with if_moved(MOVED.format("backbone")):
            given = load_backbone(name, device=device, dtype=run.settings.dtype, text=len(sides) > 1)
    sides = [side for side in sides if getattr(run.facts, side)]  # a limber run may have read no text tower
    for side, found in zip(sides, prints_of(given, sides)):
        if found != getattr(run.facts, side):
            raise WordsightError(
                f"backbone {name!r} is not the one that {run.folder} was fitted on, or has changed since "
                f"({side} differs); its features would not fit. Give backbone=... where it has moved, or "
                f"fit again"
            )
    return given


def open_embedder(run: Run, backbone: Backbone | str | None = None, *, device: str | None = None) -> Backbone:
    """The backbone that a two_tower run became; on the run's device where no other is named."""
    backbone = as_given(backbone)
    if isinstance(backbone, str):
        raise WordsightError(
            f"{run.folder} is itself a backbone, whose parts it names; backbone={backbone!r} is for runs "
            f"over classes"
        )
    device = device or device_or_cpu(run.settings.device)
    return backbone or load_backbone(run.folder, device=device, dtype=run.settings.dtype)


def open_by_names(run: Run, names: Sequence[str], backbone: Backbone | str | None = None) -> Fitted:
    """Zero-shot by a two_tower run, which has no classes of its own, over these."""
    if len(set(names)) < max(2, len(names)):
        raise WordsightError(
            f"{run.folder} is a {run.settings.method}, a backbone without classes of its own; name at least "
            f"2 to choose among, each once: --classes a,b (class_names= in Python). `wordsight eval` "
            f"measures it on labelled images or captions"
        )
    return Fitted.by_names(open_embedder(run, backbone), names, run.settings.template)


def open_generator(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    backbone: Backbone | str | None = None,
    lm: str | None = None,
) -> Generator:
    """What writes about images, behind the name of a finished run of limber, or of an image-text-to-text
    model of transformers (MLLM): a folder or a hub name. `device` and `dtype` (of the LM) are the run's
    where none is named; `backbone` and `lm` name its own where these have moved. Errors: WordsightError for
    any other run or model, and where backbone or LM is not the one that a run was fitted to."""
    if not is_run(name):
        return _model(str(name), device, dtype, backbone or lm)
    run = Run.open(name)
    if not is_captioner(run):
        raise WordsightError(
            f"{str(name)!r} is a run of {run.settings.method}, which says nothing about images; give one of "
            f"limber: `wordsight fit method=limber data=...`"
        )
    backbone = open_backbone(run, backbone, device=device, sides=SIDES[:1])
    return captioner_of(run, backbone, _lm(run, backbone, lm, dtype))


def _model(name: str, device: str | None, dtype: str | None, backbone: Backbone | str | None) -> Generator:
    from wordsight.backbones.generator import Generator

    if backbone is not None:
        raise WordsightError(
            f"{name!r} is no run and brings its own image tower and LM; leave {backbone} out"
        )
    kind, _ = kind_of(name.removeprefix("hf:"), False)
    if kind != "mllm":
        raise WordsightError(
            f"{name!r} has no image input, or writes nothing; give a run of limber, or an "
            f"image-text-to-text model such as SmolVLM, LLaVA or Qwen2-VL"
        )
    found = load_backbone(name, device=device or "auto", dtype=dtype or "float32", text=False)
    assert isinstance(found, Generator)
    return found


def _lm(run: Run, backbone: Backbone, moved: str | None, dtype: str | None) -> PrefixedLM:
    from wordsight.backbones.prefixed import PrefixedLM

    name = moved or run.settings.settings.text
    with if_moved(MOVED.format("lm")):
        lm = PrefixedLM.from_base(name, device=backbone.device, dtype=dtype or run.settings.dtype)
    if lm.origin != run.facts.lm:
        raise WordsightError(
            f"the LM {name!r} is not the one that {run.folder} was fitted to, or has been replaced since: "
            f"its weights or tokens are others (or an older wordsight fitted it), and what was learned would "
            f"not fit. Give lm=... where it has moved, or fit again"
        )
    return lm


def captioner_of(run: Run, backbone: Backbone, lm: PrefixedLM) -> LimberGenerator:
    """What a run of limber became, on its LM and the backbone it was fitted on.

    Errors: WordsightError for weights that do not fit."""
    from wordsight.data.grids import grid_shape
    from wordsight.methods.limber import Limber
    from wordsight.methods.limber_generator import LimberGenerator

    own, path = run.settings.settings, run.folder / "weights.safetensors"
    tensors, _ = read_tensors(path, sealed=True)
    said = tensors.get("generator.2.bias")
    method = Limber(lm, own, grid_shape(backbone, own.tokens), backbone.dim, 0 if said is None else len(said))
    try:
        method.load_weights(tensors)
    except WordsightError as error:
        raise WordsightError(f"{path} does not fit {run.settings.method}: {error}") from error
    return LimberGenerator(backbone, method, name=str(run.folder))


def is_asking(run: Run) -> bool:
    """Whether a run asks a generator for classes (asked.py)."""
    return issubclass(resolve(METHODS, run.settings.method, "method"), Asking)


def is_captioner(run: Run) -> bool:
    """Whether a run says what images show."""
    return issubclass(resolve(METHODS, run.settings.method, "method"), Captioner)


def is_embedder(run: Run) -> bool:
    """Whether a run learned from pairs, and is a backbone."""
    return issubclass(resolve(METHODS, run.settings.method, "method"), Embedder)


def encode_classes(
    backbone: Backbone,
    facts: RunFacts,
    names: Sequence[str],
    sentences: Mapping[str, Sequence[str]],
    *,
    words: bool = True,
) -> ClassTexts:
    """Text vectors of classes, from the cache where they are in it. A class that `sentences` lacks has none.
    Without `words`, for a method that needs none, they are zero where the backbone has no text vectors.
    """
    if not words and not backbone.has_text:
        zeros, none = torch.zeros(len(names), backbone.dim), ((),) * len(names)
        return ClassTexts(tuple(names), zeros, none, (zeros[:0],) * len(names))
    known = {name: sentences.get(name, ()) for name in names}
    return class_texts(functools.partial(text_features, backbone), names, facts.template, known)


def facts_of(backbone: Backbone, class_names: Sequence[str], template: str, **more: Any) -> RunFacts:
    """What loading needs of a run over this backbone."""
    prints = {side: getattr(backbone, side) for side in ("image_fingerprint", "text_fingerprint")}
    return RunFacts(tuple(class_names), backbone.dim, backbone.logit_scale, template, **prints, **more)
