"""The package as users install it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it comes with the test dependencies")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_module_and_the_demo_data(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    package = ROOT / "src" / "ullage"
    modules = {f"ullage/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assert modules - inside == set()
    demo = {name for name in inside if name.startswith("ullage/data/demo/")}
    assert "ullage/data/demo/data.yaml" in demo
    for split in ("train", "val"):
        images = {Path(name).stem for name in demo if f"/images/{split}/" in name}
        labels = {Path(name).stem for name in demo if f"/labels/{split}/" in name}
        assert len(images) > 20
        assert labels <= images


def test_the_wheel_is_small_and_holds_no_strangers(wheel: zipfile.ZipFile) -> None:
    assert sum(entry.compress_size for entry in wheel.infolist()) < 10_000_000
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert all(top == "ullage" or top.endswith(".dist-info") for top in tops), tops
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_the_version_is_stated_once_and_the_changelog_knows_it() -> None:
    from ullage import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" in project["dynamic"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_command_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["ullage"] == "ullage.apps.cli.main:main"


@pytest.mark.parametrize("script", ["scripts/setup", "scripts/test", "scripts/demo", ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111, "not executable"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
