"""Where images go: letterbox, mosaic of four (arXiv:2004.10934) and random view, as 3 x 3 matrices.

A placement maps an image to a scene, a view maps the scene to the canvas; their product maps the image straight to the
canvas, so that every tile is resampled once. The scene of a single image has the size of the canvas, that of a mosaic
twice the size in each direction; neither is ever drawn.

Differs from the customary implementation: the part of a tile that sticks out of the double-size scene is not cut off,
so where the view reaches that far it shows the image instead of grey.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ullage.config.augment import AugmentSettings

Array = np.ndarray[Any, Any]
MAX_FORESHORTENING = 0.8


@dataclass(frozen=True)
class View:
    """A scene as the canvas shows it.

    Attributes:
        centre_xy: The point of the scene that lands in the middle of the canvas, before ``shift_xy``.
        gain: Size gain.
        degrees: Rotation, clockwise in the image.
        shear_degrees: Shear along x and along y.
        perspective_xy: Foreshortening per pixel of distance from the centre.
        shift_xy: Where the centre lands, as a fraction of the canvas.
        flip_lr: Mirrored left to right.
        flip_ud: Mirrored top to bottom.
    """

    centre_xy: tuple[float, float]
    gain: float = 1.0
    degrees: float = 0.0
    shear_degrees: tuple[float, float] = (0.0, 0.0)
    perspective_xy: tuple[float, float] = (0.0, 0.0)
    shift_xy: tuple[float, float] = (0.5, 0.5)
    flip_lr: bool = False
    flip_ud: bool = False

    def matrix(self, size_hw: tuple[int, int]) -> Array:
        """Return the map from the scene to a canvas: perspective, rotation and gain, shear, shift, flips."""
        height, width = size_hw
        to_centre = translation(-self.centre_xy[0], -self.centre_xy[1])
        perspective = np.array([[1, 0, 0], [0, 1, 0], [*self.perspective_xy, 1]], np.float64)
        # Exact zeros matter: a view without rotation is drawn by the faster, axis-aligned way.
        turn = math.radians(self.degrees)
        a, b = self.gain * math.cos(turn), self.gain * math.sin(turn)
        rotation = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]], np.float64)
        shear_x, shear_y = (math.tan(math.radians(angle)) for angle in self.shear_degrees)
        shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]], np.float64)
        flips = np.array(
            [
                [-1.0 if self.flip_lr else 1.0, 0, width if self.flip_lr else 0],
                [0, -1.0 if self.flip_ud else 1.0, height if self.flip_ud else 0],
                [0, 0, 1],
            ]
        )
        shift = translation(self.shift_xy[0] * width, self.shift_xy[1] * height)
        return flips @ shift @ shear @ rotation @ perspective @ to_centre


def translation(x: float, y: float) -> Array:
    """Return the matrix that moves by (x, y)."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def place_single(source_hw: tuple[int, int], size_hw: tuple[int, int]) -> Array:
    """Place an image in the middle of a scene of ``size_hw``, as large as fits."""
    gain = _fit_gain(source_hw, size_hw)
    left, top = (size_hw[1] - source_hw[1] * gain) / 2, (size_hw[0] - source_hw[0] * gain) / 2
    return np.array([[gain, 0, left], [0, gain, top], [0, 0, 1]], np.float64)


def place_mosaic(
    source_hw: tuple[int, int], size_hw: tuple[int, int], *, quarter: int, meet_xy: tuple[float, float]
) -> Array:
    """Place an image in a mosaic: as large as fits ``size_hw``, its corner at the point where the four meet.

    Args:
        source_hw: Size of the image.
        size_hw: Size of the canvas.
        quarter: 0 left top, 1 right top, 2 left bottom, 3 right bottom.
        meet_xy: The point in the double-size scene.
    """
    gain = _fit_gain(source_hw, size_hw)
    left = meet_xy[0] - (source_hw[1] * gain if quarter % 2 == 0 else 0)
    top = meet_xy[1] - (source_hw[0] * gain if quarter < 2 else 0)
    return np.array([[gain, 0, left], [0, gain, top], [0, 0, 1]], np.float64)


def sample_meeting_point(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[float, float]:
    """Draw where the four images of a mosaic meet: the middle half of the double-size scene."""
    x, y = rng.uniform(0.5, 1.5, 2)
    return float(x * size_hw[1]), float(y * size_hw[0])


def sample_view(rng: np.random.Generator, *, settings: AugmentSettings, size_hw: tuple[int, int], mosaic: bool) -> View:
    """Draw a view of a scene.

    Every number is drawn whatever the settings, so that changing one setting leaves the other draws as they were.
    Perspective is limited where it would bring part of the scene behind the viewer.
    """
    height, width = size_hw
    across = rng.uniform(-1, 1, 8)
    flip_lr, flip_ud = rng.random(2)
    gain = 1 + settings.scale * across[0]
    shift_x, shift_y = 0.5 + settings.translate * across[4:6]
    lean_x, lean_y = settings.perspective * across[6:8]
    reach = 1.5 if mosaic else 0.5
    foreshortening = reach * (abs(lean_x) * width + abs(lean_y) * height)
    if foreshortening > MAX_FORESHORTENING:
        lean_x, lean_y = (lean * MAX_FORESHORTENING / foreshortening for lean in (lean_x, lean_y))
    middle = 1.0 if mosaic else 0.5
    return View(
        centre_xy=(middle * width, middle * height),
        gain=float(gain),
        degrees=float(settings.degrees * across[1]),
        shear_degrees=(float(settings.shear * across[2]), float(settings.shear * across[3])),
        perspective_xy=(float(lean_x), float(lean_y)),
        shift_xy=(float(shift_x), float(shift_y)),
        flip_lr=bool(flip_lr < settings.fliplr),
        flip_ud=bool(flip_ud < settings.flipud),
    )


def _fit_gain(source_hw: tuple[int, int], size_hw: tuple[int, int]) -> float:
    return min(size_hw[0] / source_hw[0], size_hw[1] / source_hw[1])
