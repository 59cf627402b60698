"""Every recipe is a configuration that training accepts, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ullage.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_recipes_are_found() -> None:
    assert {recipe.stem for recipe in RECIPES} >= {"bccd_yolo11n", "aerial_yolov12n", "aquarium_yolov12n_finetune"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_loads_and_every_key_takes_effect(recipe: Path) -> None:
    written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    loaded = TrainConfig.load({}, file=recipe).flat()
    assert {key: loaded[key] for key in written} == written


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_names_network_and_data_and_a_command_that_runs_it(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    for promised in ("# Machine: ", f"# Command: ullage train cfg=recipes/{recipe.name}", "# Measured result: "):
        assert promised in header
    assert {"model", "data", "epochs", "imgsz", "seed"} <= yaml.safe_load(text).keys()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_points_to_data_that_is_there(recipe: Path, shared: Path) -> None:
    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]
    assert data.startswith("../shared/")
    assert (shared / data.removeprefix("../shared/")).is_file()


def test_command_line_settings_override_the_recipe() -> None:
    loaded = TrainConfig.load({"seed": 2, "epochs": 3}, file=ROOT / "recipes" / "bccd_yolo11n.yaml")
    assert (loaded.run.seed, loaded.optim.epochs, loaded.data.imgsz) == (2, 3, 320)
