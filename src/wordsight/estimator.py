"""wordsight.Classifier: a method over a backbone, in scikit-learn's manner."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from wordsight.backbones import Backbone, as_given, load_backbone, pick_device, unit
from wordsight.backbones.hub import run_folder
from wordsight.backbones.vectors import Vectors
from wordsight.config import METHODS, RunSettings, WordsightError, resolve
from wordsight.data.given import check_spoken, encoded_labels, features_of, is_matrix, known_labels, names_in
from wordsight.data.pictures import pictures_of
from wordsight.data.splits import digests
from wordsight.doubts import GIVEN, NONE, Doubts, conformal
from wordsight.doubts.found import of_training
from wordsight.files import in_use
from wordsight.fit import DEFAULT_SENTENCES
from wordsight.fitted import Decisive, Fitted, encode_classes, facts_of, is_asking, is_embedder, open_by_names
from wordsight.fitting import fit_method
from wordsight.methods import Classifier as Method
from wordsight.methods import FitData
from wordsight.push import push
from wordsight.reader import to_dict
from wordsight.runs import NO_BACKBONE, Run, RunFacts
from wordsight.sentences import ClassTexts, read_sentences
from wordsight.sentences.self_written import sentences_for
from wordsight.teachers import given_pool

FROM_PYTHON = "python"  # what config.yaml names as data where the images came from Python
# settings that load gives back to the constructor
CARRIED = ("words", "seed", "views", "flip", "device", "dtype")


class Classifier(ClassifierMixin, BaseEstimator):
    """Few-shot image classification taught by words.

    `fit(images, labels)`: images are paths, PIL images, uint8 arrays [H, W, 3], or a ready feature matrix [n,
    D] of the backbone's width. Labels that are texts are the class names; of others `class_names` has the
    names in the order of the sorted labels, or they are str(label). `backbone=None` works on feature matrices
    alone: without a text tower, the mean of each class's training features stands in for its words.

    What it is made with is what `wordsight fit` takes under the same names (`wordsight show run` has them
    all): `backbone`, a hub name, folder, `micro`, or one that is loaded; `method`, of `wordsight list`, with
    its own `settings` and, where it trains, `train`; `sentences`, {class: [sentence, ...]}, its JSON file or
    a template set (None: `clip7`), with `aliases` {class: its key there}; `template`, which names stand in;
    `words`, of which class vectors are made; how many `views` of a training image: its centre crop, then
    augmented ones, mirrored where `flip` is true; `device` and `dtype` of the towers; `seed`.

    After fitting: `classes_`, `n_features_in_`, `method_`, `backbone_`, `skipped_` (pairs of name, reason).
    Errors: WordsightError (a ValueError), in `predict` and its kin of images that cannot be read, too.
    """

    def __init__(
        self,
        backbone: str | Backbone | None = "openai/clip-vit-base-patch16",
        method: str = "aape",
        *,
        sentences: str | Mapping[str, Sequence[str]] | None = None,
        aliases: str | Mapping[str, str] | None = None,
        template: str = RunSettings.template,
        class_names: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        words: str = "auto",
        seed: int = 1,
        views: int = 1,
        flip: bool = True,
        device: str = "auto",
        dtype: str = "float32",
    ):
        self.backbone = backbone
        self.method = method
        self.sentences = sentences
        self.aliases = aliases
        self.template = template
        self.class_names = class_names
        self.words = words
        self.settings = settings
        self.train = train
        self.seed = seed
        self.views = views
        self.flip = flip
        self.device = device
        self.dtype = dtype

    # -- scikit-learn's verbs --

    def fit(
        self,
        X: Any,
        y: Sequence[Any],
        *,
        unlabelled: Any = None,
        teacher: Backbone | str | None = None,
    ) -> Classifier:
        """Fit on images (or features) and one label each, and on `unlabelled` ones of the same kind, if any.
        A `teacher`, another, larger backbone or a file of its vectors of these, labels them softly. An image
        that cannot be read is left out and, where it had a label, listed in `skipped_`."""
        settings = self._run_settings(unlabelled, teacher)
        if y is None:
            raise WordsightError("Classifier requires y to be passed, but the target y is None")
        if self.backbone is None or is_matrix(X):
            # scikit-learn has no types, and its default for y is a text
            X, y = validate_data(self, X, y, dtype=np.float32)  # pyright: ignore[reportArgumentType]
        else:
            X = pictures_of(X)
        self.classes_, labels = encoded_labels(y, len(X))
        names = self._names()
        backbone = self._open_backbone()
        features = features_of(X, backbone, views=settings.views, flip=settings.flip)
        labels, self.skipped_ = torch.from_numpy(labels)[features.kept], features.skipped
        facts, sentences, texts = self._words(backbone, names, features.vectors, labels)
        data = FitData(features.vectors, labels, texts, settings.seed)
        if unlabelled is not None:
            data = data._replace(pool=given_pool(unlabelled, backbone, texts, settings, teacher))
            facts = replace(facts, pool_classes=facts.classes)
        method = fit_method(settings, facts, data, backbone)
        self.fitted_, self.settings_ = Fitted(method, backbone, facts, sentences, texts), settings
        told = settings.needs_labels
        self.doubts_ = of_training(data.centre, labels, len(names)) if told else NONE
        self.n_features_in_ = facts.dim
        self.seen_ = {digest for digest in digests(X) if digest is not None} if isinstance(X, list) else set()
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [n, C], whose softmax is `predict_proba`; with two classes the second one's log-odds [n]
        (scikit-learn's way)."""
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [n, C] over `classes_`."""
        return self._logits(X).double().softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The label of each image, of the type it was fitted on."""
        images = self._images(X)
        return self.classes_[self.fitted_.best(images).predicted.numpy()]

    # -- beyond scikit-learn --

    @property
    def method_(self) -> Method:
        """The fitted method."""
        return self.fitted_.method

    @property
    def backbone_(self) -> Backbone | None:
        """The backbone that images and texts go through; None on feature matrices alone."""
        return self.fitted_.backbone

    def encode(self, images: Sequence[Any]) -> np.ndarray:
        """Unit image vectors [n, D], float32: a feature matrix that fit and predict take in place of the
        images."""
        backbone = self._open_backbone()
        if backbone is None:
            raise WordsightError("backbone=None has no image tower to encode with; name a backbone")
        return self._readable(images, backbone)[:, 0].numpy()

    def with_classes(
        self, class_names: Iterable[str], sentences: str | Mapping[str, Sequence[str]] | None = None
    ) -> Classifier:
        """The same fitted method over other classes, chosen by name: no retraining. Classes it was fitted on
        keep what they learned.

        `sentences` describes classes it was not fitted on; one without sentences is known by its name alone.
        """
        check_is_fitted(self, "fitted_")
        names, fitted = names_in(class_names, "class_names"), self.fitted_
        if isinstance(sentences, Mapping):
            known = read_sentences(sentences, [name for name in names if name in sentences])
        else:
            known = fitted.sentences_of_new(names, sentences)
        other = copy.copy(self)
        other.fitted_, other.classes_ = fitted.with_classes(names, known), np.asarray(names)
        other.doubts_ = NONE  # which are of the classes it was fitted to
        return other

    def explain(self, X: Any, top: int = 3) -> list[list[tuple[str, str, float]]]:
        """For each image the sentences closest to its prompt: (class, sentence, cosine), the closest
        first.
        """
        images = self._images(X)
        return [
            [(near.name, near.sentence, near.cosine) for near in row]
            for row in self.fitted_.closest(images, top)
        ]

    def decisive(self, X: Any) -> list[Decisive | None]:
        """For each image the sentence that raised its class over the runner-up most, and what would be
        predicted without it; None where no sentence raised it."""
        images = self._images(X)
        return self.fitted_.decisive(images)

    def calibrate(self, X: Any, y: Sequence[Any]) -> Classifier:
        """Learn from labelled images what `predict_set` needs; `save` keeps it. Errors: WordsightError for
        images that it was fitted to, of which it is surer than of others."""
        check_is_fitted(self, "fitted_")
        if not is_matrix(X) and (seen := self.seen_.intersection(digests(pictures_of(X)))):
            raise WordsightError(
                f"{len(seen)} of these {len(X)} images are ones that it was fitted to; calibrate on others"
            )
        chances = self.predict_proba(X)
        labels = known_labels(y, self.classes_, len(chances))
        self.doubts_ = self.doubts_.calibrated(chances[np.arange(len(labels)), labels], GIVEN)
        return self

    def predict_set(self, X: Any, error: float = 0.1) -> list[list[Any]]:
        """For each image the labels that are not ruled out, the likeliest first: the right one is among them
        in a share 1 - `error` of images or more, on the mean. Errors: WordsightError before `calibrate`, or
        where its images are too few."""
        check_is_fitted(self, "fitted_")
        lowest, chances = self.doubts_.lowest(error), self.predict_proba(X)
        order = [row.argsort()[::-1][: conformal.among(row, lowest).sum()] for row in chances]
        return [self.classes_[places].tolist() for places in order]

    def unlike(self, X: Any) -> np.ndarray | None:
        """Whether each image is unlike all training images; None where it learned from none."""
        images = self._images(X).numpy()
        return self.doubts_.unlike(images)

    def save(self, folder: str | Path) -> Path:
        """Write a run folder, which `wordsight.load` and every verb of the command line read. One of another
        fit is written over, and what was measured of that is gone."""
        check_is_fitted(self, "fitted_")
        fitted = self.fitted_
        if fitted.texts.names != fitted.facts.classes:
            raise WordsightError(
                "a classifier over other classes is not saved; save the fitted one, and call with_classes "
                "on what `wordsight.load` gives"
            )
        facts = fitted.facts
        if self.class_names is not None or self.classes_.dtype.kind != "U":  # else labels are the names
            labels = tuple(self.classes_.tolist())
            facts = replace(facts, labels=labels, label_type=self.classes_.dtype.str)
        with in_use(Path(folder).expanduser()):
            run = Run.start(folder, self.settings_, facts, fitted.sentences)
            before = run.content()
            run.keep_seen(self.seen_)
            alone = {"name_vectors": fitted.texts.name_vectors} if fitted.backbone is None else {}
            run.keep_weights(fitted.method.weights(), alone)
            if run.content() != before:
                run.forget()
            self.doubts_.write(run.folder)
            run.finish()
        return run.folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        licence: str | None = None,
        commit_message: str = "Add a Wordsight classifier",
    ) -> str:
        """Upload the run as `export` writes it; `wordsight.load("hf:org/name")` reads it. A backbone that the
        hub has is named, not copied. Returns the commit's address."""
        given = {"private": private, "token": token, "licence": licence, "commit_message": commit_message}
        with tempfile.TemporaryDirectory() as folder:
            return push(self.save(Path(folder) / "run"), repo_id, backbone=self.backbone_, **given)

    # -- inside --

    def _run_settings(self, unlabelled: Any = None, teacher: Backbone | str | None = None) -> RunSettings:
        given = {name: getattr(self, name) for name in ("method", "template", *CARRIED)}
        run = RunSettings(
            data=FROM_PYTHON,
            backbone=_name_of(self.backbone) or NO_BACKBONE,
            unlabelled=None if unlabelled is None else FROM_PYTHON,
            teacher=_name_of(teacher),
            shots=None,
            settings=self.settings or {},
            train=self.train or {},
            **given,
        )
        pick_device(run.device)
        if not issubclass(resolve(METHODS, run.method, "method"), Method):
            raise WordsightError(f"method={run.method!r} classifies no vectors; `wordsight.fit` fits it")
        return run

    def _names(self) -> tuple[str, ...]:
        if self.class_names is None:
            return tuple(str(label) for label in self.classes_)
        names = names_in(self.class_names, "class_names")
        if len(names) != len(self.classes_):
            raise WordsightError(
                f"class_names has {len(names)} names, the labels have {len(self.classes_)} classes"
            )
        return names

    def _open_backbone(self) -> Backbone | None:
        backbone = as_given(self.backbone)
        if isinstance(backbone, str):
            return load_backbone(backbone, device=self.device, dtype=self.dtype)
        return backbone

    def _words(
        self,
        backbone: Backbone | None,
        names: tuple[str, ...],
        vectors: Float[Tensor, "n V D"],
        labels: Tensor,
    ) -> tuple[RunFacts, Mapping[str, tuple[str, ...]], ClassTexts]:
        """What a run knows of these classes: facts, sentences and their vectors."""
        if backbone is None:
            facts = RunFacts(names, vectors.shape[-1], 1.0, self.template)
            return facts, dict.fromkeys(names, ()), _prototypes(names, vectors[:, 0], labels)
        check_spoken(names, self.method)
        own = isinstance(backbone, Vectors)  # which brings the vectors of its names and sentences
        facts = facts_of(backbone, names, "{}" if own else self.template)
        source = self.sentences if own or self.sentences is not None else DEFAULT_SENTENCES
        sentences = sentences_for(source, names, self.aliases, backbone)
        return facts, sentences, encode_classes(backbone, facts, names, sentences)

    def _readable(self, X: Any, backbone: Backbone | None) -> Float[Tensor, "n V D"]:
        found = features_of(X, backbone, flip=self.flip)
        for name, reason in found.skipped:
            raise WordsightError(f"{len(found.skipped)} images cannot be read; the first: {name}: {reason}")
        return found.vectors

    def _images(self, X: Any) -> Float[Tensor, "n D"]:
        """Unit vectors of what a fitted classifier is asked about."""
        check_is_fitted(self, "fitted_")
        backbone = self.fitted_.backbone
        if backbone is None or is_matrix(X):
            X = validate_data(self, X, reset=False, dtype=np.float32 if backbone is not None else np.float64)
        return self._readable(X, backbone)[:, 0]

    def _logits(self, X: Any) -> Float[Tensor, "n C"]:
        images = self._images(X)
        return self.fitted_.logits(images)


