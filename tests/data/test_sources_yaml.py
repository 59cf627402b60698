from __future__ import annotations

from pathlib import Path

import pytest
from sources_kit import make_voc, make_yolo, save_image, voc_object, write

from ullage.data.source import dataset_info, open_dataset
from ullage.errors import DataError

BOX = "0 .5 .5 .2 .2\n"


def stems(yaml: Path, split: str = "train") -> list[str]:
    return [Path(path).stem for path in open_dataset(yaml, split=split).paths]  # pyright: ignore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_yolo(tmp_path, {"a": BOX, "b": BOX})
    make_yolo(tmp_path, {"c": BOX}, split="extra")
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("images/train", ["a", "b"]),
        ("[images/train, images/extra]", ["a", "b", "c"]),
        ("images/*/[bc].png", ["c", "b"]),
        ("images/t*", ["a", "b"]),
        ("images/train/b.png", ["b"]),
        ("list.txt", ["c", "a"]),
        ("images", ["c", "a", "b"]),
        (".", ["c", "a", "b"]),
    ],
)
def test_entries(root: Path, entry: str, found: list[str]) -> None:
    write(root / "list.txt", f"# a comment\n./images/extra/c.png\n\n{root}/images/train/a.png\n")
    assert stems(write(root / "data.yaml", f"train: {entry}\nnames: [cat]\n")) == found


