"""Images in memory become uint8 RGB by stated rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ullage.errors import DataError
from ullage.runtime.pixels import image_from_pil, images_from_array, images_from_tensor


def one(array: np.ndarray) -> np.ndarray:
    (image,) = images_from_array(array)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.flags["C_CONTIGUOUS"]
    return image


def test_rgb_stays_and_grey_is_repeated() -> None:
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert (one(rgb) == rgb).all()
    grey = np.arange(8, dtype=np.uint8).reshape(2, 4)
    for array in (grey, grey[..., None]):
        assert (one(array) == grey[..., None]).all()


def test_transparent_pixels_become_grey_114() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    assert one(rgba).tolist() == [[[10, 20, 30], [114, 114, 114]]]


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.array([[0, 65535, 32768]], np.uint16), [0, 255, 128]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0.0, 1.0, 0.5, 1.0005]], np.float32), [0, 255, 128, 255]),
        (np.array([[0.0, 0.2]], np.float64), [0, 51]),
        (np.array([[0, 255]], np.int64), [0, 255]),
    ],
    ids=["uint16", "bool", "float32", "float64", "int64"],
)
def test_value_rules(array: np.ndarray, wanted: list[int]) -> None:
    assert one(array)[0, :, 0].tolist() == wanted


def test_a_stack_is_several_images() -> None:
    assert len(images_from_array(np.zeros((3, 4, 5, 3), np.uint8))) == 3


def test_views_and_strides() -> None:
    bgr = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    assert (one(bgr[..., ::-1]) == bgr[..., ::-1]).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 40, 50), np.uint8), r"\(3, 40, 50\).*\(C, H, W\): transpose"),
        (np.zeros((4,), np.uint8), r"shape \(4,\)"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.full((2, 2), 200.0), "divide by 255"),
        (np.full((2, 2), np.nan), r"\[0, 1\]"),
        (np.full((2, 2), 300), r"\[0, 255\]"),
        (np.full((2, 2), -1), r"\[0, 255\]"),
        (np.full((2, 2), "a"), "allowed: uint8"),
    ],
)
def test_what_is_no_image(array: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        images_from_array(array)


def test_tensors() -> None:
    batch = torch.zeros(2, 3, 4, 5)
    batch[1, 0] = 1.0
    first, second = images_from_tensor(batch)
    assert first.shape == (4, 5, 3)
    assert second[0, 0].tolist() == [255, 0, 0]
    assert len(images_from_tensor(batch[0])) == 1
    assert images_from_tensor(torch.full((1, 3, 2, 2), 7, dtype=torch.uint8))[0][0, 0, 0] == 7
    assert images_from_tensor(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16))[0].max() == 255
    assert images_from_tensor(torch.ones(1, 3, 2, 2, requires_grad=True))[0].max() == 255
    for wrong in (torch.zeros(4, 5), torch.zeros(1, 5, 4, 4), torch.zeros(0, 3, 4, 4)):
        with pytest.raises(DataError, match="holds no images"):
            images_from_tensor(wrong)
    with pytest.raises(DataError, match="divide by 255"):
        images_from_tensor(torch.full((1, 3, 2, 2), 255.0))


def test_pil_modes() -> None:
    rgb = Image.new("RGB", (4, 3), (10, 20, 30))
    assert image_from_pil(rgb).shape == (3, 4, 3)
    assert image_from_pil(rgb)[0, 0].tolist() == [10, 20, 30]
    assert image_from_pil(rgb.convert("CMYK")).shape == (3, 4, 3)
    assert image_from_pil(Image.new("1", (4, 3), 1)).max() == 255
    assert image_from_pil(Image.new("L", (4, 3), 77))[0, 0].tolist() == [77, 77, 77]
    assert image_from_pil(Image.new("RGBA", (4, 3), (0, 0, 0, 0)))[0, 0].tolist() == [114, 114, 114]
    assert image_from_pil(Image.fromarray(np.full((3, 4), 65535, np.uint16)))[0, 0].tolist() == [255, 255, 255]
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    assert image_from_pil(palette)[0, 0].tolist() == [10, 20, 30]
