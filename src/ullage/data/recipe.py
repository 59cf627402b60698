"""What was drawn for one training sample, as plain data: enough to make the same sample again.

Random choices are made first (``augment.sample_recipe``) and written down here; applying them (``render.render``) is
deterministic and treats pixels and boxes alike. A recipe travels as JSON.

Frames are continuous pixels: x in [0, width], the centre of the first pixel at 0.5. Matrices are 3 x 3, row by row.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ullage.errors import DataError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tile:
    """One image, or one object of it, placed on the canvas.

    Attributes:
        index: The image in its ``DetectionSet``.
        matrix: From the original image to the canvas, 9 numbers.
        box: Row of the image's labels when only that object is pasted; None places the whole image.
    """

    index: int
    matrix: tuple[float, ...]
    box: int | None = None

    def matrix_33(self) -> Array:
        """Return the matrix as float64 of shape (3, 3)."""
        return np.array(self.matrix, np.float64).reshape(3, 3)


@dataclass(frozen=True)
class Hsv:
    """A change of colour: hue turned by a fraction of the circle, saturation and brightness multiplied."""

    hue_shift: float
    saturation_gain: float
    value_gain: float


@dataclass(frozen=True)
class Recipe:
    """One training sample.

    Attributes:
        size_hw: Size of the canvas.
        layers: One picture, or two that are blended; the tiles of a picture in the order in which they are drawn.
        blend: Weight of the first picture, the second has the rest; 1 with one picture.
        hsv: Change of colour, None for none.
    """

    size_hw: tuple[int, int]
    layers: tuple[tuple[Tile, ...], ...]
    blend: float = 1.0
    hsv: Hsv | None = None

    def to_json(self) -> str:
        """Return the recipe as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what ``to_json`` wrote; every number comes back exactly.

        Raises:
            DataError: The text is no recipe.
        """
        try:
            raw = json.loads(text)
            layers = tuple(
                tuple(Tile(tile["index"], tuple(tile["matrix"]), tile["box"]) for tile in layer)
                for layer in raw["layers"]
            )
            hsv = None if raw["hsv"] is None else Hsv(**raw["hsv"])
            height, width = raw["size_hw"]
            return cls((height, width), layers, raw["blend"], hsv)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"this is no augmentation recipe ({type(error).__name__}: {error}): {text[:80]!r}"
            ) from error
