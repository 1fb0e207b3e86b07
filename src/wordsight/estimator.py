"""wordsight.Classifier: a method over a backbone, in scikit-learn's manner."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from wordsight.backbones import Backbone, load_backbone, unit
from wordsight.config import METHODS, RunSettings, WordsightError, build, resolve
from wordsight.data import Picture
from wordsight.data.features import image_features
from wordsight.files import write_file
from wordsight.methods import Embedder, NoSettings
from wordsight.methods.zero_shot import ZeroShot
from wordsight.runs import Run, RunFacts, build_method, train_settings
from wordsight.sentences import ClassTexts, fill, read_sentences
from wordsight.tasks.classify import (
    DEFAULT_SENTENCES,
    check_settings,
    encode_classes,
    facts_of,
    fit_method,
    open_backbone,
    predict_logits,
)
from wordsight.tasks.generate import sentences_for

FROM_PYTHON = "python"  # what config.yaml names as data where the images came from Python
NO_BACKBONE = "none"  # and as backbone where there was none
CARRIED = (
    "settings",
    "train",
    "seed",
    "views",
    "flip",
    "device",
    "dtype",
)  # settings that load gives back to the constructor


class Classifier(ClassifierMixin, BaseEstimator):
    """Few-shot image classification taught by words.

    `fit(images, labels)`: images are paths, PIL images, uint8 arrays [H, W, 3], or a ready feature matrix [n,
    D] of the backbone's width. With text labels the class names are the labels; with numbers, give
    `class_names` in the order of the sorted labels. `backbone=None` works on feature matrices alone: without
    a text tower, the mean of each class's training features stands in for its words.

    After fitting: `classes_`, `n_features_in_` (on feature matrices), `method_`, `backbone_`, `skipped_`
    (pairs of name and reason). Errors: WordsightError (a ValueError) with the value and what would be right.
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
        self.settings = settings
        self.train = train
        self.seed = seed
        self.views = views
        self.flip = flip
        self.device = device
        self.dtype = dtype

    # -- scikit-learn's verbs --------------------------------------------------------------------------------

    def fit(self, X: Any, y: Sequence[Any]) -> Classifier:
        """Fit on images (or features) and one label each. An image that cannot be read is left out and listed
        in `skipped_`.
        """
        settings = self._run_settings()
        if y is None:
            raise WordsightError("Classifier requires y to be passed, but the target y is None")
        if self.backbone is None or _is_matrix(X):
            X, y = validate_data(self, X, y, dtype=np.float32)
        else:
            X = pictures_of(X)
        y = column_or_1d(y, warn=True)
        if len(X) != len(y):
            raise WordsightError(f"{len(X)} images and {len(y)} labels; each image needs one label")
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise WordsightError(
                f"all labels are of one class, {str(self.classes_[0])!r}; at least 2 classes are needed to "
                f"choose among"
            )
        names = self._names()
        self.backbone_ = self._open_backbone()
        vectors, kept, self.skipped_ = self._vectors(X, self.views)
        labels = torch.from_numpy(labels)[kept]
        if self.backbone_ is None:
            self.facts_ = RunFacts(names, vectors.shape[-1], 1.0, self.template)
            self.sentences_ = dict.fromkeys(names, ())
            texts = _prototypes(names, vectors[:, 0], labels)
        else:
            self.facts_ = facts_of(self.backbone_, names, self.template)
            source = self.sentences if self.sentences is not None else DEFAULT_SENTENCES
            self.sentences_ = sentences_for(source, names, self.aliases, self.backbone_)
            texts = encode_classes(self.backbone_, self.facts_, names, self.sentences_)
        if self.classes_.dtype.kind in "iu":
            self.facts_ = replace(self.facts_, labels=tuple(self.classes_.tolist()))
        self.texts_, self.n_features_in_ = texts, self.facts_.dim
        torch.manual_seed(settings.seed)
        self.method_ = build_method(settings, self.facts_)
        self.method_.attach(self.backbone_)
        fit_method(
            self.method_, vectors, labels, texts, train_settings(settings), settings.seed, self._device()
        )
        if self.backbone_ is None:
            # matrices of a few columns leave float32 too little room for scikit-learn's checks
            self.method_.double()
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [n, C], whose softmax is `predict_proba`; with two classes the second one's log-odds [n]
        (scikit-learn's way).
        """
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        return self._logits(X).double().softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        chosen = self._logits(X).argmax(1).numpy()
        return self.classes_[chosen]

    # -- beyond scikit-learn ---------------------------------------------------------------------------------

    def encode(self, images: Sequence[Any]) -> np.ndarray:
        """Unit image vectors [n, D], float32: a feature matrix that fit and predict take in place of the
        images.
        """
        self.backbone_ = self._open_backbone()
        if self.backbone_ is None:
            raise WordsightError("backbone=None has no image tower to encode with; name a backbone")
        return self._readable(images)[:, 0].numpy()

    def with_classes(
        self, class_names: Sequence[str], sentences: str | Mapping[str, Sequence[str]] | None = None
    ) -> Classifier:
        """The same fitted method over other classes, chosen by name: no retraining. Classes it was fitted on
        keep what they learned.

        `sentences` describes classes it was not fitted on; one without sentences is known by its name alone.
        """
        check_is_fitted(self, "method_")
        names = tuple(class_names)
        if self.backbone_ is None:
            raise WordsightError(
                "new classes need words: fit with a backbone, which has a text tower, to use with_classes"
            )
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise WordsightError(
                f"{list(names)} cannot be chosen among; give at least 2 class names, each once"
            )
        known = {name: self.sentences_.get(name, ()) for name in names}
        if isinstance(sentences, Mapping):
            known |= read_sentences(sentences, [name for name in names if name in sentences])
        elif sentences is not None:
            known |= sentences_for(
                sentences, [name for name in names if name not in self.facts_.classes], None, self.backbone_
            )
        other = copy.copy(self)
        other.method_, other.classes_, other.sentences_ = (
            copy.deepcopy(self.method_),
            np.asarray(names),
            self.sentences_ | known,
        )
        other.texts_ = encode_classes(self.backbone_, self.facts_, names, known)
        other.method_.bind(other.texts_)
        other.method_.to(self._device())
        return other

    def explain(self, X: Any, top: int = 3) -> list[list[tuple[str, str, float]]]:
        """For each image the sentences closest to what the method says about it: (class, sentence, cosine),
        the closest first.
        """
        images, texts = self._seen(X), self.texts_
        lines, vectors = [], []
        for name, sentences, rows, name_row in zip(
            texts.names, texts.sentences, texts.sentence_vectors, texts.name_vectors
        ):
            lines += [(name, sentence) for sentence in sentences or (fill(self.facts_.template, name),)]
            vectors.append(rows if len(rows) else name_row[None])
        with torch.inference_mode():
            said = self.method_.prompt(images)
            values, places = (said @ torch.cat(vectors).to(said).T).topk(min(top, len(lines)))
        return [
            [(*lines[place], value) for value, place in zip(*pair)]
            for pair in zip(values.tolist(), places.tolist())
        ]

    def save(self, folder: str | Path) -> Path:
        """Write a run folder, which `wordsight.load` and every verb of the command line read."""
        check_is_fitted(self, "method_")
        if self.texts_.names != self.facts_.classes:
            raise WordsightError(
                "a classifier over other classes is not saved; save the fitted one, and call with_classes "
                "on what `wordsight.load` gives"
            )
        run = Run.start(folder, self._run_settings(), self.facts_, self.sentences_)
        run.finish(self.method_, {"name_vectors": self.texts_.name_vectors} if self.backbone_ is None else {})
        return run.folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Add a Wordsight classifier",
    ) -> str:
        """Upload the run folder with a model card; `wordsight.load("hf:org/name")` reads it. Returns the
        commit's address.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            write_file(Path(folder) / "README.md", self._card(repo_id))
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message))

    # -- inside ----------------------------------------------------------------------------------------------

    def _run_settings(self) -> RunSettings:
        backbone = (
            self.backbone if isinstance(self.backbone, str) else getattr(self.backbone, "name", NO_BACKBONE)
        )
        values = {
            name: getattr(self, name)
            for name in ("method", "seed", "views", "flip", "device", "dtype", "template")
        }
        values |= {"settings": dict(self.settings or {}), "train": dict(self.train or {})}
        return check_settings(
            build(RunSettings, {"data": FROM_PYTHON, "backbone": backbone, "shots": None, **values})
        )

    def _names(self) -> tuple[str, ...]:
        if self.class_names is None:
            names = tuple(str(label) for label in self.classes_)
        elif len(self.class_names) == len(self.classes_):
            names = tuple(self.class_names)
        else:
            raise WordsightError(
                f"class_names has {len(self.class_names)} names, the labels have {len(self.classes_)} classes"
            )
        return names

    def _open_backbone(self) -> Backbone | None:
        return (
            load_backbone(self.backbone, device=self.device, dtype=self.dtype)
            if isinstance(self.backbone, str)
            else self.backbone
        )

    def _device(self) -> torch.device:
        return self.backbone_.device if self.backbone_ is not None else torch.device("cpu")

    def _vectors(
        self, X: Any, views: int = 1
    ) -> tuple[Float[Tensor, "n V D"], list[int], list[tuple[str, str]]]:
        """Unit vectors of what could be read, which those were, and what was skipped."""
        if self.backbone_ is None or _is_matrix(X):
            matrix = torch.from_numpy(np.array(X))
            if self.backbone_ is not None and matrix.shape[1] != self.backbone_.dim:
                raise WordsightError(
                    f"a feature matrix of width {matrix.shape[1]} does not fit backbone "
                    f"{self.backbone_.name!r}, whose vectors have {self.backbone_.dim}"
                )
            return unit(matrix)[:, None], list(range(len(matrix))), []
        features = image_features(self.backbone_, pictures_of(X), views=views, flip=self.flip)
        return features.vectors, features.kept, features.skipped

    def _readable(self, X: Any) -> Float[Tensor, "n V D"]:
        vectors, _, skipped = self._vectors(X)
        if skipped:
            raise WordsightError(
                f"{len(skipped)} images cannot be read; the first: {skipped[0][0]}: {skipped[0][1]}"
            )
        return vectors

    def _seen(self, X: Any) -> Float[Tensor, "n D"]:
        """Unit vectors of what a fitted classifier is asked about."""
        check_is_fitted(self, "method_")
        if self.backbone_ is None or _is_matrix(X):
            X = validate_data(
                self, X, reset=False, dtype=np.float32 if self.backbone_ is not None else np.float64
            )
        return self._readable(X)[:, 0].to(self._device())

    def _logits(self, X: Any) -> Float[Tensor, "n C"]:
        images = self._seen(X)
        return predict_logits(self.method_, images)

    def _card(self, repo_id: str) -> str:
        settings, classes = self._run_settings(), ", ".join(self.facts_.classes[:50])
        more = "" if len(self.facts_.classes) <= 50 else f" and {len(self.facts_.classes) - 50} more"
        return (
            f"---\nlibrary_name: wordsight\npipeline_tag: image-classification\ntags: [wordsight, "
            f"{settings.method}, few-shot]\n---\n"
            f"# {repo_id}\n\nAn image classifier taught by words: method `{settings.method}` over the "
            f"frozen backbone `{settings.backbone}`.\n\n"
            f"```python\nimport wordsight\n\nclf = "
            f'wordsight.load("hf:{repo_id}")\nclf.predict(["image.jpg"])\n```\n\nClasses: '
            f"{classes}{more}.\n"
        )


