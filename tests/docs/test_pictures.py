"""The pictures of the documentation are those that the scripts make."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT
from PIL import Image

from ullage.config.augment import AugmentSettings

MADE = runpy.run_path(str(ROOT / "scripts" / "make_docs_images"))
IMAGES = ROOT / "docs" / "images"
NOT_A_PICTURE = {"close_mosaic", "partners"}  # when and from where, not what


def test_every_augmentation_has_a_picture_in_the_page_about_it() -> None:
    assert set(MADE["AUGMENTATIONS"]) == set(AugmentSettings.model_fields) - NOT_A_PICTURE
    page = (ROOT / "docs" / "augmentations.md").read_text(encoding="utf-8")
    for name in MADE["AUGMENTATIONS"]:
        assert f"`{name}`" in page
        assert f"(images/augment_{name}.jpg)" in page


@pytest.mark.parametrize("name", MADE["AUGMENTATIONS"])
def test_pictures_of_augmentations_are_as_they_are_made_now(name: str, tmp_path: Path) -> None:
    made = MADE["make_augmentation_picture"](name, tmp_path / "new.jpg")
    with Image.open(made) as new, Image.open(IMAGES / f"augment_{name}.jpg") as shown:
        assert new.size == shown.size
        # Encoders differ a little; another draw would differ a lot.
        assert np.abs(np.asarray(new).astype(int) - np.asarray(shown)).mean() < 3
