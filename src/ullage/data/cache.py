"""Images on the way to the loader: decoded, shrunk to the training size, and kept where the user wants them.

Every image is kept at its *base size*: its longer side is the training size, or its own where that is smaller. A sample
is drawn from base images whatever the cache, so the cache changes the speed and never the pixels.

- ``False``: the images used last stay in memory that the loader processes share: 128 MB, and 40 MB more for each
  process beyond two.
- ``"ram"``: all of them, in one block of memory that the loader processes share.
- ``"disk"``: as files in the cache folder of the platform, never in the user's data folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from ullage.data.ahead import ReadAhead
from ullage.data.decode import decode_image, read_image
from ullage.data.index import DetectionSet
from ullage.data.places import file_of, is_url, state_of
from ullage.data.recent import BYTES_A_PROCESS, RECENT_BYTES, RecentImages
from ullage.data.resample import resample
from ullage.errors import ConfigError, DataError, StorageError
from ullage.geometry.letterbox import fit
from ullage.units import format_bytes

Array = np.ndarray[Any, Any]
Cache = Literal[False, "ram", "disk"]
Progress = Callable[[int, int], None]

_RAM_SHARE = 0.8  # of the free memory: the network wants some too
_DISK_SHARE = 0.9
_NPY_HEADER_BYTES = 128
_FORMAT = "2"


class ImageStore:
    """The images of a data set at base size, by index.

    Args:
        dataset: Paths and sizes.
        side: The base size's longer side, in pixels.
        cache: Where decoded images are kept.
        processes: How many processes will hold a copy of this store; they share the memory for recent images.
        exact: Decode at full size, then average. False allows the decoder to halve JPEGs, which is faster and differs
            by about half a grey level.
        inherited: True when the processes are forked from this one, and so see its memory.
        reuse: True when images are asked for again within an epoch, as the partners of a mosaic are. Otherwise recent
            images are kept only where the whole set fits.

    Raises:
        ConfigError: The cache would not fit the memory or the disk.
    """

    def __init__(
        self,
        dataset: DetectionSet,
        *,
        side: int,
        cache: Cache = False,
        processes: int = 1,
        exact: bool = False,
        inherited: bool = True,
        reuse: bool = True,
    ) -> None:
        self._dataset = dataset
        self._side = side
        self._exact = exact
        self._shared_memory = processes > 1 and not inherited
        self._base_hw_I2 = base_sizes(dataset, side)
        self._bytes_I = 3 * self._base_hw_I2.prod(1)
        self._recent: RecentImages | None = None
        limit = RECENT_BYTES + BYTES_A_PROCESS * max(processes - 2, 0)
        if cache != "ram" and (reuse or self._bytes_I.sum() <= limit):
            self._recent = RecentImages(self._bytes_I, limit=limit, shared=processes > 1)
        self.decoded, self.decode_seconds = 0, 0.0  # by this process
        self._ahead = ReadAhead()
        self._tar_states: dict[str, str] = {}
        self._far = len(dataset) > 0 and is_url(dataset.paths[0])
        self._folder = cache_folder() / "images" if cache == "disk" else None
        self._offsets = np.zeros(1, np.int64)
        self._block: torch.Tensor | None = None
        self._wants_block = cache == "ram"
        if cache == "ram":
            self._offsets = np.concatenate(([0], np.cumsum(self._bytes_I)))
            _check_ram(int(self._offsets[-1]), len(dataset), side)
        elif self._folder is not None:
            self._check_disk(self._folder)

    def base_size_hw(self, index: int) -> tuple[int, int]:
        """Return the (h, w) at which an image is kept."""
        height, width = self._base_hw_I2[index].tolist()
        return height, width

    def base_bytes(self, index: int) -> int:
        """Return the memory that an image takes."""
        return int(self._bytes_I[index])

    def prepare(self, progress: Progress | None = None) -> None:
        """Fill the memory cache, once; call it before loader processes start. Other caches fill as they are used.

        Args:
            progress: Called with (images done, images in all).

        Raises:
            DataError: An image cannot be read.
        """
        if not self._wants_block or self._block is not None:
            return
        block = torch.empty(int(self._offsets[-1]), dtype=torch.uint8)
        if self._shared_memory:
            block.share_memory_()
        flat = block.numpy()

        def fill(index: int) -> None:
            flat[self._offsets[index] : self._offsets[index + 1]] = self._load(index).reshape(-1)

        count = len(self._dataset)
        # Decoding sets warning filters, which threads share; the outer context puts back what was there before.
        with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                for done, _ in enumerate(pool.map(fill, range(count)), start=1):
                    if progress is not None:
                        progress(done, count)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._block = block

    def get(self, index: int) -> Array:
        """Return an image at base size, uint8 RGB (H, W, 3). Do not write into it; the next call may.

        Raises:
            DataError: The file is missing, damaged, or no longer the one that the data set was read from.
            StorageError: The disk cache cannot be written.
        """
        if self._block is not None:
            rows = slice(int(self._offsets[index]), int(self._offsets[index + 1]))
            return self._block[rows].numpy().reshape(*self.base_size_hw(index), 3)
        if self._recent is not None:
            kept = self._recent.get(index, (*self.base_size_hw(index), 3))
            if kept is not None:
                return kept
        began = time.perf_counter()
        image = self._load(index) if self._folder is None else self._load_through(self._folder, index)
        self.decoded += 1
        self.decode_seconds += time.perf_counter() - began
        return image if self._recent is None else self._recent.put(index, image)

    def expect(self, indices: Iterable[int]) -> None:
        """Start fetching images that will be asked for soon, where they are far away and not kept here."""
        if self._far and self._block is None:
            places = [(index, self._dataset.paths[index]) for index in dict.fromkeys(indices) if not self._has(index)]
            self._ahead.expect(place for _, place in places if is_url(place))

    def _has(self, index: int) -> bool:
        if self._recent is not None and self._recent.has(index):
            return True
        return self._folder is not None and (self._folder / self._file_name(index)).is_file()

    def forget_readers(self) -> None:
        """Call when no other process uses this store: what processes that ended were reading may be overwritten."""
        if self._recent is not None:
            self._recent.forget_readers()

    def _load(self, index: int) -> Array:
        path, size_hw, base_hw = self._dataset.paths[index], self._dataset.size_hw(index), self.base_size_hw(index)
        at_least_hw = None if self._exact else base_hw
        if is_url(path):
            image = decode_image(self._ahead.take(path), path, at_least_hw=at_least_hw, size_hw=size_hw)
        else:
            image = read_image(path, at_least_hw=at_least_hw, size_hw=size_hw)
        found_hw = image.shape[:2]
        if found_hw not in [tuple(side // factor for side in size_hw) for factor in (1, 2, 4, 8)]:
            raise DataError(
                f"image {path} is {found_hw[1]}x{found_hw[0]} pixels but was {size_hw[1]}x{size_hw[0]} when the data "
                "set was read; start again, so that its boxes fit"
            )
        if found_hw != base_hw:
            # What is judged is averaged exactly as prediction does it.
            if self._exact:
                return cv2.resize(image, base_hw[::-1], interpolation=cv2.INTER_AREA)
            image = resample(image, base_hw)
        return image

    def _load_through(self, folder: Path, index: int) -> Array:
        file = folder / self._file_name(index)
        with contextlib.suppress(OSError, ValueError, EOFError):  # not there yet, or damaged by a full disk or a crash
            image = np.load(file, allow_pickle=False)
            if image.shape == (*self.base_size_hw(index), 3) and image.dtype == np.uint8:
                return image
        image = self._load(index)
        partial = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                np.save(stream, image, allow_pickle=False)
            partial.replace(file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StorageError(
                f"cannot write the image cache {file}: {error.strerror or error}; free the disk, set XDG_CACHE_HOME to "
                "another one, or use cache=False"
            ) from error
        return image

    def _file_name(self, index: int) -> str:
        path = self._dataset.paths[index]
        path = path if is_url(path) else os.path.abspath(path)
        file = file_of(path)
        try:
            # The state of a tar, which thousands of images share, is asked for once.
            state = self._tar_states.get(file) or state_of(file).hex()
        except OSError as error:
            raise DataError(f"cannot read image {path}: {error.strerror or error}") from error
        if file != path:
            self._tar_states[file] = state
        key = f"{_FORMAT}|{path}|{state}|{self._side}|{self._exact}"
        digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).hexdigest()
        return f"{digest[:2]}/{digest[2:]}.npy"

    def _check_disk(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise StorageError(
                f"cannot make the image cache folder {folder}: {error.strerror or error}; set XDG_CACHE_HOME to a "
                "folder that can be written, or use cache=False"
            ) from error
        missing = [i for i in range(len(self._dataset)) if not (folder / self._file_name(i)).is_file()]
        need = sum(self.base_bytes(i) + _NPY_HEADER_BYTES for i in missing)
        if need > _DISK_SHARE * free:
            raise ConfigError(
                f"cache='disk' needs {format_bytes(need)} for {len(missing)} images at {self._side} px, but {folder} "
                f"has {format_bytes(free)} free; use cache=False, or set XDG_CACHE_HOME to a larger disk"
            )


def base_bytes(dataset: DetectionSet, side: int) -> Array:
    """Return the memory that each image takes at base size, int64."""
    return 3 * base_sizes(dataset, side).prod(1)


def base_sizes(dataset: DetectionSet, side: int) -> Array:
    """Return the (h, w) at which each image is kept, int64 (I, 2)."""
    if len(dataset) == 0:
        return np.zeros((0, 2), np.int64)
    kinds_K2, kind_I = np.unique(dataset.sizes_hw_I2, axis=0, return_inverse=True)
    resized = [fit((int(h), int(w)), (side, side), upscale=False).resized_hw for h, w in kinds_K2]
    return np.array(resized, np.int64)[kind_I.reshape(-1)]


def cache_folder() -> Path:
    """Return the folder where Ullage keeps what it can make again: XDG_CACHE_HOME, else what the platform provides."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "ullage"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ullage"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "ullage" / "cache"
    return Path.home() / ".cache" / "ullage"


def free_ram_bytes() -> int | None:
    """Return the host memory that this process may still take, containers' limits included; None when unknown."""
    free: list[int] = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        rows = (line.split() for line in meminfo.read_text().splitlines())
        free += [int(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:"]
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            texts = Path(limit).read_text().strip(), Path(used).read_text().strip()
        except OSError:  # not in such a container
            continue
        if all(text.isdigit() for text in texts):
            free.append(int(texts[0]) - int(texts[1]))
    return max(min(free), 0) if free else None


def _check_ram(need: int, count: int, side: int) -> None:
    free = free_ram_bytes()
    if free is not None and need > _RAM_SHARE * free:
        raise ConfigError(
            f"cache='ram' needs {format_bytes(need)} for {count} images at {side} px, but only {format_bytes(free)} of "
            f"memory are free, of which it may take {_RAM_SHARE:.0%}; use cache='disk' or cache=False"
        )
