"""hub: the folder behind a name, and saving into one. A local folder is itself; a GGUF file, here or in a
repository of the hub, is unpacked into one (gguf.py); a hub name is looked for in the cache before the
network is asked.

Reading what lies in a folder, but for our own facts, is checkpoint.py's.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError

from wordsight.backbones import OWN_FILE
from wordsight.config import WordsightError
from wordsight.early import FINISHED, HUB_NAME, WAYS_ON, WEIGHTS_FILE, check_place, is_run
from wordsight.files import read_json, write_file
from wordsight.reader import nearest

if TYPE_CHECKING:  # transformers takes seconds to import; whoever only looks for a folder needs none of it
    from transformers.modeling_utils import PreTrainedModel

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_FILES += ("tokenizer.model",)
GGUF = ".gguf"  # an LM in one file
MAGIC = b"GGUF"  # which begins so
# owner/name, a GGUF file of it as llama.cpp and ollama name it, owner/name:Q8_0, or by its path in it
IN_REPOSITORY = re.compile(r"(?:hf\.co/|huggingface\.co/)?([\w.-]+/[\w.-]+)(?::([\w.-]+)|/([\w./-]+\.gguf))?")
SHARD = re.compile(r"-\d+-of-(\d+)\.safetensors$")  # of weights in so many files
PIXEL_FILES = ("processor_config.json", "preprocessor_config.json")  # the first wins, as in transformers
BUNDLED = ("micro_lm",)  # LMs that lie beside this file; `micro` is a whole backbone
# jinja: a chat template; the last are for whoever passes a model on
TOWER_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors", "LICEN[CS]E*", "NOTICE*"]
OWN_FILES = [*TOWER_FILES, "*.safetensors"]  # of a folder that Wordsight wrote, at any depth
RUN_FILES = [*OWN_FILES, "*.yaml", "*.jsonl", "*.npy"]
SAVE_AGAIN = "save it again, or restore it"  # where a weights file is damaged
HERE = '"..."'  # for its own place in the card of a backbone, which does not know it
NEEDS = {  # besides config.json and weights: one of these files each
    "backbone": (TOKENIZER_FILES, PIXEL_FILES),
    "image encoder": (PIXEL_FILES,),
    "text encoder": (TOKENIZER_FILES,),
    "image-text model": (TOKENIZER_FILES, PIXEL_FILES),
    "LM": (TOKENIZER_FILES,),
}


# -- finding --


def find(name: str, what: str) -> Path:
    """The folder behind a folder or hub name; the cache is asked before the network. `what` is a key of
    `WAYS_ON`.
    """
    if (here := _here(name)) is not None:
        return here
    repository, wanted = _of_hub(name)
    check_place(repository, what)
    cached = _cached(repository)
    if cached is not None and not wanted and _complete(cached, what):
        return cached
    if cached is not None and (folder := _gguf_in(cached, wanted, repository)) is not None:
        return folder
    try:
        return _download(repository, wanted)
    except WordsightError:
        raise
    except Exception as error:
        if cached is not None and _weights_there(cached):
            return cached  # what it lacks is said by whoever reads it
        raise WordsightError(
            f"{what} {name!r} is not a local folder, not complete in the hub's cache, and the hub did not "
            f"give it ({first_line(error)}){nearest(name, BUNDLED)}; {WAYS_ON[what]}"
        ) from error


def local(name: str) -> Path | None:
    """The folder behind a name, or None where the network would have to be asked."""
    return _here(name) or _cached(_of_hub(name)[0])


def _of_hub(name: str) -> tuple[str, str]:
    """The repository that a hub name is of, and which GGUF file in it is meant: its quantisation or path, or
    nothing.
    """
    found = IN_REPOSITORY.fullmatch(name)
    if found is None:
        return name, ""
    repository, quantisation, file = found.groups()
    return repository, file or (quantisation if quantisation not in (None, "latest") else "")


def _gguf_in(cached: Path, wanted: str, repository: str) -> Path | None:
    """The LM of a repository's GGUF file, where the file is in the cache."""
    from wordsight.backbones.gguf import chosen, unpacked

    if not wanted and _weights_there(cached):
        return None
    files = [file.relative_to(cached).as_posix() for file in cached.rglob(f"*{GGUF}")]
    file = chosen(files, wanted, repository)
    return None if file is None else unpacked(cached / file)


