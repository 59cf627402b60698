"""Settings: load, override, dump; and every way of getting one wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from ullage.config import PredictConfig, TrainConfig, ValConfig, VerbConfig, parse_value
from ullage.config.bench import BenchConfig
from ullage.config.tools import DataCheckConfig, DataConvertConfig, PlanConfig
from ullage.errors import ConfigError

CONFIGS = [TrainConfig, ValConfig, PredictConfig, DataCheckConfig, DataConvertConfig, PlanConfig, BenchConfig]
# YAML forbids most control characters; file names rarely have them
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)
SIZES = st.integers(1, 40).map(lambda n: n * 32)
TRAIN_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "data": st.none() | TEXTS,
        "model": TEXTS,
        "name": st.none() | TEXTS,
        "pretrained": st.booleans() | TEXTS,
        "resume": st.booleans() | TEXTS,
        "device": st.none() | st.sampled_from(["cpu", "0", "0,1", "cuda:0", "mps"]),
        "freeze": st.none() | st.integers(0, 30) | st.lists(st.integers(0, 30), min_size=1, max_size=4),
        "imgsz": SIZES | st.tuples(SIZES, SIZES).map(lambda pair: tuple(sorted(pair))),
        "classes": st.none() | st.lists(st.integers(0, 99), max_size=5),
        "amp": st.sampled_from([True, False, "fp16", "bf16"]),
        "cache": st.sampled_from([False, "ram", "disk"]),
        "optimizer": st.sampled_from(["auto", "SGD", "AdamW"]),
        "lr0": st.floats(1e-9, 10),
        "time": st.none() | st.floats(1e-3, 100),
        "momentum": st.floats(0, 1, exclude_max=True),
        "epochs": st.integers(1, 10**6),
        "seed": st.integers(0, 2**32 - 1),
        "cos_lr": st.booleans(),
        "save_period": st.integers(-1, 50),
    },
)


@given(TRAIN_VALUES)
def test_what_is_dumped_loads_as_an_equal_configuration(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    config = TrainConfig.load(values)
    file = tmp_path_factory.mktemp("args") / "args.yaml"
    file.write_text(config.dump(), encoding="utf-8")
    assert TrainConfig.load({}, file=file) == config
    assert TrainConfig.load(config.flat()) == config


@given(TRAIN_VALUES, TRAIN_VALUES)
def test_an_override_changes_what_it_names_and_nothing_else(first: dict[str, Any], second: dict[str, Any]) -> None:
    config = TrainConfig.load(first)
    assert config.override(**second) == TrainConfig.load({**first, **second})
    assert config == TrainConfig.load(first)  # frozen


@given(TRAIN_VALUES)
def test_what_is_typed_reads_as_what_was_meant(values: dict[str, Any]) -> None:
    words = ("none", "null", "true", "false")  # as a name, these words mean what they say
    assume(not any(isinstance(value, str) and value.lower() in words for value in values.values()))
    values = {key: value for key, value in values.items() if value != []}
    typed = {key: _typed(value) for key, value in values.items()}
    assert TrainConfig.load(TrainConfig.parse(typed)) == TrainConfig.load(values)


def _typed(value: Any) -> str:
    return (
        ",".join(map(str, value)) + ("," if len(value) == 1 else "") if isinstance(value, list | tuple) else str(value)
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("-1", -1), ("+2", 2), (".5", 0.5), ("5.", 5.0), ("True", True), ("false", False),
        ("None", None), ("", None), ("320,608", [320, 608]), ("[0, 1]", [0, 1]), ("(320,608)", [320, 608]),
        ("[3]", [3]), ("0,", [0]), ("a,b", "a,b"), ("1_000", "1_000"), ("cuda:0", "cuda:0"), ("[", "["), ("1e", "1e"),
        ("0x10", "0x10"), ("runs/[1]", "runs/[1]"),
    ],
)  # fmt: skip
def test_values_are_read_from_text(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "007", "007"),
        ("name", "1e3", "1e3"),
        ("device", "0,1", "0,1"),
        ("device", "0", "0"),
        ("data", "None", None),
        ("pretrained", "false", False),
        ("pretrained", "x.pt", "x.pt"),
        ("freeze", "0,2", [0, 2]),
        ("model", "12", "12"),
    ],
)
def test_a_text_setting_keeps_what_looks_like_a_number(key: str, text: str, value: Any) -> None:
    assert TrainConfig.load(TrainConfig.parse({key: text})).flat()[key] == value


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"epochs": "ten"}, ("epochs", "'ten'", "int", "at least 1")),
        ({"epochs": 0}, ("epochs", "0", "at least 1")),
        ({"epochs": True}, ("epochs", "True", "int")),
        ({"epochs": 2.5}, ("epochs", "2.5", "int")),
        ({"lr0": float("nan")}, ("lr0", "nan", "above 0")),
        ({"lr0": float("inf")}, ("lr0", "inf", "float")),
        ({"momentum": 1.0}, ("momentum", "1.0", "below 1")),
        ({"optimizer": "sdg"}, ("optimizer", "'sdg'", "'AdamW'", "Did you mean 'SGD'?")),
        ({"amp": "bf61"}, ("amp", "'bf61'", "'fp16'", "Did you mean 'bf16'?")),
        ({"cache": "rom"}, ("cache", "'rom'", "'disk'", "Did you mean 'ram'?")),
        ({"imgsz": 100}, ("imgsz", "100", "multiples of 32", "96")),
        ({"imgsz": (320, 600)}, ("imgsz", "600", "multiples of 32", "608")),
        ({"imgsz": (608, 320)}, ("imgsz", "(608, 320)", "smaller size comes first")),
        ({"imgsz": (320, 608), "multi_scale": True}, ("imgsz", "multi_scale")),
        ({"imgsz": "big"}, ("imgsz", "'big'", "int")),
        ({"imgsz": ()}, ("imgsz", "()", "int")),
        ({"imgsz": (32, 64, 96)}, ("imgsz", "(32, 64, 96)", "(int, int)")),
        ({"classes": ["cat"]}, ("classes", "'cat'", "int")),
        ({"classes": "cat"}, ("classes", "'cat'", "int")),
        ({"name": True}, ("name", "True", "text")),
        ({"model": None}, ("model", "None", "text")),
        ({"device": 1.5}, ("device", "1.5", "text")),
        ({"resume": 3}, ("resume", "3", "bool | text")),
        ({"freeze": "all"}, ("freeze", "'all'", "int")),
        ({"seed": 2**32}, ("seed", "4294967296", "at most")),
        ({"rect": True}, ("rect", "mosaic")),
        ({"mosaik": 1}, ("train", "'mosaik'", "Did you mean 'mosaic'?")),
        ({"batchsize": 4}, ("train", "'batchsize'", "Did you mean 'batch'?")),
        ({"data": 3}, ("data", "3", "text")),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_with_key_value_and_what_is_allowed(
    values: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(values)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (ValConfig, "lr0"),
        (ValConfig, "freeze"),
        (ValConfig, "cache"),
        (PredictConfig, "compile"),
        (PredictConfig, "mosaic"),
    ],
)
def test_a_verb_refuses_keys_that_it_would_not_heed(config: type[VerbConfig], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        config.load({key: 1})


def test_required_settings_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="data check needs 'data'"):
        DataCheckConfig.load({})
    with pytest.raises(ConfigError, match="data convert needs 'to'"):
        DataConvertConfig.load({"data": "demo", "out": "x"})


def test_evaluation_pads_tightly_unless_told_otherwise() -> None:
    assert ValConfig.load({"data": "demo"}).data.rect is True
    assert ValConfig().data.rect is True
    assert ValConfig.load({"rect": False}).data.rect is False
    assert TrainConfig.load({}).data.rect is False


def test_loose_spellings_are_understood() -> None:
    config = TrainConfig.load(
        {
            "optimizer": "sgd",
            "cache": True,
            "classes": 3,
            "device": [0, 1],
            "data": Path("a.yaml"),
            "imgsz": [640],
            "name": 7,
        }
    )
    assert config.optim.optimizer == "SGD"
    assert config.loader.cache == "ram"
    assert config.data.classes == [3]
    assert config.device.device == "0,1"
    assert config.data.data == "a.yaml"
    assert config.data.imgsz == 640
    assert config.folder.name == "7"


def test_a_file_gives_way_to_what_is_typed(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 7\nlr0: 1e-3\nimgsz: [320, 608]\n", encoding="utf-8")
    config = TrainConfig.load({"epochs": 9}, file=file)
    assert (config.optim.epochs, config.optim.lr0, config.data.imgsz) == (9, 0.001, (320, 608))


def test_json_and_an_empty_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"epochs": 3, "data": null}', encoding="utf-8")
    (tmp_path / "b.yaml").write_text("# nothing\n", encoding="utf-8")
    assert TrainConfig.load({}, file=tmp_path / "a.json").optim.epochs == 3
    assert TrainConfig.load({}, file=tmp_path / "b.yaml") == TrainConfig()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"epochs: [3\n", "not valid YAML"),
        (b"epochs: 3\n  lr0: 1\n", "not valid YAML"),
        (b"- epochs\n", "key: value"),
        (b"just words\n", "key: value"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"epoch: 3\n", "Did you mean 'epochs'?"),
        (b"epochs: many\n", "'many'"),
        (b"lr0: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=part) as caught:
        TrainConfig.load({}, file=file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read settings from") as caught:
            TrainConfig.load({}, file=path)
        assert str(path) in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().optim.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_is_documented_and_lives_in_one_section(config: type[VerbConfig]) -> None:
    keys = [key for part in config.sections().values() for key in part.model_fields]
    assert len(keys) == len(set(keys)), "a flat key must mean one thing"
    rows = config.help()
    assert [row.key for row in rows] == keys
    for row in rows:
        assert row.meaning, row.key
        assert row.type, row.key
        assert row.section in config.sections()


@pytest.mark.parametrize("config", [TrainConfig, ValConfig, PredictConfig])
def test_the_defaults_that_help_shows_are_the_ones_in_force(config: type[VerbConfig]) -> None:
    values = config.load({}).flat()
    for row in config.help():
        shown = yaml.safe_load(row.default) if row.default != "None" else None
        assert shown == values[row.key], row.key


def test_a_memory_budget_is_text_that_means_bytes() -> None:
    assert TrainConfig.load({"memory": "8GB"}).memory.memory == "8GB"
    assert TrainConfig.load({"memory": 10**9}).memory.memory == "1000000000"
    assert TrainConfig.load({"memory": None}).memory.memory is None
    assert TrainConfig.parse({"memory": "2000000000", "technique": "none", "gradient_checkpointing": "auto"}) == {
        "memory": "2000000000", "technique": "none", "gradient_checkpointing": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, "auto"),
        ({"gradient_checkpointing": True}, "recompute"),
        ({"gradient_checkpointing": False}, "none"),
        ({"technique": "nested"}, "nested"),
        ({"technique": "auto", "gradient_checkpointing": True}, "recompute"),
    ],
    ids=str,
)
def test_two_settings_choose_one_technique(asked: dict[str, object], wanted: str) -> None:
    assert TrainConfig.load(asked).memory.wanted_technique == wanted
    assert PlanConfig.load(asked).memory.wanted_technique == wanted


@pytest.mark.parametrize("wrong", [{"memory": "8 gigs"}, {"memory": "0GB"}, {"memory": True}, {"memory": [8]},
                                   {"micro_batch": 0}, {"on_oom": "retry"}, {"gradient_checkpointing": "sometimes"},
                                   {"technique": "block", "gradient_checkpointing": False}], ids=str)  # fmt: skip
def test_wrong_memory_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(wrong)
    assert all(key in str(caught.value) for key in wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "precision"), [({}, "fp16"), ({"device": "cpu"}, "float32"), ({"precision": "bf16"}, "bf16")], ids=str
)
def test_a_plan_takes_the_precision_that_training_would(asked: dict[str, object], precision: str) -> None:
    assert PlanConfig.load(asked).plan.resolved_precision == precision