def load(
    folder: str | Path, *, backbone: Backbone | None = None, class_names: Sequence[str] = ()
) -> Classifier:
    """The classifier in a run folder, or in a hub repository as `hf:org/name`. It predicts class names, or
    the whole numbers it was fitted on.

    `class_names` chooses among other classes, by name (`with_classes`). A two_tower has no classes of its
    own, and scores these zero-shot."""
    if str(folder).startswith("hf:"):
        folder = _download(str(folder).removeprefix("hf:"))
    run = Run.open(folder)
    if issubclass(resolve(METHODS, run.settings.method, "method"), Embedder):
        return _zero_shot(
            run,
            backbone or load_backbone(run.folder, device=run.settings.device, dtype=run.settings.dtype),
            tuple(class_names),
        )
    classifier = _fitted(run, backbone)
    return classifier.with_classes(class_names) if class_names else classifier


def _zero_shot(run: Run, backbone: Backbone, names: tuple[str, ...]) -> Classifier:
    if len(set(names)) < max(2, len(names)):
        raise WordsightError(
            f"{run.folder} is a two_tower, a backbone without classes of its own; name at least 2 to "
            f"choose among, each once: --classes a,b "
            "(class_names= in Python). `wordsight eval` measures it on labelled images or captions"
        )
    classifier = Classifier(str(run.folder), "zero_shot", template=run.settings.template)
    facts = facts_of(backbone, names, run.settings.template)
    classifier.facts_, classifier.sentences_, classifier.skipped_, classifier.n_features_in_ = (
        facts,
        {},
        [],
        facts.dim,
    )
    classifier.classes_, classifier.backbone_ = np.asarray(names), backbone
    classifier.texts_ = encode_classes(backbone, facts, names, dict.fromkeys(names, ()))
    classifier.method_ = ZeroShot(names, facts.dim, facts.logit_scale, NoSettings())
    classifier.method_.bind(classifier.texts_)
    classifier.method_.to(classifier._device())
    return classifier


