"""hub: the folder behind a name. A local folder is itself; a hub name is looked for in the cache before the
network is asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

from wordsight.backbones import OWN_FILE
from wordsight.backbones.clip import _first_line
from wordsight.config import WordsightError, nearest

TOWER_FILES = [
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "model*.safetensors",
]  # *.jinja: an LLM's chat template
BUNDLED = ("micro_lm",)  # LMs that lie beside this file; `micro` is a whole backbone
OWN_FILES = [*TOWER_FILES, "*.safetensors"]  # of a folder that Wordsight wrote, at any depth


def local(name: str, sort: str) -> Path:
    """The folder behind a folder or hub name; the cache is asked before the network."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name in BUNDLED:
        return Path(__file__).parent / name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise WordsightError(
            f"{sort} encoder {name!r} does not exist; give a folder in transformers' layout or a hub name"
        )
    try:
        folder = Path(snapshot_download(name, allow_patterns=TOWER_FILES, local_files_only=True))
        if (folder / "config.json").is_file() and any(folder.glob("model*.safetensors")):
            return folder
    except (OSError, ValueError):
        pass  # not cached: the hub is asked, and says what is wrong with a name
    try:
        HfApi().model_info(name, timeout=10)  # one quick question instead of long retries
        return Path(snapshot_download(name, allow_patterns=TOWER_FILES))
    except Exception as error:
        raise WordsightError(
            f"{sort} encoder {name!r} is not a local folder, not in the hub's cache, and the hub did not "
            f"give it ({_first_line(error)})"
            + (nearest(name, BUNDLED) or "; micro_lm is bundled, for trials" if sort == "text" else "")
        ) from error


def own(name: str) -> Path | None:
    """The folder behind the hub name of a repository that Wordsight wrote; None for every other, and for one
    that cannot be reached.
    """
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return None
    try:
        if isinstance(try_to_load_from_cache(name, OWN_FILE), str):
            folder = Path(snapshot_download(name, allow_patterns=OWN_FILES, local_files_only=True))
            if any(folder.glob("*.safetensors")):
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
            f"backbone {name!r} is on the hub, but the hub did not give its files ({_first_line(error)})"
        ) from error


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WordsightError(f"{file} is not readable as JSON: {_first_line(error)}") from error


def free(folder: str | Path) -> Path:
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WordsightError(
            f"{str(folder)!r} already holds something; give a folder that does not exist yet"
        )
    return folder
