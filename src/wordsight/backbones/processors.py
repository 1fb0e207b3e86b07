"""processors: what turns texts and images into the inputs of an image-text-to-text model, as transformers has
it, with PIL alone.

transformers' own way in (AutoProcessor) wants torchvision for the videos of some families, which are not read
here; so the parts are made one by one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers.models.auto.processing_auto import (
    PROCESSOR_MAPPING_NAMES,  # pyright: ignore[reportPrivateImportUsage] - its own table
    processor_class_from_name,
)

from wordsight.backbones.checkpoint import Place, read_tokenizer, reading
from wordsight.backbones.hub import quiet, read_mapping
from wordsight.backbones.pixels import pil_class, settings_of
from wordsight.config import WordsightError

NAMING = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")  # the first wins
VIDEO = "video_processor"


def read_processor(place: Place, model_type: str) -> Any:
    """The processor of a folder. Errors: WordsightError where the folder has no image part, or one without a
    form in PIL.
    """
    tokenizer = read_tokenizer(place)
    kind = _class_of(place, model_type)
    values = settings_of(place)
    _, images = pil_class(values, model_type, place.name)
    with quiet(), reading(place.name, "the processor"):
        parts = {"tokenizer": tokenizer, "image_processor": images(**values), VIDEO: None}
        unknown = [name for name in kind.get_attributes() if name not in parts]
        if unknown:
            raise WordsightError(
                f"{place} ({model_type}) reads {', '.join(unknown)} besides images and texts, which is not "
                f"read here"
            )
        facts, _ = kind.get_processor_dict(place.folder, local_files_only=True)
        return kind.from_args_and_dict([parts[name] for name in kind.get_attributes()], facts)


def _class_of(place: Place, model_type: str) -> Any:
    """transformers' class of the processor, which takes none for videos."""
    files = [place.folder / name for name in NAMING]
    named = [read_mapping(file, f"{place}:").get("processor_class") for file in files if file.is_file()]
    name = next((name for name in named if name), PROCESSOR_MAPPING_NAMES.get(model_type))
    found = processor_class_from_name(name) if name else None
    if found is None:
        raise WordsightError(
            f"{place}: its processor {name!r} is not in transformers, and code beside a model is never run"
        )
    return type(found.__name__, (found,), {"__init__": found.__init__, **_lenient(found)})


def _lenient(base: Any) -> dict[str, Any]:
    def check(self: Any, name: str, given: Any) -> Any:
        return (
            None
            if name == VIDEO and given is None
            else base.check_argument_for_proper_class(self, name, given)
        )

    return {"check_argument_for_proper_class": check}


def with_images(
    processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], **settings: Any
) -> Any:
    """A batch of inputs: rows padded on the left, where an LM goes on. `images` are those of each text, in
    the order of their places in it.
    """
    given = {"images": [list(row) for row in images]} if any(images) else {}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PaliGemma's, of NumPy
        warnings.filterwarnings("ignore", "`max_length` is ignored")  # of tokenizers that name one
        return processor(
            text=list(texts), padding=True, padding_side="left", return_tensors="pt", **given, **settings
        )
