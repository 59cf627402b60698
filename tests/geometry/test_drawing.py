"""Pictures of boxes: where colour lands, that labels fit, and what is refused."""

from __future__ import annotations

import colorsys
from itertools import combinations

import numpy as np
import pytest
import torch

from ullage.errors import DataError
from ullage.geometry import drawing
from ullage.geometry.drawing import class_colour, draw_boxes, drawable_name, text_colour, tile_images


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(-1)


def test_outline_lies_on_the_box_and_the_input_stays() -> None:
    image = grey(300, 400)
    before = image.copy()
    drawn = draw_boxes(image, boxes_xyxy_px=np.array([[100, 120, 300, 250]]), class_ids=[4], names=["x"] * 5)
    assert (image == before).all()
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert not np.shares_memory(drawn, image)
    for y, x in ((120, 200), (249, 200), (200, 100), (200, 299)):
        assert tuple(drawn[y, x]) == class_colour(4)
    assert not changed(image, drawn)[140:230, 120:280].any(), "the inside of a large box stays visible"


def test_label_is_readable_and_inside_for_boxes_at_every_border() -> None:
    image = grey(200, 260)
    for box in ([0, 0, 60, 60], [200, 0, 260, 60], [0, 150, 50, 200], [210, 150, 260, 200], [0, 0, 260, 200]):
        plain = draw_boxes(image, boxes_xyxy_px=[box], class_ids=[0], names=["person"], labels=False)
        drawn = draw_boxes(image, boxes_xyxy_px=[box], class_ids=[0], names=["person"], scores=[0.5])
        plate = changed(plain, drawn)
        rows, columns = np.nonzero(plate)
        assert rows.size > 300, f"no label for {box}"
        assert np.ptp(columns) > 2 * np.ptp(rows), "a label is wider than high: it was not cut off at the border"


