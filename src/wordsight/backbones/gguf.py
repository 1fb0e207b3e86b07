"""gguf: an LM in one file of llama.cpp's format, turned into a folder in transformers' layout.

It is read once: its weights, whatever few bits they have, become bfloat16 in a folder of the cache, named by
the file's content, and everything else works on that folder as on any other."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from wordsight.backbones import hub
from wordsight.config import WordsightError
from wordsight.digests import file_digest
from wordsight.extras import needed
from wordsight.files import cache_folder, held, new_folder

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

log = logging.getLogger("wordsight")
PLAIN_TEXT = "a photo of a small red house by the sea"  # of which every LM knows whole words
MANY = 10_000  # pieces, from which on a vocabulary holds words
BESIDE = ("mmproj", "imatrix")  # GGUF files that are no LM: image projectors, statistics of quantising
PARTS = re.compile(r"-\d{5}-of-\d{5}$")  # of a file that was cut into several
QUANTISED = re.compile(r"(UD-)?(I?Q\d\w*|TQ\d_\d|MXFP\d\w*|[BF]F?16|F32|FP16|FP32)$", re.IGNORECASE)


def chosen(files: Iterable[str], wanted: str, repository: str) -> str | None:
    """Which of a repository's files is meant: a GGUF file by its path, or by its quantisation (Q8_0), in any
    case; the only one where nothing is `wanted`. None: it has no such file.

    Errors: WordsightError where nothing is wanted and there are several, and for one in several parts."""
    held: dict[str, list[str]] = {}
    for file in sorted(files):
        if file.endswith(hub.GGUF) and not PurePosixPath(file).name.lower().startswith(BESIDE):
            held.setdefault(_quantisation(file), []).append(file)
    if not wanted and len(held) > 1:
        raise WordsightError(
            f"{repository!r} holds an LM in several GGUF files, {', '.join(held)}; choose one: "
            f"{repository}:{next(iter(held))}"
        )
    found = [file for name, some in held.items() for file in some if _is_meant(file, name, wanted)]
    if len(found) > 1 or (found and PARTS.search(PurePosixPath(found[0]).stem)):
        raise WordsightError(
            f"{repository}{f':{wanted}' if wanted else ''} is several GGUF files ({hub.listed(found)}), and "
            f"one is read; choose one by its path, {repository}/FILE.gguf, and join parts of one by "
            f"llama-gguf-split --merge"
        )
    return found[0] if found else None


def _is_meant(file: str, quantisation: str, wanted: str) -> bool:
    if wanted.endswith(hub.GGUF):
        return file == wanted
    return f"-{quantisation}".lower().endswith(f"-{wanted}".lower()) or not wanted


def _quantisation(file: str) -> str:
    """How a file's numbers are rounded, as its name or its folder's ends: Q8_0, UD-Q4_K_XL, BF16; or else its
    name.
    """
    path = PurePosixPath(file)
    stem = PARTS.sub("", path.stem)
    said = QUANTISED.search(stem) or QUANTISED.search(path.parent.name)
    return said[0] if said else stem


def unpacked(file: Path) -> Path:
    """The folder that a GGUF file's LM and tokenizer are kept in, written when it is first asked for.

    Takes two bytes a parameter in the cache, and while it is written four in memory. Errors: WordsightError
    for what is no GGUF file, is cut off or of a family that transformers cannot read, and without the package
    `gguf`."""
    _check(file)
    folder = cache_folder() / "gguf" / file_digest(file)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held(folder.parent, wait=True):  # one unpacks, and the others read what it wrote
        if not folder.is_dir():
            _unpack(file, folder)
    return folder


def _check(file: Path) -> None:
    try:
        with open(file, "rb") as opened:
            start = opened.read(len(hub.MAGIC))
    except OSError as error:
        raise WordsightError(f"{str(file)!r} cannot be read: {error.strerror or error}") from error
    if start != hub.MAGIC:
        raise WordsightError(f"{str(file)!r} is no GGUF file: it begins with {start!r}, not {hub.MAGIC!r}")
    with needed("gguf", file.name):
        import gguf  # noqa: F401  transformers reads the file by it


def _unpack(file: Path, folder: Path) -> None:
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = _plain(file)
    except WordsightError:
        raise
    except Exception as error:  # gguf and transformers raise of every kind where a file is cut off or unknown
        raise WordsightError(
            f"{str(file)!r} cannot be read as an LM ({hub.first_line(error)}): the file is cut off or "
            f"damaged, or of a family that transformers does not read from GGUF"
        ) from error
    _check_tokenizer(file, tokenizer)
    count = sum(weight.numel() for weight in model.parameters())
    log.info(
        f"{file.name}: its {count / 1e6:,.0f} million weights are written as bfloat16, once, to {folder} "
        f"({2 * count / 1e6:,.0f} MB)"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as temporary:
        hub.save_part(temporary, model, tokenizer)


def _check_tokenizer(file: Path, tokenizer: Any) -> None:
    """That words which a large vocabulary holds are found in it: earlier releases of transformers lose the
    merges of some families without a word, and every text is then read letter by letter."""
    import transformers

    pieces = len(tokenizer(PLAIN_TEXT, add_special_tokens=False)["input_ids"])
    if len(tokenizer) > MANY and 2 * pieces > len(PLAIN_TEXT):
        raise WordsightError(
            f"transformers {transformers.__version__} cuts a plain sentence into {pieces} tokens, nearly one "
            f"a letter: it misreads the tokenizer of {str(file)!r}; take a newer transformers (5.23 reads "
            f"Gemma's), or a folder in transformers' own layout"
        )


def _plain(file: Path) -> PreTrainedModel:
    """The file's LM in bfloat16, without a word in its configuration that it was ever quantised."""
    import torch
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from wordsight.backbones.checkpoint import check_tensors

    with hub.quiet():
        kind: Any = AutoModelForCausalLM  # whose stub knows of no report
        read, info = kind.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.bfloat16, output_loading_info=True
        )
    shapes = [entry[0] for entry in info["mismatched_keys"]]
    check_tensors(repr(str(file)), info["missing_keys"], info["unexpected_keys"], shapes)
    kept = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    with torch.device("meta"):  # its tensors are those that were read
        model = type(read)(type(read.config).from_dict(kept))
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model
