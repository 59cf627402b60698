"""The outlines of objects as polygons, in columns: what a mask would say about where an object is, in a few points.

An object may consist of several rings (COCO's parts behind an obstacle), which do not overlap.

Shape letters: N objects, R rings, P points, E edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outlines:
    """Polygons of N objects; an object without any has its box only.

    Attributes:
        ring_ends_N: int64, where each object's rings end in ``point_ends_R``.
        point_ends_R: int64, where each ring's points end in ``points_xy_px_P2``.
        points_xy_px_P2: float32, in pixels of the original image.
    """

    ring_ends_N: Array
    point_ends_R: Array
    points_xy_px_P2: Array

    @classmethod
    def of(cls, objects: Sequence[Sequence[Array]]) -> Outlines:
        """Pack the rings of each object, arrays of shape (points, 2)."""
        rings = [ring for each in objects for ring in each]
        return cls(
            np.cumsum([len(each) for each in objects], dtype=np.int64),
            np.cumsum([len(ring) for ring in rings], dtype=np.int64),
            np.concatenate([np.zeros((0, 2), np.float32), *rings]).astype(np.float32),
        )

    def __len__(self) -> int:
        return len(self.ring_ends_N)

    def rings(self, row: int) -> list[Array]:
        """Return the rings of one object, each (points, 2)."""
        one = self.select(np.array([row]))
        return np.split(one.points_xy_px_P2, one.point_ends_R[:-1]) if len(one.point_ends_R) else []

    def have(self, rows: Array) -> Array:
        """Return which of some objects, given by index, have an outline, bool."""
        starts, stops = _spans(self.ring_ends_N, rows)
        return stops > starts

    def select(self, rows: Array) -> Outlines:
        """Return the objects that an index or a mask picks."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        rings, ring_ends_N = _runs(self.ring_ends_N, rows)
        points, point_ends_R = _runs(self.point_ends_R, rings)
        return Outlines(ring_ends_N, point_ends_R, self.points_xy_px_P2[points])

    def point_owners_P(self) -> Array:
        """Return the object that each point belongs to."""
        ring_owner_R = np.repeat(np.arange(len(self)), np.diff(self.ring_ends_N, prepend=0))
        return np.repeat(ring_owner_R, np.diff(self.point_ends_R, prepend=0))

    def nbytes(self) -> int:
        """Return the memory that it takes."""
        return self.ring_ends_N.nbytes + self.point_ends_R.nbytes + self.points_xy_px_P2.nbytes


def _runs(ends: Array, rows: Array) -> tuple[Array, Array]:
    """Return the members of the runs that rows pick, one behind the other, and where each of the runs ends now."""
    starts, stops = _spans(ends, rows)
    counts = stops - starts
    new_ends = np.cumsum(counts, dtype=np.int64)
    shift = np.repeat(starts - (new_ends - counts), counts)
    return np.arange(len(shift)) + shift, new_ends


def _spans(ends: Array, rows: Array) -> tuple[Array, Array]:
    """Return where the runs that rows pick begin and end; the other runs, which may be millions, are not touched."""
    if not len(rows):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.where(rows > 0, ends[rows - 1], 0), ends[rows]