def load(
    folder: str | Path, *, backbone: Backbone | str | None = None, class_names: Sequence[str] = ()
) -> Classifier:
    """The classifier in a run folder, or in a hub repository as `hf:org/name`. It predicts labels of the type
    that it was fitted on.

    `class_names` chooses among other classes, by name (`with_classes`); a two_tower or aape_captions, which
    has none of its own, needs two or more, and scores them zero-shot. `backbone` names it where it has moved;
    it must be the same by content. Errors: WordsightError, for what scores no classes (limber), too.
    """
    run = Run.open(run_folder(folder))
    if is_asking(run):
        raise WordsightError(
            f"{folder} asks a model about images and is no classifier of vectors; "
            f"`wordsight.predict({str(folder)!r}, images)` asks it, as `wordsight predict` does"
        )
    if is_embedder(run):
        fitted = open_by_names(run, names_in(class_names, "class_names"), backbone)
        classifier = Classifier(str(run.folder), "zero_shot", template=run.settings.template)
        _adopt(classifier, fitted, classifier._run_settings())
        return classifier
    settings, fitted = run.settings, Fitted.open(run, backbone)
    classifier = Classifier(
        None if settings.backbone == NO_BACKBONE else backbone or settings.backbone,
        settings.method,
        settings=to_dict(settings.settings),
        train=to_dict(settings.train) if settings.train else None,
        template=fitted.facts.template,
        sentences={name: lines for name, lines in fitted.sentences.items() if lines} or None,
        **{name: getattr(settings, name) for name in CARRIED},
    )
    pooled = {"unlabelled": settings.unlabelled, "teacher": settings.teacher}
    _adopt(classifier, fitted, replace(classifier._run_settings(), **pooled))
    classifier.seen_, classifier.doubts_ = run.seen(), Doubts.read(run.folder)
    if fitted.facts.labels:
        classifier.classes_ = np.array(fitted.facts.labels, dtype=fitted.facts.label_type or None)
    return classifier.with_classes(class_names) if class_names else classifier


def _adopt(classifier: Classifier, fitted: Fitted, settings: RunSettings) -> None:
    """What `fit` sets, of a method that was fitted elsewhere."""
    classifier.fitted_, classifier.classes_ = fitted, np.asarray(fitted.texts.names)
    classifier.skipped_, classifier.seen_, classifier.n_features_in_ = [], set(), fitted.facts.dim
    classifier.settings_, classifier.doubts_ = settings, NONE


def _name_of(backbone: Backbone | str | None) -> str | None:
    return given.name if isinstance(given := as_given(backbone), Backbone) else given


def _prototypes(names: tuple[str, ...], vectors: Float[Tensor, "n D"], labels: Tensor) -> ClassTexts:
    """Where there is no text tower: each class's mean training vector in place of its words."""
    means = unit(torch.zeros(len(names), vectors.shape[1]).index_add_(0, labels, vectors))
    return ClassTexts(names, means, ((),) * len(names), (means[:0],) * len(names))
