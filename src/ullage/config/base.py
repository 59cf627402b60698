"""How settings are loaded, overridden, checked and dumped."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo

from ullage.errors import ConfigError, nearest

_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII | re.IGNORECASE)


class Section(BaseModel):
    """A frozen group of settings that one room reads.

    Validators are built on first use: ``--help`` needs the fields only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_number(cls, value: Any, info: Any) -> Any:
        """Refuse ``True`` where a number is meant; pydantic alone would read it as 1."""
        if isinstance(value, bool) and bool not in _leaf_types(cls.model_fields[info.field_name].annotation):
            raise ValueError("a yes or no does not fit here")
        return value


@dataclass(frozen=True)
class KeyHelp:
    """What ``--help`` says of one key."""

    key: str
    section: str
    type: str
    default: str
    meaning: str


class VerbConfig(BaseModel):
    """The sections that one verb reads; every key lives in exactly one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    verb: ClassVar[str] = ""

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """Return the sections by name."""
        return {
            name: field.annotation
            for name, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        }

    @classmethod
    def fields(cls) -> dict[str, tuple[str, FieldInfo]]:
        """Return every flat key with its section's name and its field."""
        return {key: (name, field) for name, part in cls.sections().items() for key, field in part.model_fields.items()}

    @classmethod
    def load(cls, values: Mapping[str, Any], *, file: str | Path | None = None) -> Self:
        """Build the configuration from flat keys, on top of a file of the same keys.

        Args:
            values: Flat keys; what is absent keeps the file's value or the default.
            file: YAML or JSON file with flat keys.

        Raises:
            ConfigError: A key is unknown, a value is of the wrong type or out of range, settings contradict each other.
        """
        flat = {**(read_settings(file) if file else {}), **values}
        known = cls.fields()
        parts: dict[str, dict[str, Any]] = {name: {} for name in cls.sections()}
        for key, value in flat.items():
            if key not in known:
                raise ConfigError(f"{cls.verb} knows no setting '{key}'.{nearest(key, known)}")
            parts[known[key][0]][key] = value
        try:
            return cls.model_validate(parts)
        except ValidationError as error:
            raise ConfigError(_one_line(error, cls)) from None

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> dict[str, Any]:
        """Read flat keys as typed on a command line; where a text is meant, what looks like a number stays one.

        Raises:
            ConfigError: A key is unknown.
        """
        known = cls.fields()
        for key in texts:
            if key not in known:
                raise ConfigError(f"{cls.verb} knows no setting '{key}'.{nearest(key, known)}")
        return {key: parse_typed(text, known[key][1].annotation) for key, text in texts.items()}

    def override(self, **values: Any) -> Self:
        """Return a copy with some flat keys changed, validated again."""
        return type(self).load({**self.flat(), **values})

    def flat(self) -> dict[str, Any]:
        """Return all settings under their flat keys, as plain data that YAML and JSON can hold."""
        return {key: value for part in self.model_dump(mode="json").values() for key, value in part.items()}

    def dump(self) -> str:
        """Return the settings as YAML that ``load(file=...)`` reads back to an equal configuration."""
        return yaml.safe_dump(self.flat(), sort_keys=False, allow_unicode=True)

    @classmethod
    def help(cls) -> list[KeyHelp]:
        """Return one line of help for every key, in order."""
        return [
            KeyHelp(
                key=key,
                section=section,
                type=type_name(field.annotation),
                default="required" if field.is_required() else _plain(field.default),
                meaning=field.description or "",
            )
            for key, (section, field) in cls.fields().items()
        ]


def read_settings(file: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file of flat settings.

    Raises:
        ConfigError: The file is missing, unreadable, not YAML, or not a mapping.
    """
    path = Path(file)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings from '{path}': {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' must hold 'key: value' lines, found a {type(content).__name__}")
    settings = cast(dict[Any, Any], content)
    return {str(key): value for key, value in settings.items()}


def parse_typed(text: str, annotation: Any) -> Any:
    """Read one value typed on a command line for a setting of a known type: ``name=007`` stays ``"007"``."""
    leaves = _leaf_types(annotation)
    if str not in leaves or typing.get_origin(annotation) is typing.Literal:
        return parse_value(text)
    value = parse_value(text)
    return value if type(value) in leaves else text


def parse_value(text: str) -> Any:
    """Read one value typed on a command line: ``1e-3``, ``True``, ``None``, ``320,608``, ``[0, 1]``, or a string."""
    if text in ("None", "none", "null", ""):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if (number := _number(text)) is not None:
        return number
    bare = text[1:-1] if (text[0], text[-1]) in (("[", "]"), ("(", ")")) else text
    parts = [_number(part.strip()) for part in bare.rstrip(",").split(",")]
    return parts if None not in parts and (bare != text or "," in text) else text


def _number(text: str) -> int | float | None:
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else None


def type_name(annotation: Any) -> str:
    """Name a type as users read it: ``int | (int, int)``, ``'ram' | 'disk'``."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(_plain(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(type_name(arg) for arg in args))
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin is tuple:
        return f"({', '.join(type_name(arg) if arg is not Ellipsis else '...' for arg in args)})"
    if origin is list:
        return f"[{type_name(args[0])}, ...]"
    name = str(annotation.__name__)
    return {"NoneType": "None", "str": "text", "Path": "path"}.get(name, name)


def _leaf_types(annotation: Any) -> set[Any]:
    args: Iterable[Any] = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return {type(arg) for arg in args}
    leaves = {leaf for arg in args for leaf in _leaf_types(arg)}
    return leaves or {annotation}


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _one_line(error: ValidationError, config: type[VerbConfig]) -> str:
    """Turn pydantic's report into one line: the key, the value, what is allowed."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = location[1] if len(location) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    if not key or key not in config.fields():
        return message
    field = config.fields()[key][1]
    if first["type"] == "missing":
        return f"{config.verb} needs '{key}': {field.description}"
    limits = [
        f"{word} {getattr(rule, name)}"
        for rule in field.metadata
        for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        if getattr(rule, name, None) is not None
    ]
    allowed = type_name(field.annotation) + (f", {' and '.join(limits)}" if limits else "")
    value = first.get("input")
    near = nearest(value, _words(field.annotation)) if isinstance(value, str) else ""
    detail = f" ({message})" if first["type"] == "value_error" else ""
    return f"{key}={value!r} is not allowed{detail}; allowed: {allowed}.{near}"


def _words(annotation: Any) -> list[str]:
    """Return the texts that a type spells out."""
    args: Sequence[Any] = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return [arg for arg in args if isinstance(arg, str)]
    return [word for arg in args for word in _words(arg)]
