"""Raw outputs of a detector, and how they decode.

Shape letters: B batch, A anchors (all levels, P3 first, row-major), R box bins (4 sides x bins a side), K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class RawDetections(NamedTuple):
    """What a detection head returns, before softmax, sigmoid and decoding.

    Attributes:
        bins_BAR: Logits of the distance bins; sides in the order left, top, right, bottom (arXiv:2006.04388).
        logits_BAK: Class logits.
        centres_A2: float32, anchor centres (x, y) in cells of their level: (column + .5, row + .5).
        strides_A: float32, pixels a cell.
    """

    bins_BAR: torch.Tensor
    logits_BAK: torch.Tensor
    centres_A2: torch.Tensor
    strides_A: torch.Tensor


def anchor_grid(
    level_sizes_hw: list[tuple[int, int]], strides: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the anchors' ``(centres_A2, strides_A)`` for feature maps of the given sizes."""
    centres, sizes = [], []
    for (height, width), stride in zip(level_sizes_hw, strides, strict=True):
        y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
        x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
        centres.append(torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).flatten(0, 1))
        sizes.append(torch.full((height * width,), float(stride), device=device))
    return torch.cat(centres), torch.cat(sizes)


def expected_distances(bins_R: torch.Tensor) -> torch.Tensor:
    """Expectation of the distance distributions: (..., 4 * bins) logits to (..., 4) distances in cells, float32."""
    sides = bins_R.float().unflatten(-1, (4, -1))
    bins = torch.arange(sides.shape[-1], device=sides.device, dtype=torch.float32)
    return sides.softmax(-1) @ bins


def decode_boxes(raw: RawDetections) -> torch.Tensor:
    """Decode boxes to corners in pixels of the network's input, float32, shape (B, A, 4)."""
    distances_BA4 = expected_distances(raw.bins_BAR)
    left_top, right_bottom = distances_BA4.split(2, -1)
    cells = torch.cat((raw.centres_A2 - left_top, raw.centres_A2 + right_bottom), -1)
    return cells * raw.strides_A[:, None]


def decode_scores(raw: RawDetections) -> torch.Tensor:
    """Class probabilities, float32, shape (B, A, K)."""
    return raw.logits_BAK.float().sigmoid()
