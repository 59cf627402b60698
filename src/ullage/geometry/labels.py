"""The ground truth of one image, in numpy: what data sources give and what metrics judge against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ullage.errors import DataError


@dataclass(frozen=True)
class Labels:
    """Boxes of one image.

    Attributes:
        boxes_xyxy_px_G4: float32, corners in pixels of the original image.
        class_ids_G: int32.
        crowd_G: bool, regions where detections count neither for nor against (COCO's ``iscrowd``); never trained on.
    """

    boxes_xyxy_px_G4: np.ndarray[Any, Any]
    class_ids_G: np.ndarray[Any, Any]
    crowd_G: np.ndarray[Any, Any]

    def __post_init__(self) -> None:
        count = self.class_ids_G.shape[0]
        if self.boxes_xyxy_px_G4.shape != (count, 4) or self.crowd_G.shape != (count,):
            raise DataError(
                f"labels disagree: {count} class ids, boxes of shape {self.boxes_xyxy_px_G4.shape}, "
                f"crowd flags of shape {self.crowd_G.shape}"
            )

    def __len__(self) -> int:
        return int(self.class_ids_G.shape[0])

    def select(self, rows: np.ndarray[Any, Any]) -> Labels:
        """Return the rows that an index or a mask picks."""
        return Labels(self.boxes_xyxy_px_G4[rows], self.class_ids_G[rows], self.crowd_G[rows])

    @classmethod
    def empty(cls) -> Labels:
        """Return the labels of an image that shows nothing."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))