def _here(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file() and (path.suffix == GGUF or _begins_as_gguf(path)):  # Ollama's have no suffix
        from wordsight.backbones.gguf import unpacked

        return unpacked(path)
    if path.suffix == GGUF and (path.parent.is_dir() or _of_hub(name)[0] == name):
        raise WordsightError(f"GGUF file {name!r} does not exist")
    return Path(__file__).parent / name if name in BUNDLED else None


def _begins_as_gguf(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC
    return False


def _cached(name: str) -> Path | None:
    try:
        return Path(snapshot_download(name, allow_patterns=TOWER_FILES, local_files_only=True))
    except (OSError, ValueError):
        return None  # the hub is asked, and says what is wrong with a name


def _complete(folder: Path, what: str) -> bool:
    lists = (("config.json",), *NEEDS[what])
    return _weights_there(folder) and all(any((folder / file).is_file() for file in some) for some in lists)


def _weights_there(folder: Path) -> bool:
    return _whole(folder, "model*.safetensors")


def _whole(folder: Path, pattern: str = "*.safetensors") -> bool:
    """Whether weights are there, and where they are in several files all of these: a download that was cut
    off left some."""
    found = [file.name for file in folder.glob(pattern)]
    parts = [int(shard[1]) for shard in map(SHARD.search, found) if shard]
    return len(found) > len(parts) or (bool(parts) and len(parts) == max(parts))


def _download(name: str, wanted: str) -> Path:
    """All that a tower is read from. Where main holds pickles alone: the conversion by the hub's own bot. Of
    a repository of GGUF files, or where one is `wanted`: that file, unpacked.
    """
    info = HfApi().model_info(name, timeout=10)  # one quick question instead of long retries
    files = [file.rfilename for file in info.siblings or ()]
    revision = None
    plain = any(re.fullmatch(r"model[^/]*\.safetensors", file) for file in files)
    if wanted or (not plain and any(file.endswith(GGUF) for file in files)):
        return _download_gguf(name, wanted, files)
    if files and not plain:
        from transformers.safetensors_conversion import get_conversion_pr_reference

        with contextlib.suppress(Exception):
            revision = get_conversion_pr_reference(HfApi(), name)
    return Path(snapshot_download(name, allow_patterns=TOWER_FILES, revision=revision))


def _download_gguf(name: str, wanted: str, files: Sequence[str]) -> Path:
    from wordsight.backbones.gguf import chosen, unpacked

    file = chosen(files, wanted, name)
    if file is None:
        held = listed(file for file in files if file.endswith(GGUF)) or "none"
        raise WordsightError(f"{name!r} has no GGUF file {wanted or 'of an LM'}; it has {held}")
    return unpacked(Path(hf_hub_download(name, file)))


def own(name: str) -> Path | None:
    """The folder behind the hub name of a repository that Wordsight wrote; None for every other, and for one
    that cannot be reached.
    """
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return None
    try:
        if isinstance(try_to_load_from_cache(name, OWN_FILE), str):
            folder = Path(snapshot_download(name, allow_patterns=OWN_FILES, local_files_only=True))
            if all(map(_whole, {file.parent for file in folder.rglob("*.json")})):
                return folder
        elif isinstance(try_to_load_from_cache(name, "config.json"), str):
            return None  # a cached folder of transformers: nobody needs to be asked
        if OWN_FILE not in {file.rfilename for file in HfApi().model_info(name, timeout=10).siblings or ()}:
            return None
    except Exception:
        return None  # whoever reads the name next says what is wrong with it
    try:
        return Path(snapshot_download(name, allow_patterns=OWN_FILES))
    except Exception as error:
        raise WordsightError(
            f"backbone {name!r} is on the hub, but the hub did not give its files ({first_line(error)})"
        ) from error


def run_folder(run: str | Path) -> Path:
    """The run folder behind a path, or behind hf:org/name, which is fetched."""
    if not str(run).startswith("hf:"):
        return Path(run).expanduser()
    repo_id = str(run).removeprefix("hf:")
    try:
        return Path(snapshot_download(repo_id, allow_patterns=RUN_FILES))
    except RepositoryNotFoundError as error:
        raise WordsightError(
            f"hf:{repo_id} is not on the hub, or is private: `hf auth login` or $HF_TOKEN says who you are"
        ) from error
    except Exception as error:  # the hub's errors have no common class; all mean that nothing can be read
        raise WordsightError(f"hf:{repo_id} cannot be read from the hub: {first_line(error)}") from error


# -- saving --


def save_json(file: Path, facts: Mapping[str, Any]) -> None:
    write_file(file, json.dumps(facts, indent=2) + "\n")


def read_mapping(file: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file. Errors: WordsightError as `files.read_json`, and for another form."""
    found = read_json(file, what)
    if not isinstance(found, dict):
        raise WordsightError(f"{what} {str(file)!r} holds a {type(found).__name__}; expected a JSON object")
    return found


def read_facts(file: Path, what: str, kind: str, version: int, **types: Any) -> dict[str, Any]:
    """What one of our own files of facts says: of this kind and format, and with values of these types.

    Errors: WordsightError for another kind, format or type, and as `read_mapping`.
    """
    facts = read_mapping(file, what)
    if facts.get("kind") != kind or facts.get("format") != version:
        raise WordsightError(
            f"{file} is of kind {facts.get('kind')!r} and format {facts.get('format')!r}; this version reads "
            f"kind {kind!r}, format {version}"
        )
    for key, wanted in types.items():
        value = facts.get(key)
        truth = isinstance(value, bool)  # which Python takes for a whole number
        if key not in facts or not isinstance(value, wanted) or (truth and wanted is not bool):
            raise WordsightError(
                f"{file} has {key}={str(value)[:80]}; it was not written by Wordsight, or was edited"
            )
    return facts


def weights_in(folder: Path, parts: Iterable[str]) -> list[Path]:
    """The weights files in these folders inside `folder`."""
    files = (file for part in parts for file in sorted((folder / part).glob("*.safetensors")))
    return [file.relative_to(folder) for file in files]


def save_part(folder: Path, model: PreTrainedModel | None = None, tokenizer: Any = None) -> None:
    """A model and a tokenizer in transformers' layout, without the path that they were read from."""
    with quiet():
        if model is not None:
            model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


class _Quiet:
    """How transformers talked before the first of those who want it quiet now, in whichever thread."""

    def __init__(self):
        self.lock, self.depth, self.before = threading.Lock(), 0, (True, 0)


_quiet = _Quiet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and loading reports; what matters of these is an error here."""
    from transformers.utils import logging as talk

    with _quiet.lock:
        if not _quiet.depth:
            _quiet.before = (talk.is_progress_bar_enabled(), talk.get_verbosity())
            talk.disable_progress_bar()
            talk.set_verbosity_error()
        _quiet.depth += 1
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.depth -= 1
            if not _quiet.depth:
                bars, level = _quiet.before
                talk.set_verbosity(level)
                if bars:
                    talk.enable_progress_bar()


def check_complete(folder: Path, name: str) -> None:
    """Errors: WordsightError for a backbone's folder, or a run's, without what is written last."""
    fitted = is_run(folder)
    if not (folder / WEIGHTS_FILE).is_file() or (fitted and not (folder / FINISHED).is_file()):
        raise WordsightError(
            f"backbone {name!r} holds no {FINISHED if fitted else WEIGHTS_FILE}: its training is not "
            f"finished (the same `wordsight fit` command goes on), or it is not complete"
        )


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def listed(names: Iterable[str]) -> str:
    """The first names of many, in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def on_hub(name: str) -> bool:
    """Whether a name can only be a hub's."""
    return bool(re.fullmatch(f"(hf:)?{HUB_NAME}", name)) and not Path(name).exists()
