"""array_files: what the files of vectors hold, as NumPy's arrays by their names."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wordsight.files import WordsightError, parse_json, read_tensors

KEYS = {
    "classes": ("classes", "class_names", "classnames"),
    "text": (
        "text",
        "text_features",
        "text_vectors",
        "class_vectors",
        "text_weights",
        "clip_weights",
        "classifier",
    ),
    "sentences": ("sentences",),
    "sentence_label": ("sentence_label", "sentence_labels", "sentence_class"),
    "sentence_vectors": ("sentence_vectors", "sentence_features", "sentence_embeddings"),
    "logit_scale": ("logit_scale", "scale"),
    "part": ("part", "parts", "split", "splits"),
}
NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)
LONGEST, SHORTEST = 1e12, 1e-12  # of a number whose square float32 keeps, with room for sums


def as_float32(rows: np.ndarray) -> np.ndarray:
    """float32 rows of the same directions: those whose largest number is so large or small that its square
    would leave float32 are scaled to 1. What is not finite stays so."""
    if rows.dtype.kind == "f" and rows.size:
        largest = np.maximum(rows.max(-1, keepdims=True), -rows.min(-1, keepdims=True))
        largest = largest.astype(np.float64)
        far = np.isfinite(largest) & (largest > 0) & ((largest > LONGEST) | (largest < SHORTEST))
        if far.any():
            rows = rows / np.where(far, largest, 1.0)
    with np.errstate(over="ignore"):
        return rows.astype(np.float32)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as opened, zipfile.ZipFile(opened), np.load(opened, allow_pickle=False) as file:
            return {name: _as_text(path, name, file[name]) for name in file.files}
    except WordsightError:
        raise
    except zipfile.BadZipFile as error:
        raise WordsightError(
            f"{path} cannot be read as a file of vectors: it is cut off, damaged or no .npz ({error})"
        ) from error
    # RuntimeError: a zip with a password
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zlib.error) as error:
        why = "it holds a pickled array, which is not opened; save texts as np.array(names), of type str"
        said = why if "allow_pickle" in str(error) or "Object arrays" in str(error) else error
        raise WordsightError(f"{path} cannot be read as a file of vectors: {said}") from error


def _as_text(path: Path, name: str, array: np.ndarray | bytes) -> np.ndarray:
    """Bytes, which `np.array(names, "S")` and Python 2 make of texts, as the texts they are."""
    if isinstance(array, bytes):  # a member of the zip that is no array, as a note
        return np.frombuffer(array, np.uint8)
    if array.dtype.kind != "S":
        return array
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise WordsightError(f"{name} of {path} holds bytes that are no UTF-8 text: {error}") from error


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    tensors, metadata = read_tensors(path, "file of vectors", finite=False)
    found = {name: _numbers(tensor) for name, tensor in tensors.items()}
    for name, text in metadata.items():
        if text.lstrip()[:1] == "[" or name.lower() in (*KEYS["classes"], "logit_scale"):
            found.setdefault(name, _of_metadata(path, name, text))
    return found


def _of_metadata(path: Path, name: str, text: str) -> np.ndarray:
    """All texts or all numbers, as they stand in JSON; of anything else objects, which nothing here takes."""
    values = parse_json(text, f"{name} in the metadata of {path}")
    listed = values if isinstance(values, list) else [values]
    alike = any(all(isinstance(one, kind) for one in listed) for kind in (str, (int, float)))
    return np.array(values) if alike else np.array(values, dtype=object)


def _numbers(tensor: Tensor) -> np.ndarray:
    """bfloat16 and float8, which NumPy lacks, as float32."""
    lacking = tensor.is_floating_point() and tensor.dtype not in NUMPY_FLOATS
    return (tensor.float() if lacking else tensor).numpy()
