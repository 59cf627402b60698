"""Bytes, counts and durations: parse and format. Bytes are always ``int``, never ``float``."""

from __future__ import annotations

import re
from fractions import Fraction

from ullage.errors import ConfigError

_BYTE_UNITS = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "kib": 1024,
    "m": 1000**2, "mb": 1000**2, "mib": 1024**2,
    "g": 1000**3, "gb": 1000**3, "gib": 1024**3,
    "t": 1000**4, "tb": 1000**4, "tib": 1024**4,
}  # fmt: skip
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Read an amount of memory.

    Args:
        text: ``"8GB"`` (10^9), ``"8GiB"`` (2^30), ``"512 MB"`` or a number of bytes.

    Returns:
        The number of bytes, exactly.

    Raises:
        ConfigError: The text is not an amount of memory, or not above zero.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        match = _BYTES.fullmatch(str(text))
        unit = match and _BYTE_UNITS.get(match.group(2).lower())
        if not match or not unit:
            raise ConfigError(
                f"{text!r} is not an amount of memory; write it like '8GB', '512MiB' or a number of bytes"
            )
        size = int(Fraction(match.group(1)) * unit)
    if size <= 0:
        raise ConfigError(f"an amount of memory must be above zero, got {text!r}")
    return size


def format_bytes(size: int) -> str:
    """Format bytes for people, in decimal units with three digits: ``"8.05 GB"``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:#.3g} {unit}".replace(". ", " ")
        value /= 1000
    return f"{value:.3g} TB"


def format_count(number: float) -> str:
    """Format a count for people: ``"2.55 M"``."""
    value = float(number)
    for unit in ("", " k", " M", " G"):
        if abs(value) < 999.5:
            return f"{value:g}{unit}" if unit == "" else f"{value:#.3g}{unit}".replace(". ", " ")
        value /= 1000
    return f"{value:.3g} T"


def format_duration(seconds: float) -> str:
    """Format a duration for people: ``"0.35 s"``, ``"4:05"``, ``"2:04:05"``."""
    if seconds < 59.95:  # what would read "60 s" is a minute
        return f"{seconds:.3g} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