def _fitted(run: Run, backbone: Backbone | None) -> Classifier:
    settings, facts = run.settings, run.facts
    classifier = Classifier(
        settings.backbone,
        settings.method,
        **{name: getattr(settings, name) for name in CARRIED},
        template=facts.template,
    )
    classifier.facts_, classifier.sentences_, classifier.skipped_, classifier.n_features_in_ = (
        facts,
        run.sentences,
        [],
        facts.dim,
    )
    classifier.classes_ = np.asarray(facts.labels or facts.classes)
    if settings.backbone == NO_BACKBONE:
        classifier.backbone = classifier.backbone_ = None
        vectors = run.extra("name_vectors")
        classifier.texts_ = ClassTexts(
            facts.classes, vectors, ((),) * len(vectors), (vectors[:0],) * len(vectors)
        )
    else:
        classifier.backbone_ = open_backbone(run, backbone)
        classifier.texts_ = encode_classes(classifier.backbone_, facts, facts.classes, classifier.sentences_)
    classifier.method_ = run.method()
    classifier.method_.attach(classifier.backbone_)
    classifier.method_.bind(classifier.texts_)
    classifier.method_.to(classifier._device())
    if classifier.backbone_ is None:
        classifier.method_.double()
    return classifier


def pictures_of(images: Sequence[Any]) -> list[Picture]:
    """Paths, PIL images and arrays as pictures. Errors: WordsightError for anything else."""
    if isinstance(images, (str, Path, Image.Image)):
        raise WordsightError(f"expected a list of images, not one {type(images).__name__}; put it in a list")
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[-1] in (3, 4):
        raise WordsightError(
            f"expected a list of images; an array of shape {images.shape} is one image, so put it in a list"
        )
    return [_picture(image, f"image {index}") for index, image in enumerate(images)]


