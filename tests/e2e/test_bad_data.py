"""Data as people really have it: what can be used is used, what cannot is named in one line."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from e2e_kit import Outcome, make_data, notices, quick, run_apart, words
from PIL import Image

Run = Callable[..., Outcome]


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def own(data: Path, here: Path) -> Path:
    """A copy of the data set that a test may spoil; its folder."""
    return shutil.copytree(data.parent, here / "set")


@pytest.fixture
def fails(ullage: Run, here: Path) -> Callable[..., str]:
    """Train on data that cannot work; return the line that says why. No file is made or changed."""

    def run(data: Path, **changes: object) -> str:
        before = fingerprint(here)
        complaint = ullage("train", **quick(data, verbose=False, **changes)).complaint
        assert fingerprint(here) == before
        assert not (here / "runs").exists(), "a run folder was left behind"
        return complaint

    return run


def test_an_empty_folder(here: Path, fails: Callable[..., str]) -> None:
    (here / "empty").mkdir()
    assert "holds no data set" in fails(here / "empty")


def test_no_labels_at_all(own: Path, fails: Callable[..., str]) -> None:
    shutil.rmtree(own / "labels")
    assert "has a label file" in fails(own / "data.yaml")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("trian: images/train\nval: images/val\nnames: [red, green]\n", "'trian'. Did you mean 'train'?"),
        ("train: images/train\nval: images/val\nnmaes: [red, green]\n", "'nmaes'. Did you mean 'names'?"),
        ("train: images/train\nval: [images/val\nnames: [red]\n", "is not valid YAML"),
        ("train: images/nothere\nval: images/val\nnames: [red, green]\n", "'images/nothere'"),
        ("train: images/train\nval: images/val\nnc: 3\nnames: [red, green]\n", "nc=3 but there are 2 names"),
        ("train: images/train\nval: images/val\nnames: {0: red, 2: green}\n", "class 1 is missing"),
        ("train: images/train\nval: images/val\nnames: [red, no]\n", "put its name in quotes"),
        ("train: images/train\nnames: [red, green]\n", "no split 'val'; it has: train. Train without one by val=False"),
        ("val: images/val\nnames: [red, green]\n", "no split 'train'"),
        ("path: nowhere\ntrain: images/train\nval: images/val\nnames: [red, green]\n", "path 'nowhere'"),
        ("- train\n- val\n", "must hold 'key: value' lines"),
        ("", "found nothing"),
        ("names: [red, green]\n", "names no images"),
    ],
)
def test_a_yaml_with_a_mistake(text: str, named: str, own: Path, fails: Callable[..., str]) -> None:
    (own / "data.yaml").write_text(text)
    assert named in fails(own / "data.yaml")


def test_data_that_is_not_there(own: Path, fails: Callable[..., str]) -> None:
    assert "Did you mean 'data.yaml'?" in fails(own / "dat.yaml")
    assert "is no data set" in fails(own / "images/train/0.jpg")
    assert "classes 0 to 1" in fails(own / "data.yaml", classes=2)
    binary = own / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in fails(binary)


def test_only_broken_images(own: Path, fails: Callable[..., str]) -> None:
    for image in (own / "images/train").iterdir():
        image.write_bytes(b"\xff\xd8 no picture")
    assert "none of its 8 images can be used" in fails(own / "data.yaml")


def test_broken_images_and_labels_among_good_ones_are_left_out_and_counted(own: Path, ullage: Run, here: Path) -> None:
    images, labels = own / "images/train", own / "labels/train"
    (images / "0.jpg").write_bytes(b"\xff\xd8 no picture")
    (images / "1.jpg").write_bytes((images / "1.jpg").read_bytes()[:500])
    (images / "2.jpg").write_bytes(b"")
    (labels / "3.txt").write_text("7 .5 .5 .2 .2\n1 .5 .5 .2 .2\n1 .5 .5 .2 .2\n")  # no such class; one box twice
    (labels / "4.txt").write_text("0 1.5 .5 .2 .2\n0 .95 .5 .4 .2\n0 .5 .5 0 .2\n0 nan .5 .2 .2\nnonsense\n")
    (labels / "5.txt").unlink()
    (labels / "orphan.txt").write_text("0 .5 .5 .2 .2\n")
    before = fingerprint(own)
    outcome = ullage("train", **quick(own / "data.yaml", verbose=True))
    assert (outcome.status, outcome.err) == (0, "")
    assert fingerprint(own) == before
    # 5 images; boxes: one of image 3, one of image 4, none of image 5, two each of 6 and 7
    assert "5 training images with 6 boxes" in notices(here / "runs/detect/train")
    assert "problems in the data; 'ullage data check data=" in outcome.out

    checked = ullage("data check", data=own / "data.yaml", report="report.json")
    assert checked.status == 0
    for where in (
        "0.jpg",
        "1.jpg",
        "2.jpg",
        "3.txt:1",
        "3.txt:3",
        "4.txt:1",
        "4.txt:2",
        "4.txt:3",
        "4.txt:4",
        "4.txt:5",
    ):
        assert where in checked.out
    splits = json.loads((here / "report.json").read_text())["splits"]
    kinds = {problem["kind"] for split in splits.values() for problem in split["problems"]}
    assert {"corrupt_image", "class_out_of_range", "box_outside", "box_empty", "duplicate_box", "orphan_label"} <= kinds


def test_an_image_whose_damage_shows_only_when_decoded_is_named(own: Path, ullage: Run, here: Path) -> None:
    """Its header and its end are whole; reading the data set looks no further."""
    image = own / "images/train/0.png"
    Image.open(own / "images/train/0.jpg").save(image)
    (own / "images/train/0.jpg").unlink()
    content = bytearray(image.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    image.write_bytes(content)
    for workers in (0, 1):
        outcome = run_apart(words("train", quick(own / "data.yaml", workers=workers, verbose=False)), folder=here)
        assert outcome.status == 1
        assert "images/train/0.png" in outcome.complaint
    assert "0.png" in ullage("data check", data=own / "data.yaml").out


def test_every_kind_of_picture_trains_and_predicts(own: Path, whole_run: Path, ullage: Run, here: Path) -> None:
    kinds = [("L", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("I;16", "png"), ("P", "gif"), ("1", "png"), ("LA", "png")]
    for number, (mode, suffix) in enumerate(kinds):
        source = own / f"images/train/{number}.jpg"
        with Image.open(source) as image:
            grey16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
            changed = grey16 if mode == "I;16" else image.convert(mode)
        source.unlink()
        changed.save(own / f"images/train/{number}.{suffix}")
    outcome = ullage("train", **quick(own / "data.yaml"))
    assert (outcome.status, outcome.err) == (0, "")
    assert "8 training images with 16 boxes" in outcome.out
    model = whole_run / "weights/best.pt"
    found = ullage("predict", model=model, source=own / "images/train", imgsz=64, save=True, device="cpu")
    assert (found.status, found.err) == (0, "")
    assert len(list((here / "runs/detect/predict").iterdir())) == 8


def test_images_without_any_box_train_and_judge(own: Path, ullage: Run, here: Path) -> None:
    for split in ("train", "val"):
        for label in (own / "labels" / split).iterdir():
            label.write_text("")
    outcome = ullage("train", **quick(own / "data.yaml", plots=True))
    assert (outcome.status, outcome.err) == (0, "")
    assert (here / "runs/detect/train/labels.png").exists()
    assert (here / "runs/detect/train/PR_curve.png").exists()


def test_one_image_and_a_batch_larger_than_the_set(here: Path, ullage: Run) -> None:
    one = make_data(here / "one", train=1, val=1)
    assert ullage("train", **quick(one, batch=64)).status == 0
    assert ullage("train", **quick(one, batch=1, workers=2)).status == 0
    assert "of one image of 32x32 pixels" in ullage("train", **quick(one, imgsz=32)).complaint


def test_no_validation_split_is_no_hindrance_without_validation(own: Path, ullage: Run, here: Path) -> None:
    (own / "data.yaml").write_text("train: images/train\nnames: [red, green]\n")
    assert ullage("train", **quick(own / "data.yaml", val=False)).status == 0
    assert (here / "runs/detect/train/weights/best.pt").exists()


def test_a_model_of_other_classes_is_not_judged(whole_run: Path, own: Path, ullage: Run, here: Path) -> None:
    best = whole_run / "weights/best.pt"
    common = {"model": best, "imgsz": 64, "workers": 0, "device": "cpu"}
    assert "tells 2 classes apart, the data set has 10" in ullage("val", data="demo", **common).complaint
    assert not (here / "runs").exists()
    (own / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [red, blue]\n")
    call = words("val", {**common, "data": own / "data.yaml", "plots": False})
    outcome = run_apart(call, folder=here)
    assert outcome.status == 0
    assert outcome.err.splitlines() == [
        "ullage: warning: class 1 is 'green' to the model, 'blue' in the data set; classes are compared by number"
    ]


def test_odd_paths(data: Path, whole_run: Path, ullage: Run, here: Path) -> None:
    odd = here / "with space, ünïcode 日本 [x]" / "-dash"
    shutil.copytree(data.parent, odd)
    settings = quick(odd / "data.yaml", plots=True, project=here / "pro ject é", name="-na me")
    outcome = ullage("train", **settings)
    assert (outcome.status, outcome.err) == (0, "")
    best = here / "pro ject é/-na me/weights/best.pt"
    found = ullage("predict", model=best, source=odd / "images/val", imgsz=64, save=True, device="cpu")
    assert (found.status, found.err) == (0, "")
    assert (here / "runs/detect/predict/0.jpg").exists()
    shutil.copytree(odd, here / "-set")
    assert ullage("data check", data="-set").status == 0
    assert ullage("predict", model=best, source="-set/images/val/0.jpg", imgsz=64, device="cpu").status == 0
