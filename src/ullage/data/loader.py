"""From a data set to batches: augmented for training, letterboxed for judging.

The order of an epoch follows from (seed, epoch), a sample from (seed, epoch, index): the number of loader processes and
the cache change the speed, never the batches, and an epoch can be taken up at any batch.

Shape letters: B batch, H, W canvas, C channels, G boxes of the batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ullage.config.augment import AugmentSettings
from ullage.config.data import STRIDE
from ullage.data.augment import sample_recipe, settings_at
from ullage.data.batch import Batch
from ullage.data.cache import Cache, ImageStore, Progress
from ullage.data.index import DetectionSet
from ullage.data.order import BatchKey, eval_keys, partner_window, shared_keys, train_keys
from ullage.data.pool import BatchPool, Parts, Pass, default_workers
from ullage.data.render import render
from ullage.data.shared import start_method
from ullage.data.spent import Spent
from ullage.errors import ConfigError, DataError
from ullage.geometry.labels import Labels
from ullage.geometry.letterbox import Letterbox, fit
from ullage.geometry.targets import Targets

__all__ = ["EvalLoader", "TrainLoader", "default_workers"]


class TrainLoader:
    """Batches for training.

    Args:
        dataset: The images and boxes.
        batch: Images a batch.
        imgsz: Side of the canvas.
        augment: How images are varied.
        seed: Seed of order, sizes and augmentation.
        workers: Loader processes; None chooses from the cores and the device.
        cache: Where decoded images are kept.
        rect: Group images of like shape and pad each batch only to its longest side; without mosaic.
        sizes: (min, max) of the side, drawn for each batch in steps of 32, instead of ``imgsz``.
        device_type: Where the network runs; ``"cuda"`` gets pinned memory.
        rank: Which of several training processes this one is: each gets its part of every batch, which may be empty.
        ranks: How many there are; ``batch`` counts the images of all.

    Raises:
        DataError: The set has no image.
        ConfigError: Settings contradict each other, or the cache does not fit.
    """

    def __init__(
        self,
        dataset: DetectionSet,
        *,
        batch: int,
        imgsz: int,
        augment: AugmentSettings,
        seed: int = 0,
        workers: int | None = None,
        cache: Cache = False,
        rect: bool = False,
        sizes: tuple[int, int] | None = None,
        device_type: str = "cpu",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        _check(dataset, batch, sizes or (imgsz, imgsz))
        if rect and augment.mosaic > 0:
            raise ConfigError(
                f"rect=True pads each batch to the shape of its images, and mosaic={augment.mosaic:g} makes square "
                "ones; set mosaic=0, or rect=False"
            )
        self.dataset = dataset
        self._batch, self._imgsz, self._seed, self._rect, self._sizes = batch, imgsz, seed, rect, sizes
        self._rank, self._ranks = rank, ranks
        side = imgsz if sizes is None else sizes[1]
        workers = _count_workers(workers, dataset, batch, device_type)
        mixes = augment.mosaic > 0 or augment.mixup > 0 or augment.copy_paste > 0
        self._window = partner_window(side) if mixes and augment.partners == "window" else None
        self._store = ImageStore(
            dataset,
            side=side,
            cache=cache,
            processes=max(workers, 1),
            inherited=start_method() == "fork",
            reuse=self._window is not None,
        )
        self._pool = BatchPool(
            _MakeTrain(dataset, self._store, augment, seed),
            workers=workers,
            pin=_pins(device_type),
            batch_bytes=-(-min(batch, len(dataset)) // ranks) * side * side * 3,
            before_start=self._store.forget_readers,
        )

    def __len__(self) -> int:
        """Return the number of batches an epoch, a short last one included."""
        return -(-len(self.dataset) // self._batch)

    def prepare(self, progress: Progress | None = None) -> None:
        """Fill ``cache="ram"`` now, telling ``progress`` (done, all); else the first epoch does it silently."""
        self._store.prepare(progress)

    def epoch(self, epoch: int, *, epochs: int, start_batch: int = 0) -> Iterator[Batch]:
        """Make the batches of one epoch.

        Args:
            epoch: 0-based.
            epochs: How many epochs the run has, for what stops before its end.
            start_batch: Skip this many batches, without making them: how a run is taken up again.

        Raises:
            DataError: An image cannot be read; the message names the file.
        """
        self._store.prepare()
        wanted = self._pass(epoch, epochs)
        for key, parts in zip(wanted.keys.after(start_batch), self._pool.run(wanted, skip=start_batch), strict=True):
            yield _to_batch(parts, key, ())

    def spent(self) -> Spent:
        """Return where the time went since the loader was made; subtract an earlier answer for a part of it."""
        return self._pool.spent

    def _pass(self, epoch: int, epochs: int) -> Pass:
        keys = train_keys(
            self.dataset, batch=self._batch, imgsz=self._imgsz, sizes=self._sizes, rect=self._rect, seed=self._seed,
            epoch=epoch, epochs=epochs, window=self._window,
        )  # fmt: skip
        keys = shared_keys(keys, np.diff(self.dataset.offsets), rank=self._rank, ranks=self._ranks)
        return Pass((epoch, epochs), keys, lambda: self._pass(epoch + 1, epochs) if epoch + 1 < epochs else None)

    def close(self) -> None:
        """End the loader processes. The next epoch would start them again."""
        self._pool.close()


class EvalLoader:
    """Batches for judging: letterboxed, not varied, boxes included (crowd regions are in ``dataset.labels``).

    Args:
        dataset: The images and boxes.
        imgsz: The longer side of every image.
        batch: Images a batch.
        rect: Order images by shape and pad each batch to the smallest multiple of 32 that holds it; False pads to a
            square and keeps the order of the set.
        workers: Loader processes; None chooses from the cores and the device.
        device_type: Where the network runs; ``"cuda"`` gets pinned memory.
        rank: Which of several processes this one is: batch by batch is judged by one after the other, each once.
        ranks: How many there are.

    Raises:
        DataError: The set has no image.
    """

    def __init__(
        self,
        dataset: DetectionSet,
        *,
        imgsz: int,
        batch: int,
        rect: bool = True,
        workers: int | None = None,
        device_type: str = "cpu",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        _check(dataset, batch, (imgsz, imgsz))
        self.dataset = dataset
        self._keys = eval_keys(dataset, batch=batch, imgsz=imgsz, rect=rect).every(ranks, start=rank)
        workers = _count_workers(workers, dataset, batch, device_type)
        store = ImageStore(dataset, side=imgsz, processes=max(workers, 1), exact=True, reuse=False)
        self._pool = BatchPool(
            _MakeEval(dataset, store),
            workers=workers,
            pin=_pins(device_type),
            batch_bytes=min(batch, len(dataset)) * imgsz * imgsz * 3,
            before_start=store.forget_readers,
        )

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._keys)

    def __iter__(self) -> Iterator[Batch]:
        """Make the batches, always the same ones in the same order; ``Batch.indices`` says which images they hold."""
        wanted = Pass((), self._keys, lambda: None)
        for key, parts in zip(self._keys, self._pool.run(wanted), strict=True):
            yield _to_batch(parts, key, _letterboxes(self.dataset, key))

    def close(self) -> None:
        """End the loader processes. The next iteration would start them again."""
        self._pool.close()


@dataclass(frozen=True)
class _MakeTrain:
    dataset: DetectionSet
    store: ImageStore
    augment: AugmentSettings
    seed: int

    def __call__(self, key: BatchKey, images_BHW3: torch.Tensor) -> Parts:
        settings = settings_at(self.augment, epoch=key.epoch, epochs=key.epochs)
        clock = _Clock(self.store)
        recipes = [
            sample_recipe(
                self.dataset, index=index, size_hw=key.size_hw, settings=settings, seed=self.seed, epoch=key.epoch,
                partners=key.partners(place),
            )
            for place, index in enumerate(key.indices)
        ]  # fmt: skip
        self.store.expect(tile.index for recipe in recipes for layer in recipe.layers for tile in layer)
        labels = [
            render(recipe, dataset=self.dataset, load=self.store.get, out_HW3=canvas_HW3)[1]
            for recipe, canvas_HW3 in zip(recipes, images_BHW3.numpy(), strict=True)
        ]
        return _join(images_BHW3, labels, clock)


@dataclass(frozen=True)
class _MakeEval:
    dataset: DetectionSet
    store: ImageStore

    def __call__(self, key: BatchKey, images_BHW3: torch.Tensor) -> Parts:
        clock = _Clock(self.store)
        labels: list[Labels] = []
        self.store.expect(key.indices)
        for canvas_HW3, index, letterbox in zip(
            images_BHW3.numpy(), key.indices, _letterboxes(self.dataset, key), strict=True
        ):
            letterbox.apply(self.store.get(index), canvas_HW3)
            source = self.dataset.labels(index)
            mapped = Labels(letterbox.forward(source.boxes_xyxy_px_G4), source.class_ids_G, source.crowd_G)
            labels.append(mapped.select(~source.crowd_G))
        return _join(images_BHW3, labels, clock)


def _letterboxes(dataset: DetectionSet, key: BatchKey) -> tuple[Letterbox, ...]:
    return tuple(fit(dataset.size_hw(index), key.size_hw) for index in key.indices)


class _Clock:
    """Tells decoding from drawing: the store knows how long it decoded."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._decoded, self._decode_seconds = store.decoded, store.decode_seconds
        self._began = time.perf_counter()

    def stop(self, images: int) -> Spent:
        seconds = time.perf_counter() - self._began
        decode_seconds = self._store.decode_seconds - self._decode_seconds
        return Spent(images, self._store.decoded - self._decoded, decode_seconds, seconds - decode_seconds)


