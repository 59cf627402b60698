"""Images that users hold in memory, brought to uint8 RGB (H, W, 3).

One rule for the order of channels: RGB, as everywhere in Ullage. An array from ``cv2.imread`` is BGR: hand in
``image[..., ::-1]``. Boxes refer to the pixels as given: no EXIF orientation is applied to what is in memory already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ullage.errors import DataError
from ullage.geometry.letterbox import PAD_GREY

Array = np.ndarray[Any, Any]

_ALLOWED = "allowed: (H, W), (H, W, 1), (H, W, 3) RGB, (H, W, 4) RGBA, or (B, H, W, 3) for several"
_SLACK = 1e-3  # resizing filters overshoot 1.0 a little


def images_from_array(array: Array) -> list[Array]:
    """Read one image, or a stack (B, H, W, C), from a numpy array.

    Values: uint8 as they are; bool as 0 and 255; of uint16 the upper 8 bits, as image files of 16 bits are read; other
    integers must lie in [0, 255]; floats must lie in [0, 1]. Transparent pixels are laid over grey 114, as files are.

    Raises:
        DataError: The shape or the values are not those of an image.
    """
    if array.ndim == 4 and array.shape[-1] in (1, 3, 4) and array.size:
        return [image for one in array for image in images_from_array(one)]
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        hint = "; it looks like (C, H, W): transpose it" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise DataError(f"an array of shape {array.shape} is no image; {_ALLOWED}{hint}")
    pixels = _to_uint8(array).reshape(*array.shape[:2], channels)
    if channels == 4:
        alpha_HW1 = pixels[..., 3:].astype(np.uint16)
        blended = pixels[..., :3] * alpha_HW1 + PAD_GREY * (255 - alpha_HW1)
        return [((blended + 127) // 255).astype(np.uint8)]
    return [np.ascontiguousarray(np.broadcast_to(pixels, (*array.shape[:2], 3)))]


def images_from_tensor(tensor: torch.Tensor) -> list[Array]:
    """Read images from a torch tensor (B, 3, H, W) or (3, H, W): floats in [0, 1], or uint8.

    Raises:
        DataError: The shape or the values are not those of images.
    """
    stack = tensor[None] if tensor.ndim == 3 else tensor
    if stack.ndim != 4 or stack.shape[1] not in (1, 3) or stack.numel() == 0:
        raise DataError(
            f"a tensor of shape {tuple(tensor.shape)} holds no images; allowed: (B, 3, H, W) or (3, H, W), "
            "RGB floats in [0, 1] or uint8"
        )
    host = stack.detach().cpu()
    host = host.float() if host.is_floating_point() else host
    return images_from_array(host.permute(0, 2, 3, 1).numpy())


def image_from_pil(picture: Image.Image) -> Array:
    """Read a PIL image of any mode, as ``images_from_array`` reads an array.

    Raises:
        DataError: The picture is empty or its file is damaged.
    """
    try:
        if picture.mode in ("I;16", "I;16L", "I;16B", "I;16N"):  # Pillow would clip 16 bits at 255, not scale them
            return images_from_array(np.asarray(picture).astype(np.uint16))[0]
        if picture.mode in ("I", "F"):
            return images_from_array(np.asarray(picture))[0]
        has_alpha = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info
        return images_from_array(np.asarray(picture.convert("RGBA" if has_alpha else "RGB")))[0]
    except (OSError, SyntaxError) as error:  # Pillow decodes lazily, and reports damaged PNGs as SyntaxError
        raise DataError(f"the PIL image cannot be decoded: {error}") from None


def _to_uint8(array: Array) -> Array:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise DataError(f"an array of {array.dtype} is no image; allowed: uint8, uint16, bool, floats in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f":
        if not (low >= -_SLACK and high <= 1 + _SLACK):  # also true for NaN
            raise DataError(
                f"a float image must lie in [0, 1], found values from {low:g} to {high:g}; "
                "divide by 255, or convert to uint8"
            )
        return np.round(array.clip(0, 1) * 255).astype(np.uint8)
    if low < 0 or high > 255:
        raise DataError(
            f"an image of {array.dtype} must lie in [0, 255], found values from {low:g} to {high:g}; "
            "convert it to uint8 or uint16"
        )
    return array.astype(np.uint8)