def test_paths_start_from_path_or_from_the_yaml(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert stems(write(root / "cfg/one.yaml", "path: ..\ntrain: images/extra\nnc: 1\n")) == ["c"]
    assert stems(write(root / "cfg/two.yaml", f"path: {root}\ntrain: images/extra\nnc: 1\n")) == ["c"]
    assert stems(write(root / "cfg/three.yaml", "train: ../images/extra\nnc: 1\n")) == ["c"]
    assert stems(write(root / "cfg/four.yaml", f"train: {root}/images/extra\nnc: 1\n")) == ["c"]


def test_lists_relative_to_the_root(root: Path) -> None:
    write(root / "lists/train.txt", "images/train/a.png\n")
    assert stems(write(root / "data.yaml", "train: lists/train.txt\nnc: 1\n")) == ["a"]


def test_images_listed_twice_count_once(root: Path) -> None:
    write(root / "list.txt", "./images/train/a.png\n./images/train/b.png\n./images/train/a.png\n")
    data = open_dataset(write(root / "data.yaml", "train: list.txt\nnc: 1\n"), split="train")
    assert len(data) == 2
    assert [(p.kind, p.file, p.line, p.action) for p in data.problems] == [
        ("duplicate_image", str(root / "list.txt"), 3, "image_left_out")
    ]


def test_listed_images_that_are_missing(root: Path) -> None:
    write(root / "list.txt", "./images/train/a.png\n./images/train/gone.png\n")
    data = open_dataset(write(root / "data.yaml", "train: list.txt\nnc: 1\n"), split="train")
    assert len(data) == 1
    (problem,) = data.problems
    assert (problem.kind, problem.file, problem.line) == ("missing_image", str(root / "list.txt"), 2)
    assert "gone.png" in problem.message


def test_the_export_that_writes_one_parent_too_many(tmp_path: Path) -> None:
    save_image(tmp_path / "set/train/images/a.png")
    write(tmp_path / "set/train/labels/a.txt", BOX)
    yaml = write(tmp_path / "set/data.yaml", "train: ../train/images\nnc: 1\nnames: ['x']\nroboflow: {version: 1}\n")
    assert stems(yaml) == ["a"]
    notes = dataset_info(yaml).notes
    assert any("'train/images' is used" in note for note in notes)
    assert any("'roboflow'" in note for note in notes)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [a, b]", ("a", "b")),
        ("names: {0: a, 1: b}", ("a", "b")),
        ("names: {1: b, 0: a}", ("a", "b")),
        ("names: {'0': a}", ("a",)),
        ("nc: 2\nnames: [a, b]", ("a", "b")),
        ("nc: 2", ("0", "1")),
        ("names: [1, 2.5, ' x ']", ("1", "2.5", "x")),
        ("names: a, b", ("a", "b")),
    ],
)
def test_names(root: Path, names: str, expected: tuple[str, ...]) -> None:
    assert dataset_info(write(root / "data.yaml", f"train: images/train\n{names}\n")).names == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: images/train\nnc: 3\nnames: [a, b]", r"nc=3 but there are 2 names"),
        ("train: images/train\nnames: {0: a, 2: b}", "class 1 is missing"),
        ("train: images/train\nnames: {x: a}", "class numbers"),
        ("train: images/train\nnames: [yes, no]", "class 0 reads as True in YAML; put its name in quotes"),
        ("train: images/train\nnames: []", "names must be"),
        ("train: images/train\nnames: [[a]]", "class 0 must be a text"),
        ("train: images/train\nnc: -1", "nc must be"),
        ("train: images/train\nnc: many", "nc must be"),
        ("trian: images/train\nnames: [a]", "unknown key 'trian'. Did you mean 'train'"),
        ("train: images/train\nname: [a]", "unknown key 'name'. Did you mean 'names'"),
        ("train: images/gone\nnames: [a]", r"train names 'images/gone', but '.*gone' does not exist"),
        ("train: images/*.xyz\nnames: [a]", "no image in .* matches"),
        ("train: data.yaml\nnames: [a]", "neither a folder, an image nor a list"),
        ("train: 5\nnames: [a]", "must be a path or a list of paths, got 5"),
        ("train: []\nnames: [a]", "must be a path or a list"),
        ("train: labels\nnames: [a]", "no images for split 'train'"),
        (
            "path: nowhere\ntrain: images/train\nnames: [a]",
            "path 'nowhere' means the folder '.*nowhere', which does not",
        ),
        ("path: 3\ntrain: images/train\nnames: [a]", "path must be a folder"),
        ("names: [a]", "names no images"),
        ("train: images/train\nformat: yol\nnames: [a]", "allowed: yolo, coco, voc, csv. Did you mean 'yolo'"),
        ("train: images/train\nannotations: x\nnames: [a]", "'annotations' does not fit format yolo"),
        ("val: images/train\nvalid: images/extra\ntrain: images/train\nnc: 1", "both 'val' and 'valid'"),
        ("", "found nothing"),
        ("- a\n- b", "found a list"),
        ("train: [unclosed", "not valid YAML"),
        ("a: &a [*a]\ntrain: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("format: coco\ntrain: images/train", "needs a JSON file"),
        ("train: gone.json", "gone.json', which does not exist"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(root: Path, text: str, says: str) -> None:
    yaml = write(root / "data.yaml", text)
    with pytest.raises(DataError, match=says) as caught:
        open_dataset(yaml, split="train")
    assert "\n" not in str(caught.value)


def test_binary_yaml(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_bytes(b"\xff\xfe\x81")
    with pytest.raises(DataError, match="not UTF-8"):
        open_dataset(tmp_path / "data.yaml", split="train")


def test_a_split_that_is_not_there(root: Path) -> None:
    yaml = write(root / "data.yaml", "train: images/train\ntest: images/extra\nnc: 1\n")
    with pytest.raises(DataError, match=r"has no split 'val'; it has: train, test"):
        open_dataset(yaml, split="val")
    assert dataset_info(yaml).splits == ("train", "test")


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_words_for_val(root: Path, name: str) -> None:
    assert stems(write(root / "data.yaml", f"train: images/train\n{name}: images/extra\nnc: 1\n"), "val") == ["c"]


def test_data_that_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match=r"'dta\.yaml' does not exist|Did you mean 'data\.yaml'"):
        open_dataset("dta.yaml", split="train")
    with pytest.raises(DataError, match="Did you mean 'demo'"):
        open_dataset("dmo", split="train")
    with pytest.raises(DataError, match="is no data set"):
        open_dataset("images/train/a.png", split="train")
    with pytest.raises(DataError, match="data is empty"):
        open_dataset("", split="train")


def test_voc_is_recognised_without_format(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        save_image(tmp_path / split / "a.jpg")
        write(tmp_path / split / "a.xml", f"<annotation>{voc_object('cat', 1, 2, 30, 20)}</annotation>")
    info = dataset_info(write(tmp_path / "data.yaml", "train: train\nval: valid\n"))
    assert (info.format, info.names, info.splits) == ("voc", ("cat",), ("train", "val"))


def test_voc_keys_must_be_folders(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": voc_object("cat", 1, 2, 30, 20)})
    lists = "train: ImageSets/Main/train.txt\nformat: voc\n"
    with pytest.raises(DataError, match=r"images names '.*Pictures', which is no folder"):
        open_dataset(write(tmp_path / "data.yaml", f"{lists}images: Pictures\n"), split="train")
    bad = f"{lists}images: JPEGImages\nannotations: ImageSets/Main/train.txt\n"
    with pytest.raises(DataError, match="annotations must be one folder"):
        open_dataset(write(tmp_path / "data.yaml", bad), split="train")


def test_what_the_file_system_refuses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="File name too long"):
        open_dataset("x" * 5000, split="train")
    with pytest.raises(DataError, match="there is no data set"):
        open_dataset("~nobody-of-that-name/data.yaml", split="train")

    def refuse(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied", "/locked")

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(DataError, match="'/locked' Permission denied"):
        open_dataset(write(root / "data.yaml", "train: images/train\nnc: 1\n"), split="train")


def test_the_home_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    yaml = write(root / "cfg/data.yaml", "train: ~/images/extra\nnc: 1\n")
    assert stems(yaml) == ["c"]
    assert stems(write(root / "cfg/data.yaml", "path: '~'\ntrain: images/*/c.png\nnc: 1\n")) == ["c"]


def test_an_invalid_glob(root: Path) -> None:
    with pytest.raises(DataError, match=r"no glob|no image in"):
        open_dataset(write(root / "data.yaml", "train: images/a**b/*.png\nnc: 1\n"), split="train")
