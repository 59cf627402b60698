"""What each verb does with its settings: call the api, show what came out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ullage.apps.cli.arguments import Call
from ullage.apps.cli.demo import DEMO_FIXED, DEMO_SETTINGS, run_demo
from ullage.apps.cli.help import actions_overview, verb_help
from ullage.apps.cli.watch import RunWatch
from ullage.config import ExportConfig, PredictConfig, TrainConfig, ValConfig, VerbConfig
from ullage.config.base import read_settings
from ullage.config.bench import BenchConfig
from ullage.config.runs import RunsFollowConfig, RunsListConfig, RunsResumeConfig, RunsStopConfig
from ullage.config.tools import DataCheckConfig, DataConvertConfig, DataViewConfig, PlanConfig
from ullage.errors import ConfigError, StorageError, nearest

Config = TypeVar("Config", bound=VerbConfig)

_CONFIGS: dict[str, type[VerbConfig]] = {
    "train": TrainConfig,
    "val": ValConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "bench": BenchConfig,
    "plan": PlanConfig,
    "demo": TrainConfig,
    "data check": DataCheckConfig,
    "data view": DataViewConfig,
    "data convert": DataConvertConfig,
    "runs list": RunsListConfig,
    "runs follow": RunsFollowConfig,
    "runs stop": RunsStopConfig,
    "runs resume": RunsResumeConfig,
}


def run_verb(call: Call, watch: RunWatch) -> None:
    """Do what was asked.

    Args:
        call: The verb and its settings.
        watch: Hears the events of a training run.

    Raises:
        UllageError: The call was wrong (ConfigError), or the work failed.
    """
    name = call.name()
    if name == "data":
        if call.wants != "help":
            raise ConfigError("data needs an action: 'ullage data check data=...', 'data view' or 'data convert'")
        print(actions_overview(name))
    elif name == "runs" and call.wants == "help":
        print(actions_overview(name))
    elif call.wants == "help":
        demo = name == "demo"
        print(
            verb_help(call, _CONFIGS[name], defaults=DEMO_SETTINGS if demo else {}, without=DEMO_FIXED if demo else ())
        )
    elif name == "train":
        _train(settings(call, TrainConfig), watch)
    elif name == "val":
        _val(settings(call, ValConfig))
    elif name == "predict":
        _predict(settings(call, PredictConfig))
    elif name == "export":
        _export(settings(call, ExportConfig))
    elif name == "bench":
        _bench(settings(call, BenchConfig))
    elif name == "plan":
        _plan(settings(call, PlanConfig))
    elif name == "demo":
        _refuse(call, DEMO_FIXED)
        run_demo(settings(call, TrainConfig, defaults=DEMO_SETTINGS), watch)
    elif call.verb == "runs":
        _runs(call)
    elif name == "data check":
        _check(settings(call, DataCheckConfig))
    elif name == "data view":
        _view(settings(call, DataViewConfig))
    else:
        _convert(settings(call, DataConvertConfig))


def settings(call: Call, config: type[Config], *, defaults: Mapping[str, Any] | None = None) -> Config:
    """Turn the typed words into a checked configuration; typed settings win over ``cfg``, and that over ``defaults``.

    Raises:
        ConfigError: A setting is unknown, of the wrong type or out of range.
    """
    known = config.fields()
    for word in call.bare:
        if word not in known:
            raise ConfigError(
                f"'{word}' is not a setting of {call.name()}; write key=value, "
                f"and see 'ullage {call.name()} --help'.{nearest(word, known)}"
            )
    typed: dict[str, Any] = {**config.parse(call.texts), **dict.fromkeys(call.bare, True)}
    return config.load({**(defaults or {}), **(read_settings(call.cfg) if call.cfg else {}), **typed})


def _refuse(call: Call, keys: tuple[str, ...]) -> None:
    for key in keys:
        if key in call.texts or key in call.bare:
            raise ConfigError(f"{call.verb} sets '{key}' itself; use 'ullage train' to choose it")


def _runs(call: Call) -> None:
    checked = settings(call, _CONFIGS[call.name() if call.action else "runs list"])
    from ullage.apps.cli import runs

    if isinstance(checked, RunsFollowConfig):
        runs.follow_run(checked)
    elif isinstance(checked, RunsStopConfig):
        runs.stop_run(checked)
    elif isinstance(checked, RunsResumeConfig):
        runs.resume_run(checked)
    elif isinstance(checked, RunsListConfig):
        runs.list_runs(checked)


def _train(config: TrainConfig, watch: RunWatch) -> None:
    if config.run.detach:
        from ullage.apps.cli.runs import start_run

        return start_run(config)
    from ullage.api.detached import detached_here
    from ullage.api.train import train

    with detached_here():
        result = train(config, listeners=[watch])
    if config.run.verbose and os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        print(f"results in {result.run_dir}")
    return None


def _val(config: ValConfig) -> None:
    from ullage import api

    metrics = api.val(config)
    if config.eval.verbose:
        print(metrics)
        stages = ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in metrics.speed.items())
        print(f"an image takes: {stages}")
    else:
        print(f"mAP50 {metrics.box.map50:.3f}  mAP50-95 {metrics.box.map:.3f}")


def _predict(config: PredictConfig) -> None:
    from ullage.api.predict import predict

    prediction, count = predict(config), 0
    try:
        for result in prediction:
            count += 1
            if config.predict.verbose:
                frame = f" frame {result.video_frame + 1}" if result.video_frame is not None else ""
                height, width = result.orig_shape
                spent_ms = sum(result.speed.values())
                print(f"{result.path}{frame}: {height}x{width}, {result}, {spent_ms:.1f} ms", flush=True)
    finally:  # Ctrl-C is how most streams end
        prediction.close()
        for stream in prediction.stats():
            print(stream)
    if prediction.save_dir is not None:
        print(f"{count} {'frames' if prediction.is_stream else 'images'} done, saved in {prediction.save_dir}")


def _export(config: ExportConfig) -> None:
    from ullage import api

    result = api.export(config)
    if config.export.verbose:
        print(result.report)
    print(f"the file is {result.path}, its report {result.page}")


def _bench(config: BenchConfig) -> None:
    from ullage.api.bench import BenchRow, bench

    def tell(row: BenchRow) -> None:
        found = row.problem or f"{row.latency_ms[0]:.1f} ms, {row.images_per_s:.1f} images/s"
        print(f"{row.format}: {found}", flush=True)

    result = bench(config, listener=tell if config.bench.verbose else None)
    print(f"{result}\nsaved in {result.save_dir}")


def _plan(config: PlanConfig) -> None:
    from ullage.api.plan import plan_of

    found = plan_of(config)
    print(found)
    if config.plan.save is not None:
        _write(config.plan.save, found.to_json(), key="save")
        print(f"the plan is in {config.plan.save}")


def _write(path: str, text: str, *, key: str) -> None:
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {key}='{path}': {error.strerror or error}") from None


def _check(config: DataCheckConfig) -> None:
    from ullage.apps.cli.bars import Bars
    from ullage.data.check import check

    with Bars() as bars:
        report = check(config.check.data, watch=bars)
    print(report)
    if config.check.report is not None:
        _write(config.check.report, report.to_json(), key="report")
        print(f"the whole report is in {config.check.report}")


def _view(config: DataViewConfig) -> None:
    from ullage.apps.cli.bars import Bars
    from ullage.data.view import contact_sheet
    from ullage.runtime.image_file import write_image

    chosen = config.view
    with Bars() as bars:
        sheet = contact_sheet(
            chosen.data, split=chosen.split, classes=chosen.classes, page=chosen.page, images=chosen.images,
            cell=chosen.cell, seed=chosen.seed, watch=bars,
        )  # fmt: skip
    print(f"{sheet}\nthe sheet is in {write_image(chosen.out, sheet.picture)}")


def _convert(config: DataConvertConfig) -> None:
    from ullage.data.convert import convert

    chosen = config.convert
    print(convert(chosen.data, to=chosen.to, out=chosen.out, images=chosen.images))
