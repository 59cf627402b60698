"""The whole path: train, look into the run folder, judge, predict, load again."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from e2e_kit import NAMES, RUN_ULLAGE, SIZES_HW, Outcome, checkpoint, events, make_data, notices, quick
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image

from ullage import YOLO
from ullage.config import TrainConfig
from ullage.data.source import open_dataset

PICTURES = (
    "results.png", "labels.png", "train_batch0.jpg", "train_batch1.jpg", "train_batch2.jpg", "val_batch0_labels.jpg",
    "val_batch0_pred.jpg", "val_batch1_labels.jpg", "val_batch1_pred.jpg", "PR_curve.png", "F1_curve.png",
    "P_curve.png", "R_curve.png", "confusion_matrix.png",
)  # fmt: skip
LOW = {"imgsz": 64, "conf": 0.0005, "device": "cpu"}  # a network of two epochs is sure of nothing


def test_the_run_folder_is_complete(whole_run: Path) -> None:
    for name in PICTURES:
        with Image.open(whole_run / name) as image:
            assert np.asarray(image.convert("RGB")).std() > 5, f"{name} is blank"
    found = {path.name for path in whole_run.iterdir()}
    assert {"args.yaml", "environment.json", "results.csv", "events.jsonl", "weights"} <= found
    assert any(name.startswith("events.out.tfevents.") for name in found)
    assert {path.name for path in (whole_run / "weights").iterdir()} == {"best.pt", "last.pt", "epoch1.pt", "epoch2.pt"}
    assert not [name for name in found if name.startswith(".")], "temporary files were left"


def test_results_have_one_row_an_epoch_and_the_columns_that_are_promised(whole_run: Path) -> None:
    with (whole_run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    wanted = [f"{part}/{name}_loss" for part in ("train", "val") for name in ("box", "cls", "dfl")]
    wanted += [f"metrics/{name}(B)" for name in ("precision", "recall", "mAP50", "mAP50-95")]
    wanted += ["lr/pg0", "lr/pg1", "lr/pg2", "seconds", "images_per_second", "peak_bytes_measured", "time"]
    assert set(wanted) <= set(rows[0])
    numbers = np.array([[float(row[name]) for name in wanted] for row in rows])
    assert np.isfinite(numbers).all()
    assert (numbers[:, :6] > 0).all(), "a loss of zero"
    assert float(rows[1]["time"]) > float(rows[0]["time"]) > 0
    assert float(rows[0]["peak_bytes_measured"]) > 1e8


def test_the_environment_and_the_events_are_noted(whole_run: Path) -> None:
    environment = json.loads((whole_run / "environment.json").read_text())
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["device"] == "cpu"
    kinds = [event["event"] for event in events(whole_run)]
    assert kinds[-1] == "RunEnded"
    assert kinds.count("EpochDone") == 2
    assert kinds.index("RunStarted") < kinds.index("StepDone") < kinds.index("EpochDone")


def test_tensorboard_finds_the_scalars(whole_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(whole_run))
    reader.Reload()
    assert [point.step for point in reader.Scalars("train/box_loss")] == [1, 2]
    assert "metrics/mAP50(B)" in reader.Tags()["scalars"]


def test_checkpoints_hold_plain_tensors_and_the_classes_of_the_data(whole_run: Path) -> None:
    last, best = (checkpoint(whole_run / "weights" / f"{name}.pt") for name in ("last", "best"))
    for file in (last, best):
        assert file["names"] == list(NAMES)
        assert file["model"] == {"name": "yolo11n", "num_classes": 2}
        assert file["meta"]["config"]["epochs"] == 2
    assert last["train"]["position"]["epoch"] == 2
    assert best.get("train") is None
    json.dumps({key: best[key] for key in ("model", "names", "meta")})


def test_args_yaml_reruns_the_run_bit_for_bit(whole_run: Path, ullage: Callable[..., Outcome], here: Path) -> None:
    settings = yaml.safe_load((whole_run / "args.yaml").read_text())
    assert TrainConfig.load(settings).flat() == settings
    assert settings["epochs"] == 2
    again = ullage("train", cfg=whole_run / "args.yaml", plots=False, save_period=-1, verbose=False)
    assert (again.status, again.out) == (0, "")
    ours = here / "runs/detect/train/weights/best.pt"
    before, after = checkpoint(whole_run / "weights/best.pt")["weights"], checkpoint(ours)["weights"]
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


def test_val_agrees_with_training_and_predictions_json_judged_again_agrees_with_val(
    whole_run: Path, data: Path, ullage: Callable[..., Outcome], here: Path
) -> None:
    best = whole_run / "weights/best.pt"
    outcome = ullage("val", model=best, data=data, imgsz=64, batch=3, workers=0, save_json=True, device="cpu")
    assert outcome.status == 0, outcome.err
    assert "mAP50-95" in outcome.out
    assert "red" in outcome.out
    folder = here / "runs/detect/val"
    figures = json.loads((folder / "metrics.json").read_text())["results"]
    during = json.loads((whole_run / "metrics.json").read_text())["results"]
    assert figures == during
    assert figures["metrics/mAP50(B)"] > 0.01, "the test says nothing when nothing is found"
    assert (folder / "PR_curve.png").exists()
    assert (folder / "val_batch0_pred.jpg").exists()

    judged = judge_with_coco(folder / "predictions.json", data)
    assert judged[0] == pytest.approx(figures["metrics/mAP50-95(B)"], abs=1e-3)
    assert judged[1] == pytest.approx(figures["metrics/mAP50(B)"], abs=1e-3)


def judge_with_coco(predictions: Path, data: Path) -> np.ndarray:
    """COCO's twelve figures of a predictions file, by a judge that knows nothing of Ullage's evaluation."""
    truth = open_dataset(data, split="val")
    number_of = {str(name): number for number, name in enumerate(truth.image_ids)}
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
    for number in range(len(truth)):
        height, width = truth.size_hw(number)
        content["images"].append({"id": number, "file_name": truth.paths[number], "height": height, "width": width})
        labels = truth.labels(number)
        for box, class_id in zip(labels.boxes_xyxy_px_G4.tolist(), labels.class_ids_G.tolist(), strict=True):
            left, top, right, bottom = box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1, "image_id": number, "category_id": class_id, "iscrowd": 0,
                    "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                }
            )  # fmt: skip
    found = json.loads(predictions.read_text())
    assert found
    found = [{**row, "image_id": number_of[str(row["image_id"])]} for row in found]
    reference = COCO(content)
    judge = COCOeval_faster(reference, reference.loadRes(found), iouType="bbox", print_function=lambda *_: None)
    judge.params.maxDets = [1, 10, 300]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return np.asarray(judge.stats)


def test_predict_saves_pictures_and_text_under_the_names_of_the_sources(
    whole_run: Path, data: Path, ullage: Callable[..., Outcome], here: Path
) -> None:
    source = data.parent / "images/val"
    outcome = ullage("predict", model=whole_run / "weights/best.pt", source=source, save=True, save_txt=True, **LOW)
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert len(lines) == 5
    assert lines[-1] == "4 images done, saved in runs/detect/predict"
    assert lines[0].startswith(f"{source / '0.jpg'}: 96x128, ")
    for number in range(4):
        with Image.open(here / f"runs/detect/predict/{number}.jpg") as drawn:
            assert drawn.size == SIZES_HW[number][::-1]
        rows = np.loadtxt(here / f"runs/detect/predict/labels/{number}.txt", ndmin=2)
        assert len(rows) > 0
        assert set(rows[:, 0]) <= {0, 1}
        assert ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all()


def test_the_facade_loads_what_training_wrote_and_shares_it(whole_run: Path, data: Path, here: Path) -> None:
    model = YOLO(whole_run / "weights/best.pt")
    assert model.names == dict(enumerate(NAMES))
    picture = data.parent / "images/val/0.jpg"
    (expected,) = model.predict(picture, **LOW)
    assert len(expected.boxes) > 0
    for file in (
        model.save(here / "shared.safetensors"),
        model.save(here / "shared.pt"),
        whole_run / "weights/last.pt",
    ):
        other = YOLO(file)
        assert other.names == model.names
        (found,) = other(picture, **LOW)
        if file.name != "last.pt":  # of the last epoch, perhaps not the best one
            assert torch.equal(found.boxes.data, expected.boxes.data)


def test_another_number_of_classes_replaces_the_head_and_says_so(whole_run: Path, here: Path) -> None:
    three = make_data(here / "three", train=3, val=1)
    three.write_text("train: images/train\nval: images/val\nnames: [red, green, blue]\n")
    model = YOLO(whole_run / "weights/best.pt")
    settings = quick(three, verbose=False, optimizer="SGD", lr0=1e-9)
    del settings["model"]
    result = model.train(**settings)
    assert model.names == {0: "red", 1: "green", 2: "blue"}
    assert "skipped" in notices(result.run_dir)
    assert "head.cv3" in notices(result.run_dir)
    before, after = checkpoint(whole_run / "weights/best.pt")["weights"], checkpoint(result.best)["weights"]
    kept = [key for key in before if before[key].shape == after[key].shape and before[key].ndim == 4]
    assert len(kept) > 80
    for key in kept:
        torch.testing.assert_close(before[key], after[key], rtol=0, atol=1e-5)
    assert after["head.cv3.0.2.bias"].shape == (3,)


def test_the_command_works_from_a_shell_in_its_historic_spelling(whole_run: Path, data: Path, here: Path) -> None:
    picture = str(data.parent / "images/val/0.jpg")
    call = ["task=detect", "mode=predict", "--model", str(whole_run / "weights/best.pt"), "--source", picture]
    run = subprocess.run(
        [sys.executable, "-c", RUN_ULLAGE, *call, "--imgsz=64", "--device", "cpu"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"{picture}: 96x128, ")
    assert list(here.iterdir()) == [], "nothing was asked to be saved"
