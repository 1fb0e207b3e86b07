"""Method: turns image features and class texts into scores. The roles that tasks and the one loop ask for.

The life of a classifier: it is made, `setup` sees the labelled images once, `set_classes` chooses what is
scored, `loss` is what the one loop minimises where it learns, `finish` ends that, and `logits` scores images.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wordsight.backbones import Backbone
from wordsight.config import TrainSettings, WordsightError
from wordsight.methods.pool import AT_ONCE, PoolLayer
from wordsight.methods.words import Words
from wordsight.sentences import ClassTexts
from wordsight.settings import NoSettings
from wordsight.tables import MethodEntry

if TYPE_CHECKING:
    from wordsight.config import RunSettings


class Space(NamedTuple):
    """What a method must know of the vectors where no backbone gave them: a feature matrix's width and
    scale.
    """

    dim: int  # D
    logit_scale: float  # zero-shot logits are logit_scale * cosine


class Labelled(NamedTuple):
    """Image features with their labels."""

    images: Float[Tensor, "n D"]
    labels: Int[Tensor, " n"]


class Pool(NamedTuple):
    """Images without labels, and what words say of all classes that they may show."""

    images: Float[Tensor, "N D"]
    texts: ClassTexts
    taught: Float[Tensor, "N C"] | None = None  # a teacher's scores of these classes, where a run names one


class FitData(NamedTuple):
    """What a method is fitted to. Test images are never among it."""

    images: Float[Tensor, "n V D"]  # V views of each; view 0 is the centre crop
    labels: Int[Tensor, " n"]
    texts: ClassTexts  # of the classes with labelled images, in label order
    seed: int
    val: Labelled | None = None  # validation images, given where a run `needs_val` and the data has them
    pool: Pool | None = None  # images without labels, where a run names some

    @property
    def centre(self) -> Float[Tensor, "n D"]:
        """The images' centre crops."""
        return self.images[:, 0]


class Method(nn.Module):
    """What all methods have: settings of their own, and sentences for settings that do not go together."""

    Settings: ClassVar[type] = NoSettings
    needs_labels: ClassVar[bool] = True  # False: no labelled image changes what it does
    needs_sentences: ClassVar[bool] = False  # whether sentences change what it does
    # whether it chooses by validation images, where the data has some (its learning rate is not meant)
    needs_val: ClassVar[bool] = False
    # module:function that fits a run of it, by settings, an open backbone or None and open data or None;
    # empty: as a classifier of image vectors
    fits: ClassVar[str] = ""

    @classmethod
    def check(cls, settings: RunSettings) -> None:
        """Errors: WordsightError where a run cannot be of these settings."""

    @classmethod
    def entry(cls, target: str, summary: str = "") -> MethodEntry:
        """What the table of methods says of it."""
        return MethodEntry(target, summary, cls.Settings, "kept", cls.needs_labels, cls.needs_sentences)

    @classmethod
    def training(cls, shots: int | None, own: Any = None) -> TrainSettings | None:
        """How it trains on so many labelled images a class with settings `own`, where nothing else is asked
        for; None: not at all.
        """
        return None


