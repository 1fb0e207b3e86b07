"""Teachers: another backbone's words label images softly, from which a pool is learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import Backbone, as_given, load_backbone
from wordsight.backbones.arrays import Part, is_arrays, read_arrays
from wordsight.backbones.vectors import Vectors
from wordsight.config import RunSettings
from wordsight.data import Dataset, Encoded, Picture, Split
from wordsight.data.arrays import pictures_of_part
from wordsight.data.features import image_features
from wordsight.data.given import features_of, is_matrix
from wordsight.data.pictures import pictures_of
from wordsight.data.pools import PARTS, candidates
from wordsight.data.splits import digests, held_out
from wordsight.files import WordsightError
from wordsight.fitted import encode_classes, facts_of
from wordsight.methods import Pool
from wordsight.sentences import ClassTexts


def teacher_scores(settings: RunSettings, whole: Dataset, pool: Split) -> Float[Tensor, "N C"] | None:
    """What the teacher says of the pool's images: its zero-shot scores of all of the data's classes. None
    where a run names no teacher.

    Kin: PromptKD (Li et al., CVPR 2024, arXiv 2403.02781), whose teacher is tuned on the labelled images
    first and teaches the student's image side. Differs: this one has its words alone, and the student learns
    Gaussians over vectors that stay as they are.

    Errors: WordsightError for a teacher that cannot be read, lacks text vectors or classes, or whose images
    are not those of the pool."""
    if settings.teacher is None:
        return None
    with _named(settings.teacher):
        teacher = load_backbone(settings.teacher, device=settings.device, dtype=settings.dtype)
        pictures = pool.pictures
        if is_arrays(settings.teacher):
            pictures = _same_images(settings, whole, pool)
        elif any(isinstance(picture, Encoded) for picture in pictures):
            raise _unseen()
        return _scores(teacher, pictures, whole.class_names, whole.template, settings)


def given_pool(
    X: Any,
    backbone: Backbone | None,
    texts: ClassTexts,
    settings: RunSettings,
    teacher: Backbone | str | None = None,
) -> Pool:
    """Images without labels, or their feature matrix, that came from Python and may show the classes of
    `texts`, with what a teacher says of them.

    The teacher is a backbone, which sees the images, or a file of its vectors with a row for each of them.
    Errors: WordsightError for a pool of which nothing can be read, of another width, and as
    `teacher_scores`."""
    found, dim = features_of(X, backbone, flip=settings.flip), texts.name_vectors.shape[-1]
    if not found.kept:
        raise WordsightError("unlabelled= holds no image; give some, or leave it out")
    if found.vectors.shape[-1] != dim:
        raise WordsightError(
            f"unlabelled= has vectors of width {found.vectors.shape[-1]}, the others of {dim}"
        )
    pool = Pool(found.vectors[:, 0].to(texts.name_vectors), texts)
    if (teacher := as_given(teacher, "teacher")) is None:
        return pool
    with _named(settings.teacher):
        if isinstance(teacher, str):
            opened = load_backbone(teacher, device=settings.device, dtype=settings.dtype)
        else:
            opened = teacher
        pictures = _of_given(teacher, X)
        seen = [pictures[row] for row in found.kept]
        return pool._replace(taught=_scores(opened, seen, texts.names, None, settings))


def _of_given(teacher: Backbone | str, X: Any) -> Sequence[Picture]:
    """What the teacher sees of each image that came from Python."""
    if isinstance(teacher, str) and is_arrays(teacher):
        names = [""] * len(X) if is_matrix(X) else [picture.name for picture in pictures_of(X)]
        return _matched(teacher, "unlabelled", names)
    if is_matrix(X):
        raise _unseen()
    return pictures_of(X)


@contextmanager
def _named(teacher: str | None) -> Iterator[None]:
    """What is wrong with a teacher is said of it."""
    try:
        yield
    except WordsightError as error:
        raise WordsightError(f"teacher={teacher}: {error}") from error


def _unseen() -> WordsightError:
    return WordsightError(
        "the pool is of vectors, which no other backbone can see; give a file of the teacher's vectors"
    )


def _scores(
    teacher: Backbone,
    pictures: Sequence[Picture],
    names: Sequence[str],
    own: str | None,
    settings: RunSettings,
) -> Float[Tensor, "N C"]:
    """`own` is the data's template, where the run's says to take it."""
    template = "{}" if isinstance(teacher, Vectors) else settings.template
    facts = facts_of(teacher, names, template if "{}" in template else own or "{}")
    texts = encode_classes(teacher, facts, names, {})
    features = image_features(teacher, pictures, max_pixels=settings.max_pixels)
    if features.skipped:
        name, why = features.skipped[0]
        raise WordsightError(f"{len(features.skipped)} images cannot be read; the first is {name}: {why}")
    return teacher.logit_scale * features.vectors[:, 0] @ texts.name_vectors.T


def _same_images(settings: RunSettings, whole: Dataset, pool: Split) -> list[Picture]:
    """The teacher's vectors of the pool's images, which are those of a source that are no others."""
    source = settings.unlabelled or ""
    tested = whole.test or (held_out(whole, settings.shots, settings.seed) if source == "test" else None)
    given = candidates(source, whole, tested)
    pictures = _matched(settings.teacher or "", source, [picture.name for picture in given])
    of = dict(zip(digests(given), pictures))
    return [of[digest] for digest in digests(pool.pictures)]


def _matched(file: str, source: str, names: Sequence[str]) -> list[Picture]:
    """The teacher's vectors of images of these names: by name, where both have the same, or else by row."""
    name, part = _part(file, source)
    if len(part.vectors) != len(names):
        raise WordsightError(
            f"its part {name} has {len(part.vectors):,} rows, but unlabelled={source} {len(names):,} images; "
            f"give one row an image, in their order"
        )
    pictures = pictures_of_part(part)
    of_name = {picture.name: picture for picture in pictures}
    by_name = len(of_name) == len(names) and of_name.keys() == set(names)
    return [of_name[own] for own in names] if by_name else list(pictures)


def _part(file: str, source: str) -> tuple[str, Part]:
    parts = read_arrays(file).parts
    wanted = source if source in PARTS else "unlabelled"
    if wanted not in parts and len(parts) > 1:
        raise WordsightError(
            f"it has the parts {', '.join(parts)}, but none of unlabelled={source}: {wanted}"
        )
    name = wanted if wanted in parts else next(iter(parts))
    return name, parts[name]
