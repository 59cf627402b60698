"""Task-aligned assignment (arXiv:2108.07755, section 3.2) that touches only the anchors inside each box.

The anchors of a level are a regular grid, so those inside a box are a rectangle of columns and rows: (box, anchor)
pairs are enumerated by arithmetic, in chunks, and memory follows neither the most crowded image nor the number of
boxes times the number of anchors.

Shape letters: B images, G boxes of the whole batch, A anchors an image, N = B * A, L levels, P positives, Q pairs of a
chunk, T claims a box, R box bins, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ullage.errors import DataError
from ullage.geometry.iou import complete_iou
from ullage.geometry.targets import Targets
from ullage.nn.outputs import RawDetections, decode_boxes

TOP = 10
MAX_PAIRS = 2**16
NARROWEST, PADDING = 16, 4  # columns of the narrowest matrix of candidates; how much wider the next one is
DECODE_ROWS = 2**14  # anchors decoded at a time: the float32 bins stay in the processor's cache
_METRIC_EPS = 1e-9
_INDEX_MAX = 2**31 - 1


@dataclass(frozen=True)
class Assignment:
    """The positives: anchors that must predict a box, each at most once, in ascending (image, anchor) order.

    Attributes:
        image_P: int64, image of the batch.
        anchor_P: int64, anchor of that image.
        target_row_P: int64, row of ``Targets`` that the anchor must predict.
        score_P: float32, target score for the class of that box.
    """

    image_P: torch.Tensor
    anchor_P: torch.Tensor
    target_row_P: torch.Tensor
    score_P: torch.Tensor

    def __len__(self) -> int:
        return int(self.score_P.shape[0])


@dataclass(frozen=True)
class _Level:
    """One feature map: its cells, and the index of its first anchor."""

    height: int
    width: int
    stride: float
    first: int


@dataclass(frozen=True)
class _Rectangles:
    """Cells whose centre lies strictly inside each box: columns x0 to x1 and rows y0 to y1, ends excluded."""

    x0_GL: torch.Tensor
    y0_GL: torch.Tensor
    x1_GL: torch.Tensor
    y1_GL: torch.Tensor

    @property
    def count_GL(self) -> torch.Tensor:
        return (self.x1_GL - self.x0_GL) * (self.y1_GL - self.y0_GL)


@torch.no_grad()
def assign(raw: RawDetections, *, targets: Targets, top: int = TOP, max_pairs: int = MAX_PAIRS) -> Assignment:
    """Choose which anchors predict which box, and how confidently.

    An anchor is a candidate for the boxes that contain its centre. A box claims its ``top`` candidates of highest
    metric score^0.5 * CIoU^6 (CIoU clamped at 0); candidates of metric 0 are never claimed. An anchor claimed twice
    goes to the box of highest CIoU among all that contain it, claiming or not. The target score is
    metric / (largest metric among the box's positives + 1e-9) * (largest CIoU among them). Ties go to the lower anchor
    and to the lower row of ``targets``.

    Args:
        raw: Network outputs in any floating type; nothing flows back through the assignment.
        targets: Boxes in pixels of the network's input; one without an anchor inside gets none.
        top: Claims a box.
        max_pairs: Pairs held at a time; one box alone may exceed it, by at most A.

    Returns:
        The positives of the whole batch.

    Raises:
        DataError: Targets and outputs disagree about images or classes, a box is not finite, or the anchors are not
            regular grids.
    """
    _check(raw, targets)
    device = raw.logits_BAK.device
    if len(targets) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Assignment(none, none, none, torch.zeros(0, device=device))
    with torch.autocast(device.type, enabled=False):
        levels = _read_levels(raw)
        rectangles = _rectangles(targets.boxes_xyxy_px_G4.float(), levels)
        quality = Quality(raw, targets, _covered(rectangles, targets, levels).flatten().nonzero()[:, 0])
        key_P, row_P = _positives(quality, rectangles, levels, top, max_pairs)
        return _score(quality, key_P, row_P)


def _check(raw: RawDetections, targets: Targets) -> None:
    """Refuse targets that do not fit the outputs; one transfer from the device."""
    images, _, classes = raw.logits_BAK.shape
    if targets.batch_size != images:
        raise DataError(f"the targets are for {targets.batch_size} images, the network's outputs for {images}")
    if len(targets) == 0:
        return
    ids, image = targets.class_ids_G, targets.image_index_G
    finite = targets.boxes_xyxy_px_G4.isfinite().all().to(ids.dtype)
    low_id, high_id, low_image, high_image, is_finite = torch.stack(
        (ids.min(), ids.max(), image.min(), image.max(), finite)
    ).tolist()
    if low_id < 0 or high_id >= classes:
        raise DataError(
            f"target classes are {low_id} to {high_id}; a network of {classes} classes needs 0 to {classes - 1}"
        )
    if low_image < 0 or high_image >= images:
        raise DataError(f"targets name images {low_image} to {high_image} of a batch of {images}")
    if not is_finite:
        raise DataError("a target box has a coordinate that is not a finite number; check the labels")


def _read_levels(raw: RawDetections) -> list[_Level]:
    """Find the feature maps again in the list of anchors: the last anchor of each is at (width - .5, height - .5)."""
    strides_L, counts_L = torch.unique_consecutive(raw.strides_A, return_counts=True)
    last_L2 = raw.centres_A2[counts_L.cumsum(0) - 1]
    levels, first = [], 0
    for stride, count, x, y in torch.cat((strides_L[:, None], counts_L[:, None], last_L2), 1).tolist():
        level = _Level(height=int(y + 0.5), width=int(x + 0.5), stride=stride, first=first)
        if level.height * level.width != int(count):
            raise DataError(
                f"{int(count)} anchors of stride {stride:g} end at cell ({x:g}, {y:g}): not a regular row-major grid"
            )
        levels.append(level)
        first += int(count)
    return levels


def _rectangles(boxes_G4: torch.Tensor, levels: list[_Level]) -> _Rectangles:
    left, top, right, bottom = boxes_G4.unbind(-1)
    spans = [(*_span(left, right, v.stride, v.width), *_span(top, bottom, v.stride, v.height)) for v in levels]
    x0, x1, y0, y1 = (torch.stack(column, 1) for column in zip(*spans, strict=True))
    return _Rectangles(x0, y0, x1, y1)


def _span(low_G: torch.Tensor, high_G: torch.Tensor, stride: float, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first cell whose centre is above ``low``, and the first after it whose centre is not below ``high``.

    The division may round, products with small integers do not: a guess and one correction by the centre itself are
    exact. Centre and side are float32, so "above" and "more than 1e-9 above" mean the same.
    """
    first = (low_G / stride + 0.5).floor()
    first = first - ((first - 0.5) * stride > low_G).float()
    first = first + ((first + 0.5) * stride <= low_G).float()
    stop = (high_G / stride - 0.5).ceil()
    stop = stop - ((stop - 0.5) * stride >= high_G).float()
    stop = stop + ((stop + 0.5) * stride < high_G).float()
    first, stop = first.clamp(0, size).long(), stop.clamp(0, size).long()
    return first, torch.maximum(first, stop)


def _covered(rectangles: _Rectangles, targets: Targets, levels: list[_Level]) -> torch.Tensor:
    """Return which anchors lie in any box, bool (B, A): corners of rectangles, summed along both axes."""
    masks = []
    for index, level in enumerate(levels):
        x0, x1 = rectangles.x0_GL[:, index], rectangles.x1_GL[:, index]
        y0, y1 = rectangles.y0_GL[:, index], rectangles.y1_GL[:, index]
        depth = x0.new_zeros((targets.batch_size, level.height + 1, level.width + 1), dtype=torch.int32)
        for x, y, sign in ((x0, y0, 1), (x1, y0, -1), (x0, y1, -1), (x1, y1, 1)):
            cell_G = (targets.image_index_G * (level.height + 1) + y) * (level.width + 1) + x
            depth.view(-1).index_add_(0, cell_G, torch.full_like(cell_G, sign, dtype=torch.int32))
        depth = depth.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
        masks.append(depth[:, :-1, :-1].flatten(1) > 0)
    return torch.cat(masks, 1)


class Quality:
    """CIoU and metric of any (anchor, box) pairs; boxes are decoded once, at covered anchors ``key_U`` only."""

    def __init__(self, raw: RawDetections, targets: Targets, key_U: torch.Tensor):
        images, self.anchors, _ = raw.logits_BAK.shape
        self.targets, self.logits_BAK = targets, raw.logits_BAK
        self.targets_4G = targets.boxes_xyxy_px_G4.float().T.contiguous()
        # Coordinates first: the columns that complete_iou takes apart are then contiguous, which halves its time.
        self.boxes_4N = raw.centres_A2.new_zeros((4, images * self.anchors))
        for key_D in key_U.split(DECODE_ROWS):
            self.boxes_4N[:, key_D] = decode_at(raw, key_D // self.anchors, key_D % self.anchors).T

    def __call__(self, key_Q: torch.Tensor, row_Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(ciou_Q, metric_Q)`` for anchors ``key_Q`` (image * A + anchor) and rows of the targets."""
        ciou_Q = complete_iou(self.boxes_4N.index_select(1, key_Q).T, self.targets_4G.index_select(1, row_Q).T)
        # An anchor that predicts NaN ranks first, so that the loss becomes NaN instead of hiding it.
        ciou_Q = ciou_Q.clamp(min=0).nan_to_num(nan=torch.inf, posinf=torch.inf)
        image_Q = self.targets.image_index_G[row_Q]
        logit_Q = self.logits_BAK[image_Q, key_Q - image_Q * self.anchors, self.targets.class_ids_G[row_Q]]
        square_Q = ciou_Q.square()
        return ciou_Q, logit_Q.float().sigmoid().sqrt() * (square_Q * square_Q * square_Q)


def decode_at(raw: RawDetections, image_P: torch.Tensor, anchor_P: torch.Tensor) -> torch.Tensor:
    """Decode the boxes of some anchors to corners in pixels, float32, shape (P, 4)."""
    bins_1PR = raw.bins_BAR[image_P, anchor_P][None]
    return decode_boxes(RawDetections(bins_1PR, bins_1PR, raw.centres_A2[anchor_P], raw.strides_A[anchor_P]))[0]


def _rank(value_Q: torch.Tensor, index_Q: torch.Tensor) -> torch.Tensor:
    """Pack values >= 0 and indices into int64 whose order is that of the values, ties to the lower index."""
    return (value_Q.view(torch.int32).long() << 32) | (_INDEX_MAX - index_Q)


def _rank_index(rank: torch.Tensor) -> torch.Tensor:
    return _INDEX_MAX - (rank & 0xFFFFFFFF)


def crowding_of(raw: RawDetections, targets: Targets, *, max_pairs: int = MAX_PAIRS) -> tuple[int, int, int]:
    """Return what the memory of the assignment depends on: anchors in any box, pairs held at a time, most positives.

    Args:
        raw: Outputs whose values do not matter, only their anchors.
        targets: Ground truth.
        max_pairs: As in ``assign``.
    """
    levels = _read_levels(raw)
    rectangles = _rectangles(targets.boxes_xyxy_px_G4.float(), levels)
    counts_G = rectangles.count_GL.sum(1).sort(stable=True).values.cpu()
    pairs = max((int(counts_G[boxes].sum()) for boxes in _chunks(counts_G, max_pairs)), default=0)
    covered = int(_covered(rectangles, targets, levels).sum())
    return covered, pairs, min(int(counts_G.clamp(max=TOP).sum()), covered)


def _positives(
    quality: Quality, rectangles: _Rectangles, levels: list[_Level], top: int, max_pairs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the assigned anchors ``key_P`` (image * A + anchor, ascending) and the row of the box of each."""
    image_G, anchors = quality.targets.image_index_G, quality.anchors
    # Boxes of like size stand together, so that their candidates fill the rows of a matrix well.
    counts_G, order_G = rectangles.count_GL.sum(1).sort(stable=True)
    claims_GT = image_G.new_zeros((order_G.shape[0], top))
    best_N = image_G.new_zeros(quality.boxes_4N.shape[1])
    host_counts_G = counts_G.cpu()
    for boxes in _chunks(host_counts_G, max_pairs):
        _consider(quality, rectangles, levels, order_G[boxes], host_counts_G[boxes], best_N, claims_GT[boxes])
    box_C, slot_C = (claims_GT >> 32 > 0).nonzero(as_tuple=True)
    row_C = order_G[box_C]
    key_C = image_G[row_C] * anchors + _rank_index(claims_GT[box_C, slot_C])
    claims_N, claimant_N = torch.zeros_like(best_N), torch.zeros_like(best_N)
    claims_N.index_add_(0, key_C, torch.ones_like(key_C))
    claimant_N[key_C] = row_C
    key_P = claims_N.nonzero()[:, 0]
    row_P = torch.where(claims_N[key_P] == 1, claimant_N[key_P], _rank_index(best_N[key_P]))
    return key_P, row_P


def _chunks(counts_G: torch.Tensor, max_pairs: int) -> Iterator[slice]:
    """Cut boxes, sorted by their candidates' number, into runs of at most ``max_pairs`` pairs and at least one box."""
    ends_G = counts_G.cumsum(0)
    start = int((counts_G == 0).sum())
    while start < counts_G.shape[0]:
        done = int(ends_G[start] - counts_G[start])
        stop = int(torch.searchsorted(ends_G, done + max_pairs, right=True))
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop


def _consider(
    quality: Quality,
    rectangles: _Rectangles,
    levels: list[_Level],
    rows_M: torch.Tensor,
    counts_M: torch.Tensor,
    best_N: torch.Tensor,
    claims_MT: torch.Tensor,
) -> None:
    """Rate all candidates of the boxes ``rows_M``; write the best box of each anchor, and what each box claims."""
    box_Q, anchor_Q = _pairs(rectangles, levels, rows_M, int(counts_M.sum()))
    row_Q = rows_M[box_Q]
    key_Q = quality.targets.image_index_G[row_Q] * quality.anchors + anchor_Q
    ciou_Q, metric_Q = quality(key_Q, row_Q)
    best_N.scatter_reduce_(0, key_Q, _rank(ciou_Q, row_Q), "amax")
    _claim(claims_MT, _rank(metric_Q, anchor_Q), box_Q, counts_M)


def _pairs(
    rectangles: _Rectangles, levels: list[_Level], rows_M: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """List the ``total`` candidates of the boxes ``rows_M``, box by box: ``(box_Q, anchor_Q)``, box counted from 0."""
    columns = rows_M.new_tensor([[v.width for v in levels], [v.first for v in levels]])
    x0, y0 = rectangles.x0_GL[rows_M], rectangles.y0_GL[rows_M]
    width = rectangles.x1_GL[rows_M] - x0
    count_S = rectangles.count_GL[rows_M].flatten()
    corner_S = (columns[1] + y0 * columns[0] + x0).flatten()
    start_S = count_S.cumsum(0) - count_S
    segment_Q = torch.repeat_interleave(count_S, output_size=total)
    position_Q = torch.arange(total, device=rows_M.device) - start_S[segment_Q]
    width_Q = width.flatten()[segment_Q]
    y_Q = position_Q // width_Q
    # From one row of the rectangle to the next the anchor advances by the grid's width, position by the rectangle's.
    skip_S = (columns[0] - width).flatten()
    return segment_Q // len(levels), corner_S[segment_Q] + position_Q + y_Q * skip_S[segment_Q]


def _claim(claims_MT: torch.Tensor, rank_Q: torch.Tensor, box_Q: torch.Tensor, counts_M: torch.Tensor) -> None:
    """Write the highest ranks of every box into ``claims_MT``; boxes are sorted by their number of candidates.

    Boxes of 1 to 16, 17 to 64, 65 to 256 … candidates make one matrix each, so padding at most quadruples them.
    """
    ends_M = counts_M.cumsum(0)
    starts_M = (ends_M - counts_M).to(rank_Q.device, non_blocking=True)
    low, width, pair = 0, NARROWEST, 0
    while low < counts_M.shape[0]:
        high = int(torch.searchsorted(counts_M, width, right=True))
        if high > low:
            end = int(ends_M[high - 1])
            box_q = box_Q[pair:end]
            column_q = torch.arange(pair, end, device=rank_Q.device) - starts_M[box_q]
            ranks = rank_Q.new_zeros((high - low, width))
            ranks.view(-1)[(box_q - low) * width + column_q] = rank_Q[pair:end]
            best = ranks.topk(min(claims_MT.shape[1], width), sorted=False).values
            claims_MT[low:high, : best.shape[1]] = best
            low, pair = high, end
        width *= PADDING


def _score(quality: Quality, key_P: torch.Tensor, row_P: torch.Tensor) -> Assignment:
    """Give every positive its target score."""
    ciou_P, metric_P = quality(key_P, row_P)
    zeros_G = quality.targets_4G.new_zeros(quality.targets_4G.shape[1])
    top_ciou_G = zeros_G.scatter_reduce(0, row_P, ciou_P, "amax")
    top_metric_G = zeros_G.scatter_reduce(0, row_P, metric_P, "amax")
    score_P = metric_P / (top_metric_G[row_P] + _METRIC_EPS) * top_ciou_G[row_P]
    return Assignment(key_P // quality.anchors, key_P % quality.anchors, row_P, score_P)
