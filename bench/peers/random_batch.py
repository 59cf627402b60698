"""One batch of noise with as many boxes as photographs have; numpy alone, so that both sides time the same numbers.

Shape letters: B images, H W size, G boxes of the whole batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

MEAN_BOXES = 7  # COCO has 7.3 boxes an image, most images fewer and some very many: a geometric distribution
LEAST_SIDE = 0.03


@dataclass(frozen=True)
class RandomBatch:
    """Images and boxes.

    Attributes:
        images_BHW3: uint8.
        image_index_G: int64, ascending.
        class_ids_G: int64.
        boxes_cxcywh_unit_G4: float32, parts of the image's sides.
    """

    images_BHW3: np.ndarray[Any, Any]
    image_index_G: np.ndarray[Any, Any]
    class_ids_G: np.ndarray[Any, Any]
    boxes_cxcywh_unit_G4: np.ndarray[Any, Any]

    def fingerprint(self) -> str:
        """Return a hash of everything: equal on both sides."""
        arrays = (self.images_BHW3, self.image_index_G, self.class_ids_G, self.boxes_cxcywh_unit_G4)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def random_batch(*, images: int, size: int, num_classes: int = 80, seed: int = 0) -> RandomBatch:
    """Draw a batch of square images; the legacy generator gives the same numbers in every version of numpy."""
    random = np.random.RandomState(seed)
    counts = random.geometric(1 / (MEAN_BOXES + 1), images) - 1
    total = int(counts.sum())
    sides = np.exp(random.uniform(np.log(LEAST_SIDE), np.log(0.9), (total, 2)))
    centres = sides / 2 + random.uniform(0, 1, (total, 2)) * (1 - sides)
    return RandomBatch(
        images_BHW3=random.randint(0, 256, (images, size, size, 3)).astype(np.uint8),
        image_index_G=np.repeat(np.arange(images), counts),
        class_ids_G=random.randint(0, num_classes, total).astype(np.int64),
        boxes_cxcywh_unit_G4=np.concatenate((centres, sides), 1).astype(np.float32),
    )
