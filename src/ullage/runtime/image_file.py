"""Pictures on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ullage.errors import ConfigError, StorageError, nearest

WRITABLE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_JPEG_LIMIT, _WEBP_LIMIT = 65_535, 16_383


def write_image(path: str | Path, image_HW3: np.ndarray[Any, Any]) -> Path:
    """Write a uint8 RGB image; the suffix chooses the format, missing folders are made.

    Returns:
        The path written.

    Raises:
        ConfigError: The suffix names no format that is written, or the format cannot hold so large a picture.
        StorageError: The folder or file cannot be written, or the disk is full.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in WRITABLE_SUFFIXES:
        raise ConfigError(
            f"cannot write a picture as '{target.name}'; allowed: {' '.join(WRITABLE_SUFFIXES)}."
            f"{nearest(suffix, WRITABLE_SUFFIXES)}"
        )
    limit = {".jpg": _JPEG_LIMIT, ".jpeg": _JPEG_LIMIT, ".webp": _WEBP_LIMIT}.get(suffix)
    if limit is not None and max(image_HW3.shape[:2]) > limit:
        raise ConfigError(
            f"{suffix} holds at most {limit} pixels a side, '{target}' has {image_HW3.shape[:2]}: use .png"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Thin coloured lines suffer from colour at half resolution, JPEG's default.
        options: dict[str, Any] = {".jpg": {"quality": 92, "subsampling": 0}, ".webp": {"quality": 92}}.get(
            suffix.replace("jpeg", "jpg"), {}
        )
        Image.fromarray(image_HW3).save(target, **options)
    except OSError as error:
        raise StorageError(f"cannot write the picture '{target}': {error.strerror or error}") from None
    return target