def _picture(image: Any, name: str) -> Picture:
    if isinstance(image, Picture):
        return image
    if isinstance(image, (str, Path)):
        return Picture(str(image), Path(image).read_bytes)
    if isinstance(image, (Image.Image, np.ndarray)):
        return Picture(name, lambda: image)
    raise WordsightError(
        f"{name} is a {type(image).__name__}; an image is a path, a PIL image or a uint8 array [H, W, 3]"
    )


def _is_matrix(X: Any) -> bool:
    """Whether X is a feature matrix rather than a list of images."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and (
            isinstance(X[0], (list, tuple)) or (isinstance(X[0], np.ndarray) and X[0].ndim == 1)
        )
    return len(getattr(X, "shape", ())) == 2


def _prototypes(names: tuple[str, ...], vectors: Float[Tensor, "n D"], labels: Tensor) -> ClassTexts:
    """Where there is no text tower: each class's mean training vector in place of its words."""
    sums = torch.zeros(len(names), vectors.shape[1]).index_add_(0, labels, vectors)
    means = unit(sums)
    return ClassTexts(names, means, ((),) * len(names), (means[:0],) * len(names))


def _download(repo_id: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(repo_id, allow_patterns=["*.yaml", "*.json", "*.safetensors", "*.jsonl"])
    except (
        Exception
    ) as error:  # the hub's errors have no common class; all mean that there is no folder to read
        raise WordsightError(
            f"hf:{repo_id} cannot be read from the hub: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