class Classifier(Method, ABC):
    """Scores classes for image features.

    What fitting decides is in `state_dict()` (parameters and persistent buffers) and goes to the run folder;
    what `set_classes` derives from words is not."""

    needs_words: ClassVar[bool] = True  # false: it is fitted and predicts without any text vector
    keeps_words: ClassVar[bool] = False  # whether it is nothing but words of one kind, whatever others have
    needs_tower: ClassVar[bool] = (
        False  # whether it learns the tokens of a text tower, and so needs a backbone
    )
    needs_pool: ClassVar[bool] = False  # whether it is nothing without images that have no labels
    training_only: ClassVar[tuple[str, ...]] = ()  # prefixes of tensors that prediction does without

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: Any):
        super().__init__()
        self.class_names = class_names  # the classes that have labelled images
        self.dim, self.logit_scale, self.settings = space.dim, space.logit_scale, settings
        self.given: Words | None = None  # of names, sentences and images; None: these as they are
        self.pooled: PoolLayer | None = None  # what images without labels add; None: there were none

    @classmethod
    def formed(cls, own: Any) -> type[Classifier]:
        """The class that scores with settings `own`: another one where a method has several forms."""
        return cls

    @classmethod
    def own_words(cls, own: Any = None) -> str:
        """What `words=auto` is for a method with settings `own`."""
        return "names"

    @classmethod
    def entry(cls, target: str, summary: str = "") -> MethodEntry:
        own = "kept" if cls.keeps_words else "given"
        words = "tokens" if cls.needs_tower else own if cls.needs_words else "none"
        return super().entry(target, summary)._replace(words=words)

    @classmethod
    def check(cls, settings: RunSettings) -> None:
        if cls.needs_tower and settings.words != "names":
            raise WordsightError(
                f"words={settings.words} gives class vectors, but method={settings.method} learns the tokens "
                f"of its class texts; leave words out"
            )
        if settings.teacher is not None and (settings.unlabelled is None or cls.needs_pool):
            needed = f"which {settings.method} classifies itself" if cls.needs_pool else "and there are none"
            raise WordsightError(
                f"teacher={settings.teacher} labels images without labels, {needed}; "
                + ("leave it out" if cls.needs_pool else "name some: unlabelled=FOLDER, or leave it out")
            )
        if settings.classes == "new" and settings.needs_labels:
            raise WordsightError(
                "classes=new would train on the new classes; fit with classes=base, which is tested on "
                "both halves"
            )

    # -- what is called from outside, each with the words that the method is given

    def give(self, words: str) -> Self:
        """Be given these words (see Words) from now on. Returns itself."""
        self.given = Words(words, self.dim, self.logit_scale) if words != "names" else None
        return self

    def give_pool(self, names: Sequence[str]) -> Self:
        """Be ready to learn from images without labels that may show these classes. Returns itself."""
        self.pooled = PoolLayer(names if self.needs_words else self.class_names, self.dim)
        return self

    @torch.no_grad()
    def absorb(self, data: FitData) -> None:
        """Learn from the pool, once all else is fitted. Called before the classes are set for prediction."""
        layer, pool = self.pooled, data.pool
        if layer is None or pool is None:
            return
        self.pooled = None
        texts = pool.texts if self.needs_words else data.texts
        self.choose(texts)
        place = {name: row for row, name in enumerate(texts.names)}
        rows = torch.tensor([place[name] for name in self.class_names]).to(data.labels)
        self.to(layer.bias.device)
        images = pool.images.to(layer.bias.device)
        scores = torch.cat([self.score(some) for some in images.split(AT_ONCE)])
        labelled, labels = data.centre.to(images), rows[data.labels].to(images.device)
        if not self.entry("").told_labels(self.given.kind if self.given else "names"):
            labelled, labels = labelled[:0], labels[:0]  # none may reach zero-shot, say, by this way either
        taught = pool.taught
        if taught is not None:
            columns = {name: row for row, name in enumerate(pool.texts.names)}
            taught = taught[:, [columns[name] for name in texts.names]].to(images)
        layer.fit(images, scores, labelled, labels, taught)
        self.pooled = layer

    def begin(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        """`setup`, after the words were calibrated where they are to be."""
        words = self.given
        if words is None:
            return self.setup(data)
        words.fit(data.centre, data.labels, data.texts)
        self._scale()
        val = data.val._replace(images=words.images(data.val.images)) if data.val else None
        pool = Pool(words.images(data.pool.images), words.texts(data.pool.texts)) if data.pool else None
        images, texts = words.images(data.images), words.texts(data.texts)
        return self.setup(data._replace(images=images, texts=texts, val=val, pool=pool))

    def choose(self, texts: ClassTexts) -> None:
        """`set_classes`."""
        self.set_classes(self.given.texts(texts) if self.given else texts)
        if self.pooled is not None:
            self.pooled.choose(texts.names)

    def score(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """`logits`."""
        scores = self.logits(self.given.images(images) if self.given else images)
        return self.pooled.add(scores, images) if self.pooled is not None else scores

    def traced(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """`score`, as a graph for a batch of any size can be traced of it."""
        scores = self.plain(self.given.images(images) if self.given else images)
        return self.pooled.add(scores, images) if self.pooled is not None else scores

    def explain(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """`prompt`."""
        return self.prompt(self.given.images(images) if self.given else images)

    def _scale(self) -> None:
        if self.given is not None and self.given.kind == "calibrated":
            self.logit_scale = float(self.given.scale)

    # -- what a method is ----------------------------------------------------------------------------------

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        """All of fitting that needs no gradient: closed forms, targets, calibration. Called before
        `set_classes`.

        Returns what the loop draws batches of: the labelled images, unless a method learns from something
        else."""
        return data.images, data.labels

    @abstractmethod
    def set_classes(self, texts: ClassTexts) -> None:
        """Choose the classes to score, by words. Classes with labelled images are known by their names; any
        others are new.
        """

    @abstractmethod
    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scores over the chosen classes; softmax gives probabilities."""

    def plain(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """`logits` without a loop over images or a size that depends on how many there are. Errors:
        WordsightError where there is no such form."""
        return self.logits(images)

    def weights(self) -> dict[str, Tensor]:
        """What a run keeps: every fitted tensor that prediction needs."""
        kept = self.state_dict().items()
        return {name: tensor for name, tensor in kept if not name.startswith(self.training_only)}

    def load_weights(self, found: Mapping[str, Tensor]) -> None:
        """Take what `weights` gave. Errors: WordsightError for a tensor too many, too few, or of another
        shape.
        """
        expected = self.weights()
        missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        if missing or extra:
            raise WordsightError(f"the tensors do not fit: missing {missing}, not known {extra}")
        for name, tensor in found.items():
            if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
                raise WordsightError(
                    f"{name} has shape {tuple(tensor.shape)} of {tensor.dtype}, not "
                    f"{tuple(expected[name].shape)} of {expected[name].dtype}"
                )
        self.load_state_dict(found, strict=False)  # what is absent only training needs
        self._scale()

    def rows_of(self, texts: ClassTexts) -> Int[Tensor, " C"]:
        """Which of `class_names` each class is; -1 for a class without labelled images."""
        place = {name: row for row, name in enumerate(self.class_names)}
        return torch.tensor([place.get(name, -1) for name in texts.names])

    def prompt(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The unit vector in text space that sentences are compared with when an image is explained. Here:
        the image itself."""
        return images


class Asking(Method, ABC):
    """Asks a generator which class an image shows; nothing of it are vectors."""

    needs_labels = False

    @classmethod
    @abstractmethod
    def model_name(cls, settings: RunSettings) -> str:
        """Who is asked. Errors: WordsightError where nobody was named."""

    @classmethod
    def own_words(cls, own: Any = None) -> str:
        return "names"


class PairMethod(Method):
    """Learned from image-text pairs."""

    needs_labels = False  # captions are enough

    @classmethod
    def check(cls, settings: RunSettings) -> None:
        if settings.teacher is not None:
            raise WordsightError(
                f"teacher={settings.teacher} labels images without labels, but method={settings.method} "
                f"learns from pairs; its own teacher is settings.teacher"
            )
        if settings.words != "names":
            raise WordsightError(
                f"words={settings.words} is of class vectors, but method={settings.method} learns from "
                f"pairs; leave it out"
            )
        if settings.classes != "all":
            raise WordsightError(
                f"classes={settings.classes} chooses labelled classes, but method={settings.method} learns "
                f"from pairs; leave it out"
            )
        if settings.train is not None and len(settings.train.rates) > 1:
            raise WordsightError(
                f"train.lr={settings.train.lr} is to be chosen on labelled validation images, but method="
                f"{settings.method} learns from pairs; give one rate"
            )


class Embedder(PairMethod):
    """Gives images and texts vectors in one space. What comes out is a backbone."""


class Captioner(PairMethod):
    """Says in words what images show. What comes out is a generator."""


class Learner(Method, ABC):
    """What the one loop of train.py trains."""

    training_defaults: ClassVar[TrainSettings] = TrainSettings()
    # terms of the loss that hold what is learned near where it began: they begin at nothing, and are no sign
    # that training gets worse
    pulls: ClassVar[tuple[str, ...]] = ()
    # ((1, 50), (4, 100)): up to 1 shot 50 epochs, up to 4 shots 100, above the default
    epochs_by_shots: ClassVar[tuple[tuple[int, int], ...]] = ()

    @classmethod
    def training(cls, shots: int | None, own: Any = None) -> TrainSettings | None:
        """How it trains on so many labelled images a class, where nothing else is asked for."""
        fewer = [epochs for most, epochs in cls.epochs_by_shots if shots is not None and shots <= most]
        return dataclasses.replace(cls.training_defaults, epochs=fewer[0]) if fewer else cls.training_defaults

    def finish(self) -> None:
        """What is decided after the loop. Called before the classes are set for prediction."""

    @property
    def condition(self) -> str:
        """In words, what may have gone wrong where training gets worse, such as a learned scale; empty:
        nothing that shows."""
        return ""

    @property
    def at_bound(self) -> bool:
        """Whether something learned stands at its bound, so that a rising loss means that it has run away."""
        return False

    @abstractmethod
    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named, weighted terms for a batch {images [B, D], labels [B]}; the loop adds them up."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters, each group with `lr_scale`, its multiple of the learning rate."""

        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr_scale": 1.0}]
