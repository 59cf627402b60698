"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples everywhere, and no time limits: ULLAGE_FUZZ=1 searches for new ones.
settings.register_profile("ullage", deadline=None, derandomize="ULLAGE_FUZZ" not in os.environ)
settings.load_profile("ullage")

_SHARED = Path(os.environ.get("ULLAGE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and parity fixtures, beside the checkout; tests skip where it is absent."""
    if not (_SHARED / "data").is_dir():
        pytest.skip(f"needs the shared data folder at {_SHARED} (set ULLAGE_SHARED to point elsewhere)")
    return _SHARED
