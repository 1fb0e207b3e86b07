"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository, or $WORDSIGHT_SHARED; the test is skipped where it is absent."""
    folder = Path(os.environ.get("WORDSIGHT_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data is not at {folder}; set WORDSIGHT_SHARED")
    return folder
