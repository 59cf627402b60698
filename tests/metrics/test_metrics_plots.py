"""Pictures: they exist, show something, and survive odd names."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from metrics_scenes import judge
from PIL import Image

from ullage.errors import StorageError
from ullage.metrics.plots import plot_all

FILES = [
    "PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png",
    "confusion_matrix_normalized.png",
]  # fmt: skip


def _scene(class_count):
    boxes = [(k, 10 * (k % 30), 10 * (k // 30), 10 * (k % 30) + 9, 10 * (k // 30) + 9) for k in range(class_count)]
    return [(boxes, [(*box, 0.2 + 0.7 * box[0] / class_count) for box in boxes[: class_count // 2 + 1]])]


def _ink(path):
    return int((np.asarray(Image.open(path).convert("L")) < 250).sum())


@pytest.mark.parametrize("class_count", [1, 3, 80])
def test_all_pictures_are_drawn(tmp_path, class_count):
    metrics = judge(_scene(class_count), names=[f"class {i}" for i in range(class_count)]).compute()
    paths = plot_all(metrics, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == FILES
    blank = judge([], names=["a"]).compute()
    empty = plot_all(blank, tmp_path / "blank")
    for path, without in zip(paths[:4], empty[:4], strict=True):
        assert Image.open(path).size == (1290, 840)
        assert _ink(path) > _ink(without)
    assert max(Image.open(paths[4]).size) <= 2600


@pytest.mark.parametrize("images", [[], [([], [(0, 0, 0, 9, 9, 0.9)])], [([(0, 0, 0, 9, 9, "crowd")], [])]])
def test_nothing_to_find_still_gives_pictures(tmp_path, images):
    assert all(path.stat().st_size > 5000 for path in plot_all(judge(images).compute(), tmp_path))


def test_odd_names_are_drawn_without_warnings(tmp_path):
    names = ["$x_{", "_hidden", "", "猫", "a\nb", "very long name " * 5, r"\alpha", "\U0010fffd"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = plot_all(judge(_scene(len(names)), names=names).compute(), tmp_path)
    assert len(paths) == len(FILES)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write pictures"):
        plot_all(judge([]).compute(), tmp_path / "file" / "plots")


def test_drawing_touches_no_global_state(tmp_path):
    script = (
        "import sys, pathlib, matplotlib; from ullage.metrics.plots import plot_confusion_matrix; "
        "from ullage.metrics.result import ConfusionMatrix; import numpy as np; "
        "settings = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}; "
        "before = settings(); matrix = ConfusionMatrix(np.eye(2, dtype=int), ('a',), 0.25, 0.45); "
        "plot_confusion_matrix(matrix, pathlib.Path(sys.argv[1])); "
        "assert 'matplotlib.pyplot' not in sys.modules; assert settings() == before"
    )
    picture = tmp_path / "matrix.png"
    subprocess.run([sys.executable, "-c", script, str(picture)], check=True, timeout=60)
    assert _ink(picture) > 1000
