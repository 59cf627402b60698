"""The pictures of a run: training batches as the network sees them, validation batches with labels and findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ullage.data.batch import Batch
from ullage.data.loader import TrainLoader
from ullage.data.preview import save_train_batch, sheet_cell
from ullage.geometry.detections import Detections
from ullage.geometry.drawing import draw_boxes, tile_images
from ullage.runtime.image_file import write_image

PICTURED_BATCHES = 3
TILES, TILE_CONF = 16, 0.25


class PicturedBatches:
    """Training batches; the first few of an epoch are also saved as ``train_batchN.jpg``.

    The first epoch of a run is pictured, and the first epoch without mosaic.
    """

    def __init__(self, batches: TrainLoader, *, folder: Path, names: Sequence[str], plain_from: int) -> None:
        self.batches, self.folder, self.names, self.plain_from = batches, folder, names, plain_from

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, *, epochs: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from ``start_batch`` on."""
        pictured = PICTURED_BATCHES if epoch in (0, self.plain_from) else 0
        first = epoch * len(self.batches)
        for number, batch in enumerate(self.batches.epoch(epoch, epochs=epochs, start_batch=start_batch), start_batch):
            if number < pictured:
                save_train_batch(batch, names=self.names, path=self.folder / f"train_batch{first + number}.jpg")
            yield batch


class EvalPictures:
    """Saves ``val_batchN_labels.jpg`` and ``val_batchN_pred.jpg`` of the first batches."""

    def __init__(self, *, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __call__(self, number: int, batch: Batch, found: list[Detections]) -> None:
        """Draw one batch; ``found`` is in pixels of the network's input."""
        if number >= PICTURED_BATCHES:
            return
        labels, predictions = [], []
        for place in range(min(len(found), TILES)):
            image = batch.images_BCHW[place].permute(1, 2, 0).numpy()
            truth = batch.targets.images(place, place + 1)
            labels.append(
                draw_boxes(
                    image,
                    boxes_xyxy_px=truth.boxes_xyxy_px_G4.numpy(),
                    class_ids=truth.class_ids_G.numpy(),
                    names=self.names,
                )
            )
            keep = found[place].scores_D > TILE_CONF
            predictions.append(
                draw_boxes(
                    image,
                    boxes_xyxy_px=found[place].boxes_xyxy_px_D4[keep].numpy(),
                    class_ids=found[place].class_ids_D[keep].numpy(),
                    names=self.names,
                    scores=found[place].scores_D[keep].numpy(),
                )
            )
        size_hw = sheet_cell(batch)
        write_image(self.folder / f"val_batch{number}_labels.jpg", tile_images(labels, size=size_hw))
        write_image(self.folder / f"val_batch{number}_pred.jpg", tile_images(predictions, size=size_hw))
