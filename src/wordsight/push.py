"""Push: a run on the Hugging Face hub, in the form that `export` writes, so that `hf:org/name` is a run
wherever one is expected."""

from __future__ import annotations

import tempfile
from pathlib import Path

from wordsight.backbones import Backbone, hub
from wordsight.config import WordsightError
from wordsight.early import check_hub_name
from wordsight.export import export


def push(
    run: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    licence: str | None = None,
    backbone: Backbone | str | None = None,
    commit_message: str = "Add a Wordsight run",
) -> str:
    """Upload the finished run `run` (a folder, or hf:org/name) to the repository `repo_id`, which is made
    where there is none. Returns the commit's address; `wordsight.load("hf:org/name")` and `predict
    hf:org/name` read it.

    A classifier's backbone that the hub has is named, not copied; everything else is copied. `token` is the
    hub's, by default that of `hf auth login` or $HF_TOKEN; `licence` and `backbone` as in `export`. Errors:
    WordsightError as `export`, and where the hub does not take it."""
    from huggingface_hub import HfApi

    check_hub_name(repo_id)
    repo_id = repo_id.removeprefix("hf:")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / repo_id
        export(run, folder, backbone=backbone, copy_backbone=False, name=f"hf:{repo_id}", licence=licence)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=commit_message)
        except Exception as error:  # the hub's errors have no common class
            raise WordsightError(
                f"the hub did not take {repo_id}: {hub.first_line(error)}; `hf auth login` or $HF_TOKEN says "
                f"who you are, and must be allowed to write there"
            ) from error
    return str(done)