@pytest.mark.parametrize(("size_hw", "least", "most"), [((150, 200), 1, 2), ((480, 640), 1, 3), ((2160, 3840), 5, 12)])
def test_lines_grow_with_the_picture(size_hw: tuple[int, int], least: int, most: int) -> None:
    height, width = size_hw
    image = grey(height, width)
    box = [width // 4, height // 4, width * 3 // 4, height * 3 // 4]
    drawn = draw_boxes(image, boxes_xyxy_px=[box], class_ids=[0], names=["a"], labels=False)
    thickness = int(changed(image, drawn)[: height // 2, width // 2].sum())
    assert least <= thickness <= most


def test_given_line_width_is_used() -> None:
    image = grey(200, 200)
    drawn = draw_boxes(
        image, boxes_xyxy_px=[[50, 50, 150, 150]], class_ids=[0], names=["a"], labels=False, line_width=7
    )
    assert changed(image, drawn)[:100, 100].sum() == 7


def test_labels_never_overlap_nor_hide_small_boxes() -> None:
    rng = np.random.default_rng(0)
    centres = rng.random((300, 2)) * [640, 480]
    boxes = np.concatenate((centres - 8, centres + 8), 1).astype(np.float32)
    image = grey(480, 640)
    plates: list[tuple[int, int, int, int]] = []
    original = drawing._Plates.add

    def record(self: drawing._Plates, *sides: int) -> None:
        plates.append(sides)
        original(self, *sides)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing._Plates, "add", record)
        draw_boxes(
            image, boxes_xyxy_px=boxes, class_ids=rng.integers(0, 5, 300), names=list("abcde"), scores=rng.random(300)
        )
    assert len(plates) > 10
    for a, b in combinations(plates, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in plates) <= 0.25 * 480 * 640
    assert all(left >= 0 and top >= 0 and right <= 640 and bottom <= 480 for left, top, right, bottom in plates)


def test_best_scores_get_their_labels_first() -> None:
    image = grey(100, 100)
    boxes = [[40, 40, 60, 60]] * 12  # one place, many claims
    names = [f"n{i}" for i in range(12)]
    order: list[int] = []
    original = drawing._label

    def record(*args: object) -> None:
        order.append(int(args[-1]))  # pyright: ignore
        original(*args)  # pyright: ignore

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_label", record)
        draw_boxes(image, boxes_xyxy_px=boxes, class_ids=range(12), names=names, scores=np.linspace(0.1, 0.9, 12))
    assert order == list(range(11, -1, -1))


@pytest.mark.parametrize(
    "name", ["Straßenbahn", "собака", "σκύλος", "كلب", "犬", "कुत्ता", "🐶", "a\nb\tc", "", "x" * 500, "\u202e", "\0"]
)
def test_names_of_any_script(name: str) -> None:
    image = grey(240, 320)
    drawn = draw_boxes(image, boxes_xyxy_px=[[50, 80, 200, 200]], class_ids=[0], names=[name], scores=[0.9])
    assert changed(image, drawn).any()


def test_a_name_without_glyphs_falls_back_to_its_number() -> None:
    assert drawable_name("собака", 3)[0] == "собака"
    assert drawable_name("\U0001fac5\U0001faf6", 3)[0] == "class 3" or drawable_name("\U0001fac5\U0001faf6", 3)[1]
    assert drawable_name("\ue000", 3)[0] == "class 3", "a private-use character has no glyph in any font"
    assert drawable_name(" \n", 7)[0] == "class 7"


def test_ids_without_a_name_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(drawing, "_label", lambda draw, plates, box, name, *rest: seen.append(name))
    draw_boxes(grey(50, 50), boxes_xyxy_px=[[1, 1, 9, 9]] * 3, class_ids=[0, 5, -1], names=["cat"])
    assert seen == ["cat", "class 5", "class -1"]


@pytest.mark.parametrize("size_hw", [(1, 1), (10, 8000), (8000, 10), (3, 3)])
def test_extreme_pictures(size_hw: tuple[int, int]) -> None:
    image = grey(*size_hw)
    box = [-50, -50, size_hw[1] + 50, size_hw[0] + 50]
    drawn = draw_boxes(image, boxes_xyxy_px=[box], class_ids=[0], names=["thing"], scores=[1.0])
    assert drawn.shape == image.shape
    assert changed(image, drawn).any()


@pytest.mark.parametrize(
    "box", [[10, 10, 10, 10], [30, 30, 10, 10], [-1e9, -1e9, 1e9, 1e9], [500, 500, 600, 600], [99.9, 99.9, 100, 100]]
)
def test_degenerate_boxes_do_no_harm(box: list[float]) -> None:
    assert draw_boxes(grey(100, 100), boxes_xyxy_px=[box], class_ids=[0], names=["a"]).shape == (100, 100, 3)


def test_no_boxes_and_torch_boxes() -> None:
    image = grey(60, 60)
    assert (draw_boxes(image, boxes_xyxy_px=torch.zeros(0, 4), class_ids=torch.zeros(0), names=[]) == image).all()
    one = draw_boxes(image, boxes_xyxy_px=torch.tensor([[5.0, 5, 50, 50]]), class_ids=torch.tensor([0]), names=["a"])
    assert (one == draw_boxes(image, boxes_xyxy_px=np.array([[5, 5, 50, 50]]), class_ids=[0], names=["a"])).all()


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="float64"):
        draw_boxes(np.zeros((5, 5, 3)), boxes_xyxy_px=[], class_ids=[], names=[])
    with pytest.raises(DataError, match=r"\(5, 5\)"):
        draw_boxes(np.zeros((5, 5), np.uint8), boxes_xyxy_px=[], class_ids=[], names=[])
    with pytest.raises(DataError, match="2 boxes, 1 class ids"):
        draw_boxes(grey(9, 9), boxes_xyxy_px=[[0, 0, 1, 1]] * 2, class_ids=[0], names=["a"])
    with pytest.raises(DataError, match="1 scores"):
        draw_boxes(grey(9, 9), boxes_xyxy_px=[[0, 0, 1, 1]] * 2, class_ids=[0, 0], names=["a"], scores=[1])
    with pytest.raises(DataError, match="NaN"):
        draw_boxes(grey(9, 9), boxes_xyxy_px=[[0, 0, np.nan, 1]], class_ids=[0], names=["a"])


def test_colours_are_apart_and_texts_contrast() -> None:
    first = [class_colour(i) for i in range(12)]
    hues = [colorsys.rgb_to_hsv(*(part / 255 for part in colour)) for colour in first]
    for (ha, sa, va), (hb, sb, vb) in combinations(hues, 2):
        turn = min(abs(ha - hb), 1 - abs(ha - hb))
        assert turn > 0.05 or abs(va - vb) + abs(sa - sb) > 0.1
    assert len({class_colour(i) for i in range(80)}) == 80

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (p / 255 for p in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for i in range(80):
        low, high = sorted((luminance(class_colour(i)), luminance(text_colour(class_colour(i)))))
        assert (high + 0.05) / (low + 0.05) >= 4.5, "WCAG AA for text"


def test_tiles_keep_aspect_and_order() -> None:
    red, blue = grey(40, 80), grey(90, 30)
    red[:], blue[:] = (255, 0, 0), (0, 0, 255)
    sheet = tile_images([red, blue, red], columns=2, size=(100, 120))
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * 101 + 1, 2 * 121 + 1, 3)
    assert tuple(sheet[50, 60]) == (255, 0, 0)
    assert tuple(sheet[50, 121 + 60]) == (0, 0, 255)
    assert tuple(sheet[101 + 50, 60]) == (255, 0, 0)
    assert tuple(sheet[3, 60]) == (114, 114, 114), "margin above the wide image"
    assert tile_images([red] * 5, size=64).shape[1] == 3 * 65 + 1, "about square by default"
    captioned = tile_images([red, blue], columns=2, size=200, captions=["a.jpg", "a very long name " * 9])
    plain = tile_images([red, blue], columns=2, size=200)
    assert changed(plain, captioned)[:20, :200].any()
    assert not changed(plain, captioned)[40:].any()


def test_tiles_refuse_nothing_and_mismatch() -> None:
    with pytest.raises(DataError, match="at least one"):
        tile_images([])
    with pytest.raises(DataError, match="2 images but 1 captions"):
        tile_images([grey(5, 5)] * 2, captions=["a"])
