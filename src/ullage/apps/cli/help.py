"""What ``--help`` prints of a verb. Neither torch nor numpy nor rich is imported for it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from ullage.apps.cli.arguments import ACTIONS_OF, VERBS, Call
from ullage.config import VerbConfig
from ullage.errors import ConfigError, nearest

_BEST = "model=runs/detect/train/weights/best.pt"
_EXAMPLES = {
    "train": (
        "ullage train model=yolov12n data=demo epochs=30 imgsz=320",
        "ullage train resume model=runs/detect/train/weights/last.pt",
        "ullage train model=yolov12n data=my_data.yaml name=night detach      then: ullage runs follow night",
    ),
    "val": (f"ullage val {_BEST} data=demo imgsz=320",),
    "predict": (f"ullage predict {_BEST} source=pictures/ save",),
    "export": (
        f"ullage export {_BEST} format=onnx dynamic",
        f"ullage export {_BEST} format=openvino int8 data=my_data.yaml",
    ),
    "bench": (
        f"ullage bench {_BEST} formats=pytorch,onnx,openvino data=my_data.yaml",
        "ullage bench model=yolo11n formats=onnx,openvino-half imgsz=320 batch=8 seconds=5",
    ),
    "plan": (
        "ullage plan model=yolov12l batch=256 imgsz=640 memory=8GB",
        "ullage plan model=yolo11s device=cpu memory=2GB data=my_data.yaml",
    ),
    "data check": ("ullage data check data=my_data.yaml",),
    "data view": (
        "ullage data view data=my_data.yaml",
        "ullage data view data=my_data.yaml split=val classes=car,person page=2 out=cars.jpg",
    ),
    "data convert": ("ullage data convert data=my_data.yaml to=coco out=my_data_coco",),
    "demo": ("ullage demo",),
    "runs list": ("ullage runs", "ullage runs project=my_project"),
    "runs follow": ("ullage runs follow night",),
    "runs stop": ("ullage runs stop night", "ullage runs stop night force"),
    "runs resume": ("ullage runs resume night",),
}


def actions_overview(verb: str) -> str:
    """Return the help of a verb that has actions: ``ullage data``, ``ullage runs``."""
    name = " NAME" if verb == "runs" else ""
    return "\n".join(
        [f"ullage {verb} ACTION{name} key=value ...      {VERBS[verb]}", ""]
        + [f"  {action:<9}{meaning}" for action, meaning in ACTIONS_OF[verb].items()]
        + ["", f"  ullage {verb} ACTION --help      lists every key"]
    )


def verb_help(
    call: Call, config: type[VerbConfig], *, defaults: Mapping[str, Any], without: tuple[str, ...] = ()
) -> str:
    """Return every key of a verb with section, type, default and meaning.

    Args:
        call: The call; settings given beside ``--help`` narrow the list to themselves.
        config: The verb's configuration.
        defaults: Defaults of this verb that differ from the configuration's.
        without: Keys that the verb sets itself.

    Raises:
        ConfigError: ``ullage VERB KEY --help`` names an unknown key.
    """
    rows = [row for row in config.help() if row.key not in without]
    asked = [*call.texts, *call.bare]
    for key in asked:
        if key not in [row.key for row in rows]:
            raise ConfigError(f"{call.name()} knows no setting '{key}'.{nearest(key, [row.key for row in rows])}")
    rows = [row for row in rows if not asked or row.key in asked]
    key_width = max(len(row.key) for row in rows)
    shown = {row.key: repr(defaults[row.key]) if row.key in defaults else row.default for row in rows}
    type_width = min(max(len(row.type) for row in rows), 26)
    default_width = max(len(text) for text in shown.values())
    verb, name = call.verb or "", " NAME" if "name" in [row.key for row in rows] and call.verb == "runs" else ""
    meaning = ACTIONS_OF.get(verb, {}).get(call.action or "", VERBS[verb])
    lines = [f"ullage {call.name()}{name} key=value ...      {meaning}"]
    lines += ["", *(f"  {example}" for example in _EXAMPLES[call.name()])]
    for section, members in groupby(rows, key=lambda row: row.section):
        lines += ["", section]
        for row in members:
            columns = f"  {row.key:<{key_width}}  {row.type:<{type_width}}  {shown[row.key]:<{default_width}}"
            lines.append(f"{columns}  {row.meaning}")
    return "\n".join([*lines, "", "  cfg=FILE reads the same keys from a YAML or JSON file; what is typed wins"])
