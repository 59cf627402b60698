"""Training settings as users type them: each does what its name says, seen in what the run leaves behind."""

from __future__ import annotations

import csv
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from e2e_kit import QUICK, Outcome, checkpoint, differing, notices, quick
from PIL import Image

from ullage import YOLO, api
from ullage.config import TrainConfig
from ullage.train.events import StepDone

Run = Callable[..., Outcome]
SILENT = {"val": False, "verbose": False}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def sizes(settings: dict[str, Any]) -> list[tuple[int, int]]:
    """Train, and return the size of every step."""
    steps: list[tuple[int, int]] = []

    def hear(event: object) -> None:
        if isinstance(event, StepDone):
            steps.append(event.size_hw)

    api.train(TrainConfig.load({**settings, **SILENT}), listeners=[hear])
    return steps


def last_of(folder: Path) -> Path:
    return folder / "weights" / "last.pt"


@pytest.fixture(scope="session")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a plain quick run, to compare others with."""
    settings = quick(data, project=tmp_path_factory.mktemp("plain"), name="run", **SILENT)
    return YOLO(settings.pop("model")).train(**settings).run_dir


def test_the_long_call_of_the_mission(data: Path, here: Path) -> None:
    """As users type it for COCO on four cards; only sizes, data and the device are changed."""
    model = YOLO("yolov12n.yaml")
    result = model.train(
        data=str(data), epochs=1, batch=4, imgsz=64, amp=True, device="cpu", workers=1, cache=True, cos_lr=True,
        optimizer="auto", seed=42, lr0=0.005, lrf=0.01, warmup_epochs=10, warmup_momentum=0.8, label_smoothing=0.05,
        mosaic=1.0, copy_paste=0.15, mixup=0.05, scale=0.5, gradient_checkpointing=True,
    )  # fmt: skip
    assert result.best.exists()
    assert result.metrics is not None
    judged = model.val(data=str(data), batch=4, imgsz=64, device="cpu", plots=False, verbose=False)
    assert judged.box.map == result.metrics.box.map
    assert {path.name for path in (here / "runs/detect").iterdir()} == {"train"}


def test_the_multi_scale_call_of_the_mission(whole_run: Path, data: Path, here: Path) -> None:
    model = YOLO(whole_run / "weights/best.pt")
    result = model.train(
        data=data, imgsz=(32, 96), batch=2, nbs=2, epochs=2, name="exp_ms", freeze=3, workers=0, plots=False, val=False
    )
    assert result.run_dir == Path("runs/detect/exp_ms")
    before, after = checkpoint(whole_run / "weights/best.pt")["weights"], checkpoint(result.best)["weights"]
    blocks = model.loaded.network.block_names
    frozen = tuple(f"{blocks[number]}." for number in range(3))
    still = {key for key in before if torch.equal(before[key], after[key])}
    assert {key for key in before if key.startswith(frozen)} <= still
    moved = {key for key in before if key.endswith("conv.weight") and not key.startswith(frozen)} - still
    assert len(moved) > 70


def test_multi_scale_varies_the_size_batch_by_batch(data: Path, here: Path) -> None:
    few = {"batch": 2, "nbs": 2, "mosaic": 0, "epochs": 3}
    assert set(sizes(quick(data, imgsz=(32, 96), **few))) == {(32, 32), (64, 64), (96, 96)}
    assert set(sizes(quick(data, imgsz=64, multi_scale=True, **few))) == {(32, 32), (64, 64), (96, 96)}


def test_rect_pads_batches_to_their_longest_side_only(data: Path, here: Path) -> None:
    found = sizes(quick(data, imgsz=96, rect=True, mosaic=0, batch=1, nbs=1))
    assert sorted(set(found)) == [(64, 96), (96, 96)], "60x90 pixels need 64x96, 96x128 need 96x96"


def test_the_same_seed_gives_the_same_bits_whatever_loads_the_images(plain: Path, train: Run, here: Path) -> None:
    for name, changes in {"again": {}, "process": {"workers": 1}, "ram": {"cache": "ram"}}.items():
        train(name=name, **SILENT, **changes)
        assert differing(last_of(plain), last_of(here / "runs/detect" / name)) == [], name


def test_another_seed_gives_other_weights(plain: Path, train: Run, here: Path) -> None:
    train(seed=1, **SILENT)
    assert len(differing(last_of(plain), last_of(here / "runs/detect/train"))) > 400


def test_gradient_checkpointing_changes_no_bit(plain: Path, train: Run, here: Path) -> None:
    train(gradient_checkpointing=True, **SILENT)
    assert differing(last_of(plain), last_of(here / "runs/detect/train")) == []


def test_the_disk_cache_stays_out_of_the_users_folders(
    plain: Path, data: Path, train: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    before = sorted(data.parent.rglob("*"))
    train(cache="disk", **SILENT)
    assert sorted(data.parent.rglob("*")) == before
    assert list((here / "cache").rglob("*.npy"))
    assert differing(last_of(plain), last_of(here / "runs/detect/train")) == []


@pytest.mark.parametrize(("optimizer", "moments"), [("SGD", {"momentum_buffer"}), ("AdamW", {"exp_avg", "exp_avg_sq"})])
def test_each_optimiser_keeps_its_moments(optimizer: str, moments: set[str], train: Run, here: Path) -> None:
    train(optimizer=optimizer.lower(), lr0=0.002, **SILENT)
    state = checkpoint(last_of(here / "runs/detect/train"))["train"]["optimiser"]["state"]
    assert moments <= set(state[0])


def test_bf16_trains_and_the_weights_stay_float32(plain: Path, train: Run, here: Path) -> None:
    train(amp="bf16", **SILENT)
    weights = checkpoint(last_of(here / "runs/detect/train"))["weights"]
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float32, torch.int64}
    assert "in bf16" in notices(here / "runs/detect/train")
    assert differing(last_of(plain), last_of(here / "runs/detect/train"))


def test_cosine_and_linear_rates_differ_in_the_middle(train: Run, here: Path) -> None:
    settings = {"epochs": 4, "optimizer": "SGD", "lr0": 0.01, "lrf": 0.1, "warmup_epochs": 0, "batch": 8, **SILENT}
    for name, cosine in (("line", False), ("cosine", True)):
        train(name=name, cos_lr=cosine, **settings)
    progress = np.arange(1, 5) / 4
    line, cosine = ([float(row["lr/pg2"]) for row in rows(here / "runs/detect" / name)] for name in ("line", "cosine"))
    np.testing.assert_allclose(line, 0.01 * (0.1 + 0.9 * (1 - progress)), rtol=1e-4)
    np.testing.assert_allclose(cosine, 0.01 * (0.1 + 0.9 * (1 + np.cos(math.pi * progress)) / 2), rtol=1e-4)


def test_label_smoothing_reaches_the_loss(plain: Path, train: Run, here: Path) -> None:
    train(label_smoothing=0.3, **SILENT)
    smooth, hard = (rows(run)[0] for run in (here / "runs/detect/train", plain))
    assert smooth["train/cls_loss"] != hard["train/cls_loss"]
    assert float(smooth["train/box_loss"]) == pytest.approx(float(hard["train/box_loss"]), rel=0.1)


def test_single_cls_learns_one_class(train: Run, here: Path) -> None:
    train(single_cls=True)
    assert checkpoint(here / "runs/detect/train/weights/best.pt")["names"] == ["object"]


def test_classes_and_fraction_choose_boxes_and_images(train: Run, here: Path) -> None:
    train(name="all", **SILENT)
    train(name="some", classes=0, fraction=0.5, **SILENT)
    everything, some = (notices(here / "runs/detect" / name) for name in ("all", "some"))
    assert "8 training images with 16 boxes" in everything
    assert "4 training images with " in some
    assert checkpoint(here / "runs/detect/some/weights/best.pt")["names"] == ["red", "green"], "ids keep their meaning"


def test_close_mosaic_ends_mosaics(train: Run, here: Path) -> None:
    train(epochs=2, close_mosaic=1, batch=8, val=False, plots=True, hsv_h=0, hsv_s=0, hsv_v=0, scale=0, translate=0)
    mosaic, plain = (np.asarray(Image.open(here / f"runs/detect/train/train_batch{n}.jpg")) for n in (0, 1))
    greys = [np.mean(np.abs(image.astype(int) - 114).max(2) < 6) for image in (mosaic, plain)]
    assert greys[1] > greys[0], "letterboxed images have grey margins, mosaics of the centre hardly any"


def test_a_run_ends_when_its_time_is_up(train: Run, here: Path) -> None:
    outcome = train(time=0.2 / 3600, epochs=50, val=False)
    assert "the time is up" in outcome.out
    assert len(rows(here / "runs/detect/train")) < 10


def test_a_run_ends_when_patience_is_over(train: Run, here: Path) -> None:
    outcome = train(patience=1, epochs=30, optimizer="SGD", lr0=1e-12, warmup_epochs=0, batch=8)
    done = len(rows(here / "runs/detect/train"))
    assert 2 <= done < 30
    assert "no gain for 1 epoch" in outcome.out


def test_save_period_val_and_plots_decide_what_is_kept(train: Run, here: Path) -> None:
    outcome = train(epochs=3, save_period=2, val=False, batch=8)
    folder = here / "runs/detect/train"
    assert {path.name for path in (folder / "weights").iterdir()} == {"best.pt", "last.pt", "epoch2.pt"}
    assert not [path.name for path in folder.iterdir() if path.suffix in (".png", ".jpg")]
    assert "mAP50" not in outcome.out
    assert not [name for name in rows(folder)[0] if "metrics" in name or "val/" in name]


def test_pretrained_names_the_weights_to_start_from(whole_run: Path, train: Run, here: Path) -> None:
    best = whole_run / "weights/best.pt"
    train(pretrained=best, optimizer="SGD", lr0=1e-12, warmup_epochs=0, **SILENT)
    before, after = checkpoint(best)["weights"], checkpoint(here / "runs/detect/train/weights/best.pt")["weights"]
    moved = [
        key for key in before if key.endswith("conv.weight") and not torch.allclose(before[key], after[key], atol=1e-6)
    ]
    assert moved == []
    train(model=best, pretrained=False, name="afresh", optimizer="SGD", lr0=1e-12, warmup_epochs=0, **SILENT)
    afresh = checkpoint(here / "runs/detect/afresh/weights/best.pt")["weights"]
    assert not torch.allclose(before["stem.conv.weight"], afresh["stem.conv.weight"], atol=1e-3)


def test_folders_are_numbered_unless_they_may_be_reused(train: Run, here: Path) -> None:
    for changes in ({}, {}, {"exist_ok": True}, {"project": "mine", "name": "007"}):
        train(**SILENT, **changes)
    assert {path.name for path in (here / "runs/detect").iterdir()} == {"train", "train2"}
    assert (here / "mine/007/weights/best.pt").exists()


def test_args_yaml_of_a_run_reruns_it_from_any_folder(data: Path, train: Run, ullage: Run, here: Path) -> None:
    shutil.copytree(data.parent, here / "set")
    train(data="set/data.yaml", **SILENT)
    settings = yaml.safe_load((here / "runs/detect/train/args.yaml").read_text())
    assert settings["data"] == str(here / "set/data.yaml")
    assert settings["imgsz"] == QUICK["imgsz"]


def test_numpy_tensors_and_pictures_can_be_predicted(whole_run: Path, data: Path) -> None:
    model = YOLO(whole_run / "weights/best.pt")
    file = data.parent / "images/val/0.jpg"
    picture = Image.open(file)
    low = {"imgsz": 64, "conf": 0.0005}
    by_file, by_array, by_pil = model(file, **low)[0], model(np.asarray(picture), **low)[0], model(picture, **low)[0]
    assert len(by_file.boxes) > 0
    assert torch.equal(by_array.boxes.data, by_file.boxes.data)
    assert torch.equal(by_pil.boxes.data, by_file.boxes.data)
    streamed = model.predict([file, file], stream=True, batch=2, **low)
    assert not isinstance(streamed, list)
    assert [len(one.boxes) for one in streamed] == [len(by_file.boxes)] * 2


@pytest.mark.parametrize(
    ("name", "parameters", "gflops"),
    [("yolov12n", 2_553_904, 6.0), ("yolo12n", 2_602_288, 6.5), ("yolo11n", 2_624_080, 6.5)],
)
def test_info_gives_the_published_numbers(name: str, parameters: int, gflops: float) -> None:
    info = YOLO(f"{name}.yaml").info()
    assert info.parameters == parameters
    assert info.flops == pytest.approx(gflops * 1e9, rel=0.03)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif("ULLAGE_SLOW_TESTS" not in os.environ, reason="compiling takes minutes; set ULLAGE_SLOW_TESTS=1")
@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_losses(data: Path, here: Path) -> None:
    losses = []
    for compiled in (False, True):
        settings = quick(data, compile=compiled, amp=False, name=f"c{compiled}", **SILENT)
        result = YOLO(settings.pop("model")).train(**settings)
        losses.append([float(rows(result.run_dir)[0][f"train/{part}_loss"]) for part in ("box", "cls", "dfl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_compile_hands_the_network_to_torch_and_saves_plain_weights(
    data: Path, plain: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's tracing but without its code generation, which takes minutes."""
    handed = []
    compiler = torch.compile

    def traced(network: torch.nn.Module) -> object:
        handed.append(network)
        return compiler(network, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    settings = quick(data, compile=True, **SILENT)
    result = YOLO(settings.pop("model")).train(**settings)
    assert len(handed) == 1
    assert differing(last_of(plain), result.last) == []
