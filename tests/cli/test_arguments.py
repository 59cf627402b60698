"""The words of a command line, and what is printed for help."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ullage.apps.cli.arguments import LATER, VERBS, Call, parse
from ullage.apps.cli.demo import DEMO_FIXED, DEMO_SETTINGS
from ullage.apps.cli.main import main
from ullage.apps.cli.verbs import settings
from ullage.config import PredictConfig, TrainConfig, ValConfig
from ullage.config.bench import BenchConfig
from ullage.config.tools import PlanConfig
from ullage.errors import ConfigError


@pytest.mark.parametrize(
    "line",
    [
        "train data=demo lr0=0.01 resume imgsz=320,608",
        "train --data demo --lr0 0.01 --resume --imgsz 320,608",
        "train --data=demo --lr0=0.01 --resume --imgsz=320,608",
        "task=detect mode=train resume data=demo lr0=0.01 imgsz=320,608",
        "detect train data=demo --resume lr0=0.01 imgsz=320,608",
        "--data demo train --resume lr0=0.01 --imgsz 320,608",
    ],
)
def test_every_way_to_write_a_call_means_the_same(line: str) -> None:
    call = parse(line.split())
    assert call.verb == "train"
    assert call.texts == {"data": "demo", "lr0": "0.01", "imgsz": "320,608"}
    assert call.bare == ["resume"]
    config = settings(call, TrainConfig)
    assert (config.data.data, config.optim.lr0, config.run.resume, config.data.imgsz) == (
        "demo",
        0.01,
        True,
        (320, 608),
    )


def test_the_calls_that_users_type() -> None:
    call = parse(["task=detect", "mode=train", "resume", "model=runs/detect/train/weights/last.pt"])
    config = settings(call, TrainConfig)
    assert (config.run.resume, config.model.model) == (True, "runs/detect/train/weights/last.pt")
    call = parse(
        [
            "train",
            "--data",
            "coco128.yaml",
            "--imgsz",
            "320,608",
            "--batch",
            "8",
            "--epochs",
            "10",
            "--name",
            "exp_final",
        ]
    )
    config = settings(call, TrainConfig)
    assert (config.data.imgsz, config.data.batch, config.folder.name) == ((320, 608), 8, "exp_final")
    config = settings(parse(["train", "data=demo", "freeze=3", "classes=0,2", "device=0,1", "amp=bf16"]), TrainConfig)
    assert (config.model.freeze, config.data.classes, config.device.device, config.device.amp) == (
        3,
        [0, 2],
        "0,1",
        "bf16",
    )
    config = settings(parse(["val", "model=a.pt", "data=d.yaml", "save_json"]), ValConfig)
    assert config.eval.save_json is True
    config = settings(parse(["predict", "source=my pictures/a=b.jpg", "conf=0.5"]), PredictConfig)
    assert (config.predict.source, config.predict.conf) == ("my pictures/a=b.jpg", 0.5)


def test_option_values_may_be_negative_and_keys_may_have_dashes() -> None:
    call = parse(["train", "--save-period", "-1", "--exist-ok", "--cos_lr", "name=x"])
    assert call.texts == {"save_period": "-1", "name": "x"}
    assert call.bare == ["exist_ok", "cos_lr"]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("trian data=demo", ("'trian'", "train", "Did you mean 'train'?")),
        ("train mode=val", ("'train'", "'val'")),
        ("mode=fit", ("'fit'", "train")),
        ("segment train", ("task=segment", "detect")),
        ("task=pose mode=train", ("task=pose", "detect")),
        ("data=demo", ("what shall be done", "train")),
        ("data chek", ("'data chek'", "Did you mean 'check'?")),
        ("data", ("data check", "data convert")),
        ("train lr0=1 lr0=2", ("'lr0'", "twice")),
        ("train resume resume=True", ("'resume'", "twice")),
        ("train cfg=a cfg=b", ("'cfg'", "twice")),
        ("train cfg=", ("cfg=FILE",)),
        ("train -x", ("'-x'", "key=value")),
        ("train mosaik=1", ("'mosaik'", "Did you mean 'mosaic'?")),
        ("train rezume", ("'rezume'", "Did you mean 'resume'?", "ullage train --help")),
        ("predict bus.jpg", ("'bus.jpg'", "key=value")),
        ("train epochs", ("epochs=True", "int")),
        ("train epochs=0", ("epochs=0", "at least 1")),
        ("train data=demo cfg=/none/x.yaml", ("/none/x.yaml", "No such file")),
        ("val lr0=0.1", ("val", "'lr0'")),
        ("demo data=other", ("demo", "'data'")),
        ("data convert data=demo to=coko out=x", ("'coko'", "Did you mean 'coco'?")),
        ("data convert data=demo out=x", ("needs 'to'",)),
        ("train epcohs --help", ("'epcohs'", "Did you mean 'epochs'?")),
        *((verb, (f"'{verb}' is not in this version", "train")) for verb in LATER),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(
    line: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    for part in parts:
        assert part in output.err


def test_a_file_of_settings_lies_between_the_verbs_defaults_and_what_is_typed(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nbatch: 4\n", encoding="utf-8")
    config = settings(parse(["demo", f"cfg={file}", "batch=2"]), TrainConfig, defaults=DEMO_SETTINGS)
    assert (config.optim.epochs, config.data.batch, config.data.data) == (7, 2, "demo")
    assert config.augment.fliplr == 0.0


def test_the_demo_settings_are_settings() -> None:
    assert TrainConfig.load(DEMO_SETTINGS).data.data == "demo"
    assert set(DEMO_FIXED) <= set(TrainConfig.fields())


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("train", TrainConfig),
        ("val", ValConfig),
        ("predict", PredictConfig),
        ("demo", TrainConfig),
        ("plan", PlanConfig),
        ("bench", BenchConfig),
    ],
)
def test_help_lists_every_key_with_type_default_and_meaning(line, config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([line, "--help"]) == 0
    text = capsys.readouterr().out
    rows = {row.split()[0]: row for row in text.splitlines() if row.startswith("  ") and row.strip()}
    for key in config.help():
        if line == "demo" and key.key in DEMO_FIXED:
            assert key.key not in rows
            continue
        assert key.type in rows[key.key]
        assert key.meaning in rows[key.key]
        default = repr(DEMO_SETTINGS[key.key]) if line == "demo" and key.key in DEMO_SETTINGS else key.default
        assert default in rows[key.key]
    assert max(map(len, text.splitlines())) <= 130


def test_help_of_one_key_and_of_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mosaic", "--help"]) == 0
    text = capsys.readouterr().out
    assert "probability of four images in one" in text
    assert "lr0" not in text
    for words in ([], ["--help"], ["help"], ["-h"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert all(verb in text for verb in VERBS)
    for words in (["data", "--help"], ["data", "check", "--help"], ["data", "convert", "--help"], ["help", "val"]):
        assert main(words) == 0
        assert "data" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from ullage import __version__

    for words in (["--version"], ["version"], ["-V"]):
        assert main(words) == 0
        assert capsys.readouterr().out == f"ullage {__version__}\n"


@pytest.mark.parametrize(
    "line", ["--help", "train --help", "predict --help", "data convert --help", "demo --help", "train epochs=x"]
)
def test_help_and_refusals_import_nothing_heavy(line: str) -> None:
    code = f"""
import sys
from ullage.apps.cli.main import main
main({line.split()!r})
print([name for name in ("torch", "numpy", "rich", "cv2", "matplotlib", "PIL") if name in sys.modules])
print("pydantic" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    heavy, pydantic = run.stdout.splitlines()[-2:]
    assert heavy == "[]"
    assert pydantic == str(line != "--help")


def test_a_call_names_itself() -> None:
    assert Call(verb="data", action="check").name() == "data check"
    with pytest.raises(ConfigError):
        parse(["data", "show"])
