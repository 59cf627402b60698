"""Fixtures of the end-to-end tests: one small data set and one whole run for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_kit import Outcome, make_data, quick, run_apart, run_here, words


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML of 8 + 4 painted images; not to be changed."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def whole_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two epochs with everything in it, made by the command in a process of its own."""
    home = tmp_path_factory.mktemp("whole")
    settings = quick(data, epochs=2, batch=3, save_period=1, plots=True)
    outcome = run_apart(words("train", settings), folder=home)
    assert outcome.status == 0, outcome.err
    assert outcome.err == ""
    return home / "runs" / "detect" / "train"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ullage(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``ullage("train", epochs=1)``: the command in this process, in an empty folder."""

    def run(verb: str, **settings: object) -> Outcome:
        return run_here(words(verb, settings), capsys)

    return run


@pytest.fixture
def train(ullage: Callable[..., Outcome], data: Path) -> Callable[..., Outcome]:
    """``train(epochs=2)``: a quick training run that must succeed, in ``runs/detect/train``."""

    def run(**changes: object) -> Outcome:
        outcome = ullage("train", **{**quick(data), **changes})
        assert outcome.status == 0, outcome.err
        return outcome

    return run
