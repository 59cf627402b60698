"""What a detector should find in a batch, as flat rows: memory follows the boxes, not the most crowded image."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ullage.errors import DataError


@dataclass(frozen=True)
class Targets:
    """Ground truth of one batch.

    Attributes:
        image_index_G: int64, which image of the batch each box belongs to, ascending.
        class_ids_G: int64, class of each box.
        boxes_xyxy_px_G4: float32, corners in pixels of the network's input.
        batch_size: Number of images, those without boxes included.
    """

    image_index_G: torch.Tensor
    class_ids_G: torch.Tensor
    boxes_xyxy_px_G4: torch.Tensor
    batch_size: int

    def __post_init__(self) -> None:
        count = self.image_index_G.shape[0]
        if self.class_ids_G.shape != (count,) or self.boxes_xyxy_px_G4.shape != (count, 4):
            raise DataError(
                f"targets disagree: {count} image indices, class ids of shape {tuple(self.class_ids_G.shape)}, "
                f"boxes of shape {tuple(self.boxes_xyxy_px_G4.shape)}"
            )

    def __len__(self) -> int:
        return int(self.image_index_G.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Targets:
        """Return the same targets on ``device``."""
        return Targets(
            self.image_index_G.to(device, non_blocking=non_blocking),
            self.class_ids_G.to(device, non_blocking=non_blocking),
            self.boxes_xyxy_px_G4.to(device, non_blocking=non_blocking),
            self.batch_size,
        )

    def images(self, start: int, stop: int) -> Targets:
        """Return the targets of images ``start`` (included) to ``stop`` (excluded), renumbered from 0."""
        first, last = torch.searchsorted(
            self.image_index_G, torch.tensor([start, stop], device=self.image_index_G.device)
        )
        rows = slice(int(first), int(last))
        return Targets(
            self.image_index_G[rows] - start, self.class_ids_G[rows], self.boxes_xyxy_px_G4[rows], stop - start
        )

    @classmethod
    def empty(cls, batch_size: int, device: torch.device | str = "cpu") -> Targets:
        """Return targets for ``batch_size`` images that show nothing."""
        no_ids = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(no_ids, no_ids.clone(), torch.zeros(0, 4, device=device), batch_size)
