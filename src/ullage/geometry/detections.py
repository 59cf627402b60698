"""What a detector found in one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ullage.errors import DataError


@dataclass(frozen=True)
class Detections:
    """Boxes found in one image, best score first.

    Attributes:
        boxes_xyxy_px_D4: float32, corners in pixels of the frame that the producer states (original image unless said).
        scores_D: float32 in [0, 1], descending.
        class_ids_D: int64.
    """

    boxes_xyxy_px_D4: torch.Tensor
    scores_D: torch.Tensor
    class_ids_D: torch.Tensor

    def __post_init__(self) -> None:
        count = self.scores_D.shape[0]
        if self.class_ids_D.shape != (count,) or self.boxes_xyxy_px_D4.shape != (count, 4):
            raise DataError(
                f"detections disagree: {count} scores, class ids of shape {tuple(self.class_ids_D.shape)}, "
                f"boxes of shape {tuple(self.boxes_xyxy_px_D4.shape)}"
            )

    def __len__(self) -> int:
        return int(self.scores_D.shape[0])

    def to(self, device: torch.device | str) -> Detections:
        """Return the same detections on ``device``."""
        return Detections(self.boxes_xyxy_px_D4.to(device), self.scores_D.to(device), self.class_ids_D.to(device))