def _join(images_BHW3: torch.Tensor, labels: Sequence[Labels], clock: _Clock) -> Parts:
    drawn = clock.stop(len(images_BHW3))
    began = time.perf_counter()
    counts_B = [len(part) for part in labels]
    boxes_G4 = np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes_xyxy_px_G4 for part in labels)])
    boxes_G4 = boxes_G4.astype(np.float32, copy=False)
    ids_G = np.concatenate([np.zeros(0, np.int64), *(part.class_ids_G for part in labels)])
    index_G = np.repeat(np.arange(len(labels)), counts_B)
    tensors = torch.from_numpy(index_G), torch.from_numpy(ids_G), torch.from_numpy(boxes_G4)
    return Parts(images_BHW3, *tensors, drawn + Spent(collate_seconds=time.perf_counter() - began))


def _to_batch(parts: Parts, key: BatchKey, letterboxes: tuple[Letterbox, ...]) -> Batch:
    targets = Targets(parts.image_index_G, parts.class_ids_G, parts.boxes_xyxy_px_G4, len(key.indices))
    return Batch(parts.images_BHW3.permute(0, 3, 1, 2), targets, key.indices, letterboxes)


def _check(dataset: DetectionSet, batch: int, sizes: tuple[int, int]) -> None:
    if len(dataset) == 0:
        raise DataError(
            "the data set has no image that can be used; 'ullage data check' says what was left out and why"
        )
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    if sizes[0] > sizes[1] or any(side < STRIDE or side % STRIDE for side in sizes):
        raise ConfigError(f"image sizes must be multiples of {STRIDE}, the smaller first, got {sizes}")


def _count_workers(workers: int | None, dataset: DetectionSet, batch: int, device_type: str) -> int:
    wanted = default_workers(device_type) if workers is None else workers
    return min(wanted, -(-len(dataset) // batch))  # more processes than batches would only start and end


def _pins(device_type: str) -> bool:
    return device_type == "cuda" and torch.cuda.is_available()
