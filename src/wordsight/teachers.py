"""Teachers: another backbone's words label images softly, from which a pool is learned."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import Backbone, load_backbone
from wordsight.backbones.arrays import Part, is_arrays, read_arrays
from wordsight.config import RunSettings
from wordsight.data import Dataset, Encoded, Picture, Split
from wordsight.data.arrays import pictures_of_part
from wordsight.data.features import image_features
from wordsight.data.pools import PARTS, candidates
from wordsight.data.splits import digests, held_out
from wordsight.files import WordsightError
from wordsight.fitted import encode_classes, facts_of


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
    try:
        teacher = load_backbone(settings.teacher, device=settings.device, dtype=settings.dtype)
        pictures = pool.pictures
        if is_arrays(settings.teacher):
            pictures = _same_images(settings, whole, pool)
        elif any(isinstance(picture, Encoded) for picture in pictures):
            raise WordsightError(
                "the pool is of vectors, which no other backbone can see; give a file of the teacher's "
                "vectors"
            )
        return _scores(teacher, pictures, whole, settings)
    except WordsightError as error:
        raise WordsightError(f"teacher={settings.teacher}: {error}") from error


def _scores(
    teacher: Backbone, pictures: Sequence[Picture], whole: Dataset, settings: RunSettings
) -> Float[Tensor, "N C"]:
    template = "{}" if is_arrays(settings.teacher or "") else settings.template
    facts = facts_of(teacher, whole.class_names, template if "{}" in template else whole.template or "{}")
    texts = encode_classes(teacher, facts, whole.class_names, {})
    features = image_features(teacher, pictures, max_pixels=settings.max_pixels)
    if features.skipped:
        name, why = features.skipped[0]
        raise WordsightError(f"{len(features.skipped)} images cannot be read; the first is {name}: {why}")
    return teacher.logit_scale * features.vectors[:, 0] @ texts.name_vectors.T


def _same_images(settings: RunSettings, whole: Dataset, pool: Split) -> list[Picture]:
    """The teacher's vectors of the pool's images: by names, where both have the same, or else by rows."""
    source = settings.unlabelled or ""
    tested = whole.test or (held_out(whole, settings.shots, settings.seed) if source == "test" else None)
    given = candidates(source, whole, tested)
    name, part = _part(settings.teacher or "", source)
    if len(part.vectors) != len(given):
        raise WordsightError(
            f"its part {name} has {len(part.vectors):,} rows, but unlabelled={source} {len(given):,} images; "
            f"give one row an image, in their order"
        )
    place = {label: row for row, label in enumerate(part.names)}
    by_name = len(place) == len(given) and place.keys() == {picture.name for picture in given}
    of = {
        digest: place[picture.name] if by_name else row
        for row, (picture, digest) in enumerate(zip(given, digests(given)))
    }
    pictures = pictures_of_part(part)
    return [pictures[of[digest]] for digest in digests(pool.pictures)]


def _part(file: str, source: str) -> tuple[str, Part]:
    parts = read_arrays(file).parts
    wanted = source if source in PARTS else "unlabelled"
    if wanted not in parts and len(parts) > 1:
        raise WordsightError(
            f"it has the parts {', '.join(parts)}, but none of unlabelled={source}: {wanted}"
        )
    name = wanted if wanted in parts else next(iter(parts))
    return name, parts[name]
