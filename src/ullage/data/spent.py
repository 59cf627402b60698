"""Where the time of loading goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Work and waiting of a loader, over all its processes.

    Attributes:
        images: How many images were made.
        decoded: How many image files were decoded for them.
        decode_seconds: Reading and decoding, and shrinking to the base size.
        augment_seconds: Drawing the samples and their boxes.
        collate_seconds: Making room for a batch and joining its boxes.
        wait_seconds: How long the training loop waited for batches; the rest of the work went on beside it.
    """

    images: int = 0
    decoded: int = 0
    decode_seconds: float = 0.0
    augment_seconds: float = 0.0
    collate_seconds: float = 0.0
    wait_seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.images + other.images,
            self.decoded + other.decoded,
            self.decode_seconds + other.decode_seconds,
            self.augment_seconds + other.augment_seconds,
            self.collate_seconds + other.collate_seconds,
            self.wait_seconds + other.wait_seconds,
        )

    def __sub__(self, other: Spent) -> Spent:
        return Spent(
            self.images - other.images,
            self.decoded - other.decoded,
            self.decode_seconds - other.decode_seconds,
            self.augment_seconds - other.augment_seconds,
            self.collate_seconds - other.collate_seconds,
            self.wait_seconds - other.wait_seconds,
        )

    def __str__(self) -> str:
        if self.images == 0:
            return "no image was loaded"
        parts = (("decode", self.decode_seconds), ("augment", self.augment_seconds), ("collate", self.collate_seconds),
                 ("wait", self.wait_seconds))  # fmt: skip
        times = ", ".join(f"{name} {1000 * seconds / self.images:.1f}" for name, seconds in parts)
        return f"ms an image: {times}; {self.decoded / self.images:.2f} decoded an image"
