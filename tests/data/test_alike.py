"""Images of two splits that look the same are found, whatever was done to the file; others are not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from sources_kit import write

from ullage.data.alike import Leak, find_leaks
from ullage.data.check import check


def scene(seed: int, size_hw: tuple[int, int] = (120, 160)) -> np.ndarray:
    """A picture with large and small structure, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8), size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8), size_hw[::-1])
    return cv2.addWeighted(coarse, 0.8, fine, 0.2, 0)


CHANGES = {
    "saved again": lambda image: image,
    "smaller": lambda image: cv2.resize(image, (80, 60), interpolation=cv2.INTER_AREA),
    "lighter": lambda image: cv2.convertScaleAbs(image, alpha=0.9, beta=25),
    "a box painted in": lambda image: cv2.rectangle(image.copy(), (20, 20), (35, 35), (255, 0, 0), -1),
    "noisy": lambda image: cv2.add(image, np.random.default_rng(0).integers(0, 12, image.shape, dtype=np.uint8)),
}


def save(path: Path, image: np.ndarray, quality: int = 90) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=quality)
    return str(path)


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_that_was_changed_is_found(tmp_path, change):
    train = [save(tmp_path / f"train/{i}.jpg", scene(i)) for i in range(20)]
    val = [save(tmp_path / f"val/{i}.jpg", scene(100 + i)) for i in range(10)]
    val.append(save(tmp_path / "val/copy.jpg", CHANGES[change](scene(7)), quality=60))
    assert find_leaks({"train": train, "val": val}) == (Leak("train", train[7], "val", val[-1]),)


def test_pictures_that_show_nothing_are_not_alike(tmp_path):
    sets = {
        split: [save(tmp_path / f"{split}/{i}.png", np.full((50, 50, 3), 20 * i, np.uint8)) for i in range(4)]
        for split in ("train", "val")
    }
    assert find_leaks(sets) == ()  # pyright: ignore[reportArgumentType]


def test_copies_within_a_split_and_shared_files_are_no_leaks(tmp_path):
    both = [save(tmp_path / f"{i}.jpg", scene(1), quality=90 - i) for i in range(2)]
    assert find_leaks({"train": both, "val": []}) == ()
    assert find_leaks({"train": both[:1], "val": both[:1]}) == ()
    assert find_leaks({"train": both}) == ()


def test_check_tells_of_leaks(tmp_path):
    for i in range(3):
        save(tmp_path / f"images/train/{i}.jpg", scene(i))
        save(tmp_path / f"images/val/{i}.jpg", scene(i + (0 if i == 2 else 50)), quality=70)
        for split in ("train", "val"):
            write(tmp_path / f"labels/{split}/{i}.txt", "0 .5 .5 .5 .5\n")
    write(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [a]\n")
    report = check(tmp_path / "data.yaml")
    assert [(Path(leak.path).name, Path(leak.other_path).name) for leak in report.leaks] == [("2.jpg", "2.jpg")]
    assert "1 images of val look like images of train" in str(report)
    assert '"other_split": "val"' in report.to_json()