def seen_boxes(outlines: Outlines, matrices_N33: Array, size_hw: tuple[int, int]) -> tuple[Array, Array]:
    """Map outlines and return the upright boxes around them, whole and as far as the canvas shows them, float64 (N, 4).

    The shown box is that of the polygon cut off by the canvas, so an object that leaves the canvas at a slant gets no
    more of it than it covers. Objects without an outline, and those that are out of sight, get NaN.

    Args:
        outlines: N objects.
        matrices_N33: From the original image to the canvas, one for each object.
        size_hw: Size of the canvas.
    """
    count, owner_P = len(outlines), outlines.point_owners_P()
    whole_N4, shown_N4 = np.full((count, 4), np.nan), np.full((count, 4), np.nan)
    if not len(owner_P):
        return whole_N4, shown_N4
    points_P3 = np.column_stack((outlines.points_xy_px_P2, np.ones(len(owner_P))))
    mapped_P3 = (matrices_N33[owner_P] @ points_P3[:, :, None])[..., 0]
    points_P2 = mapped_P3[:, :2] / mapped_P3[:, 2:]
    _bounds(points_P2, points_P2, owner_P, whole_N4)
    # The next point of each ring; after the last comes the first.
    next_P = np.arange(1, len(owner_P) + 1)
    next_P[outlines.point_ends_R - 1] = np.concatenate(([0], outlines.point_ends_R[:-1]))
    ends_P2 = points_P2[next_P]
    low_E2, high_E2, in_E = _clip_edges(points_P2, ends_P2, size_hw)
    _bounds(low_E2[in_E], high_E2[in_E], owner_P[in_E], shown_N4)
    _add_corners(points_P2, ends_P2, owner_P, size_hw, shown_N4)
    return whole_N4, shown_N4


def _bounds(one_E2: Array, other_E2: Array, owner_E: Array, boxes_N4: Array) -> None:
    """Grow each object's box by its edges; NaN means no box yet."""
    if not len(owner_E):
        return
    firsts = np.flatnonzero(np.diff(owner_E, prepend=-1))
    rows = owner_E[firsts]
    low = np.minimum.reduceat(np.minimum(one_E2, other_E2), firsts, axis=0)
    high = np.maximum.reduceat(np.maximum(one_E2, other_E2), firsts, axis=0)
    boxes_N4[rows, :2] = np.fmin(boxes_N4[rows, :2], low)
    boxes_N4[rows, 2:] = np.fmax(boxes_N4[rows, 2:], high)


def _clip_edges(start_E2: Array, end_E2: Array, size_hw: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Cut edges off at the canvas (Liang and Barsky 1984); return both ends, and which edges touch it."""
    way_E2 = end_E2 - start_E2
    enter_E, leave_E = np.zeros(len(start_E2)), np.ones(len(start_E2))
    inside_E = np.ones(len(start_E2), bool)
    for axis, limit in ((0, size_hw[1]), (1, size_hw[0])):
        for step_E, room_E in ((-way_E2[:, axis], start_E2[:, axis]), (way_E2[:, axis], limit - start_E2[:, axis])):
            share_E = np.divide(room_E, step_E, out=np.zeros_like(room_E), where=step_E != 0)
            enter_E = np.where(step_E < 0, np.maximum(enter_E, share_E), enter_E)
            leave_E = np.where(step_E > 0, np.minimum(leave_E, share_E), leave_E)
            inside_E &= (step_E != 0) | (room_E >= 0)
    inside_E &= enter_E <= leave_E
    limits = np.array([size_hw[1], size_hw[0]], np.float64)
    one_E2, other_E2 = ((start_E2 + share_E[:, None] * way_E2).clip(0, limits) for share_E in (enter_E, leave_E))
    return one_E2, other_E2, inside_E


def _add_corners(start_E2: Array, end_E2: Array, owner_E: Array, size_hw: tuple[int, int], boxes_N4: Array) -> None:
    """Grow the boxes of objects that cover a corner of the canvas, which no edge needs to touch."""
    height, width = size_hw
    for x, y in ((0, 0), (width, 0), (0, height), (width, height)):
        # An odd number of edges to the right of the corner means that it is inside.
        spans_E = (start_E2[:, 1] > y) != (end_E2[:, 1] > y)
        rise_E = np.where(spans_E, end_E2[:, 1] - start_E2[:, 1], 1.0)
        cross_E = start_E2[:, 0] + (y - start_E2[:, 1]) / rise_E * (end_E2[:, 0] - start_E2[:, 0])
        odd_N = np.bincount(owner_E[spans_E & (cross_E > x)], minlength=len(boxes_N4)) % 2 == 1
        boxes_N4[odd_N, :2] = np.fmin(boxes_N4[odd_N, :2], (x, y))
        boxes_N4[odd_N, 2:] = np.fmax(boxes_N4[odd_N, 2:], (x, y))
