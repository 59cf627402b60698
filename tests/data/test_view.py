"""A sheet shows the images that were asked for, with their boxes, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources_kit import make_yolo

from ullage.apps.cli.main import main
from ullage.data.view import contact_sheet
from ullage.errors import ConfigError, DataError
from ullage.geometry.drawing import class_colour


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven images: 0, 2, 4, 6 show a cat, 1, 3, 5 a dog, 6 both."""
    labels = {f"{n}": f"{n % 2} .5 .5 .5 .5\n" + "1 .2 .2 .2 .2\n" * (n == 6) for n in range(7)}
    return make_yolo(tmp_path, labels)


def names(paths: tuple[str, ...]) -> str:
    return "".join(Path(path).stem for path in paths)


def test_pages_show_every_image_once(data):
    sheets = [contact_sheet(data, page=page, images=3, cell=64) for page in (1, 2, 3)]
    assert [names(sheet.paths) for sheet in sheets] == ["012", "345", "6"]
    assert {(sheet.pages, sheet.images, sheet.boxes) for sheet in sheets} == {(3, 7, 8)}
    with pytest.raises(ConfigError, match="page=4 is not there: 7 images make 3 pages of 3"):
        contact_sheet(data, page=4, images=3)


def test_a_seed_shuffles_before_cutting(data):
    pages = [names(contact_sheet(data, page=page, images=4, seed=1, cell=64).paths) for page in (1, 2)]
    assert "".join(pages) != "0123456"
    assert sorted("".join(pages)) == list("0123456")
    assert pages[0] == names(contact_sheet(data, page=1, images=4, seed=1, cell=64).paths)


@pytest.mark.parametrize("classes", [["dog"], [1], ["1"]])
def test_only_images_and_boxes_of_a_class(data, classes):
    sheet = contact_sheet(data, classes=classes, cell=128)
    assert names(sheet.paths) == "1356"
    assert sheet.boxes == 4
    # Lines of the other class would be there: image 6 has a cat in its middle.
    colours = {tuple(pixel) for pixel in sheet.picture.reshape(-1, 3).tolist()}
    assert class_colour(1) in colours
    assert class_colour(0) not in colours


def test_boxes_lie_where_they_are(data):
    sheet = contact_sheet(data, images=1, cell=240)
    found = np.argwhere((sheet.picture == class_colour(0)).all(2))
    # 60 x 40 pixels on 240: four times as large, 40 pixels of margin above, one of gap; the box spans the middle half.
    (top, left), (bottom, right) = found.min(0), found.max(0)
    assert abs(left - (60 + 2)) <= 3
    assert abs(right - (180 + 2)) <= 3
    assert abs(bottom - (40 + 120 + 2)) <= 3
    assert top <= 40 + 40 + 4  # the label stands above the box


def test_what_cannot_be_shown(data, tmp_path):
    with pytest.raises(DataError, match=r"has no class 'dig'; it has 0 to 1: cat, dog\. Did you mean 'dog'"):
        contact_sheet(data, classes=["dig"])
    with pytest.raises(DataError, match="has no class '2'"):
        contact_sheet(data, classes=[2])
    with pytest.raises(DataError, match="no split 'val'"):
        contact_sheet(data, split="val")
    only_cats = make_yolo(tmp_path / "cats", {"a": "0 .5 .5 .5 .5"})
    with pytest.raises(DataError, match="shows dog"):
        contact_sheet(only_cats, classes=["dog"])


def test_on_the_command_line(data, tmp_path, capsys):
    out = tmp_path / "sheets" / "cats.png"
    assert main(["data", "view", f"data={data}", "classes=cat,0", "cell=64", f"out={out}", "images=2"]) == 0
    assert "page 1 of 2: 2 of 4 images, 4 boxes in all" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.size == (131, 66)
    assert main(["data", "view", f"data={data}", f"out={tmp_path / 'cats.mov'}"]) == 2
    assert main(["data", "view", f"data={data}", "page=0"]) == 2
