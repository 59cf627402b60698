"""Labels of any content: every format is read or refused in one line, and no box is wrong or lost without a word.

Every example is also written down as bytes with a few of them changed, as a bad disk or a careless script would.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sources_kit import make_coco, make_voc, make_yolo, save_image, voc_object, write

from ullage.data.index import DetectionSet
from ullage.data.source import open_dataset
from ullage.errors import DataError

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WIDTH, HEIGHT = 60, 40
NUMBERS = st.one_of(
    st.floats(-2, 80).map(lambda number: f"{number:.6g}"),
    st.integers(-3, 90).map(str),
    st.sampled_from(["nan", "inf", "1e400", "1e-400", "", "x", "0x10", "\uff11", "1_0", "--1", "1,5", "\u221e"]),
    st.sampled_from(["\x00", "1e999999999", "-0", "+1", ".5", "5."]),
)  # fmt: skip
TEXTS = st.text(max_size=60)


def opened(path: Path) -> DetectionSet | None:
    """Read the set; an error must be ours, and one line."""
    refused: DataError | None = None
    data = None
    try:
        data = open_dataset(path, split="train")
    except DataError as error:
        refused = error
    if data is None:
        assert "\n" not in str(refused)
        return None
    boxes = data.boxes_xyxy_px_N4
    assert np.isfinite(boxes).all()
    assert len(boxes) == len(data.class_ids_N) == len(data.crowd_N) == data.offsets[-1]
    if len(boxes):
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= WIDTH
        assert boxes[:, 3].max() <= HEIGHT
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert 0 <= data.class_ids_N.min() <= data.class_ids_N.max() < len(data.names)
    assert all("\n" not in str(problem) for problem in data.problems)
    return data


def spoil(content: bytes, changes: list[tuple[int, int]], end: int | None) -> bytes:
    """Change some bytes, cut the rest off."""
    spoilt = bytearray(content)
    for place, value in changes:
        if spoilt:
            spoilt[place % len(spoilt)] = value
    return bytes(spoilt[:end])


SPOILING = st.tuples(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4), st.none() | st.integers(0, 400)
)


@FUZZ
@given(lines=st.lists(st.lists(NUMBERS, min_size=1, max_size=9).map(" ".join), max_size=6), junk=st.binary(max_size=20))
@example(lines=["0 0.5 0.5 0.2 0.2", "1 0.25 0.25 0.1 0.1 "], junk=b"")
@example(lines=["0 0.5 0.5 1e308 1e308"], junk=b"")
def test_yolo(tmp_path: Path, lines: list[str], junk: bytes):
    make_yolo(tmp_path, {"a": "0 .5 .5 .5 .5", "b": ""})
    (tmp_path / "labels/train/b.txt").write_bytes("\n".join(lines).encode("utf-8", "replace") + junk)
    data = opened(tmp_path / "data.yaml")
    if data is None or junk:
        return
    # Each line that says something is a box, or a problem that names it; never both, except a box that was clipped.
    said = sum(bool(line.strip()) for line in "\n".join(lines).splitlines())
    told = sum(p.action == "box_left_out" and p.file.endswith("b.txt") for p in data.problems)
    index = next((place for place, path in enumerate(data.paths) if path.endswith("b.png")), None)
    found = 0 if index is None else len(data.labels(index))
    assert found + told == said


@FUZZ
@given(text=TEXTS)
def test_yolo_lines_of_any_text(tmp_path: Path, text: str):
    make_yolo(tmp_path, {"a": "0 .5 .5 .5 .5"})
    (tmp_path / "labels/train/a.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    opened(tmp_path / "data.yaml")


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("a.png"), st.just(7)),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "bbox", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
ANNOTATIONS = st.fixed_dictionaries(
    {},
    optional={
        "id": VALUES,
        "image_id": VALUES | st.just(7),
        "category_id": VALUES | st.sampled_from([3, 90]),
        "bbox": VALUES | st.lists(st.floats(-50, 100) | st.integers(-10, 70), min_size=4, max_size=4),
        "iscrowd": VALUES,
        "area": VALUES,
        "segmentation": VALUES | st.lists(st.lists(st.floats(-5, 80), min_size=4, max_size=8), max_size=2),
    },
)


@FUZZ
@given(annotations=st.lists(ANNOTATIONS, max_size=4))
@example(annotations=[{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 20]}])
def test_coco(tmp_path: Path, annotations: list):
    json_file = make_coco(tmp_path, annotations=annotations)
    data = opened(json_file)
    if data is not None and len(data):
        told = sum(problem.action in ("box_left_out", "label_left_out") for problem in data.problems)
        assert len(data.class_ids_N) + told == len(annotations)


@FUZZ
@given(content=VALUES | st.fixed_dictionaries({"images": VALUES, "annotations": VALUES, "categories": VALUES}))
def test_coco_files_of_any_content(tmp_path: Path, content: object):
    save_image(tmp_path / "a.png")
    opened(write(tmp_path / "truth.json", json.dumps(content)))


@FUZZ
@given(spoiling=SPOILING)
def test_spoilt_coco_files(tmp_path: Path, spoiling):
    json_file = make_coco(tmp_path, annotations=[{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 20]}])
    json_file.write_bytes(spoil(json_file.read_bytes(), *spoiling))
    opened(json_file)


@FUZZ
@given(corners=st.lists(st.lists(NUMBERS, max_size=5), max_size=4))
def test_voc(tmp_path: Path, corners: list[list[str]]):
    text = "".join(voc_object("dog", *(number.replace("\x00", "") for number in each)) for each in corners)
    data = opened(make_voc(tmp_path, {"a": voc_object("cat", 1, 1, 50, 30), "b": text}))
    assert data is not None
    told = sum(problem.action == "box_left_out" for problem in data.problems)
    assert len(data.class_ids_N) + told == 1 + len(corners)


@FUZZ
@given(spoiling=SPOILING)
def test_spoilt_voc_files(tmp_path: Path, spoiling):
    make_voc(tmp_path, {"a": voc_object("cat", 1, 1, 50, 30), "b": voc_object("dog", 1, 1, 50, 30)})
    file = tmp_path / "Annotations/b.xml"
    file.write_bytes(spoil(file.read_bytes(), *spoiling))
    opened(tmp_path)


ROWS = st.lists(st.lists(NUMBERS | st.sampled_from(["a.png", "cat", "b.png", '"', "train"]), max_size=8), max_size=5)


@FUZZ
@given(
    rows=ROWS, head=st.sampled_from(["image,xmin,ymin,xmax,ymax,label", "image,xmin,ymin,xmax,ymax,label,split,crowd"])
)
def test_csv(tmp_path: Path, rows: list[list[str]], head: str):
    save_image(tmp_path / "a.png")
    body = "".join(",".join(row).replace("\n", " ") + "\n" for row in rows)
    (tmp_path / "t.csv").write_bytes(f"{head}\na.png,1,2,30,20,cat\n{body}".encode("utf-8", "replace"))
    opened(tmp_path / "t.csv")


@FUZZ
@given(spoiling=SPOILING)
def test_spoilt_csv_files(tmp_path: Path, spoiling):
    save_image(tmp_path / "a.png")
    content = b"image,xmin,ymin,xmax,ymax,label\na.png,1,2,30,20,cat\na.png,5,5,9,9,dog\n"
    (tmp_path / "t.csv").write_bytes(spoil(content, *spoiling))
    opened(tmp_path / "t.csv")


@FUZZ
@given(spoiling=SPOILING)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_spoilt_yaml_files(tmp_path: Path, spoiling):
    yaml = make_yolo(tmp_path, {"a": "0 .5 .5 .5 .5"})
    yaml.write_bytes(spoil(yaml.read_bytes(), *spoiling))
    opened(yaml)
