"""A predictor that takes fewer images at a time when memory runs out, instead of ending the run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ullage.errors import MemoryBudgetError
from ullage.nn.outputs import RawDetections
from ullage.runtime.predictor import Predictor
from ullage.train.accumulate import is_out_of_memory
from ullage.train.events import OutOfMemory


class PatientPredictor:
    """Cuts batches into parts of ``limit`` images, and halves the limit each time memory runs out.

    Args:
        limit: Images at a time; 0 takes batches whole.
        tell: Hears of it.
    """

    def __init__(self, *, limit: int = 0, tell: Callable[[object], None] = lambda event: None) -> None:
        self.limit, self.tell = limit, tell

    def __call__(self, predictor: Predictor, images_BCHW: torch.Tensor) -> RawDetections:
        """Run the network on a batch.

        Raises:
            MemoryBudgetError: Not even one image fits.
        """
        while True:
            size = self.limit or images_BCHW.shape[0]
            try:
                parts = [predictor(part) for part in images_BCHW.split(size)]
                return parts[0] if len(parts) == 1 else _joined(parts)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            size = min(size, images_BCHW.shape[0])
            if size == 1:
                raise MemoryBudgetError(
                    f"out of memory in validation with one image at a time: {reason}; use a smaller imgsz or val=False"
                )
            self.limit = -(-size // 2)
            self.tell(OutOfMemory("validation", reason, f"validation takes {self.limit} images at a time"))


def _joined(parts: list[RawDetections]) -> RawDetections:
    first = parts[0]
    return RawDetections(
        torch.cat([part.bins_BAR for part in parts]),
        torch.cat([part.logits_BAK for part in parts]),
        first.centres_A2,
        first.strides_A,
    )
