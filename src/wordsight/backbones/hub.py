"""hub: the folder behind a name. A local folder is itself; a hub name is looked for in the cache before the network is asked."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from wordsight.backbones.clip import _first_line
from wordsight.config import WordsightError

TOWER_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors"]  # *.jinja: an LLM's chat template


def local(name: str, sort: str) -> Path:
    """The folder behind a folder or hub name; the cache is asked before the network."""
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise WordsightError(f"{sort} encoder {name!r} does not exist; give a folder in transformers' layout or a hub name")
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
            f"{sort} encoder {name!r} is not a local folder, not in the hub's cache, and the hub did not give it ({_first_line(error)})"
        ) from error
