"""Bytes, counts and durations survive the way to text and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ullage.errors import ConfigError, nearest
from ullage.units import format_bytes, format_count, format_duration, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8_000_000_000),
        ("8 gb", 8_000_000_000),
        ("8GiB", 8 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5k", 1500),
        (" 0.1 kB ", 100),
        ("123", 123),
        (123, 123),
        ("0.3GB", 300_000_000),  # as a float this would be 299999999
        ("2TiB", 2 * 2**40),
    ],
)
def test_amounts_are_read_exactly(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size
    assert isinstance(parse_bytes(text), int)


@pytest.mark.parametrize("text", ["8GX", "GB", "", "-1GB", "8 GB free", "1e9", "0", "0.0001kB", 0, -5, True, "nan"])
def test_what_is_no_amount_is_refused_with_its_name(text: str | int) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        parse_bytes(text)


@given(st.integers(1, 10**14))
def test_formatted_bytes_read_back_within_half_of_the_third_digit(size: int) -> None:
    back = parse_bytes(format_bytes(size))
    assert abs(back - size) <= 0.00501 * size


@given(st.integers(1, 10**14), st.integers(1, 10**14))
def test_formatting_bytes_keeps_the_order(first: int, second: int) -> None:
    small, large = sorted((first, second))
    assert parse_bytes(format_bytes(small)) <= parse_bytes(format_bytes(large))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (8_050_000_000, "8.05 GB"),
        (1_500_000_000_000, "1.5 TB"),
        (-2_500_000, "-2.50 MB"),
    ],
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (2_554_190, "2.55 M"), (1234, "1.23 k"), (59e9, "59.0 G"), (2e12, "2 T")]
)
def test_counts_for_people(number: float, text: str) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.35, "0.35 s"),
        (59.9, "59.9 s"),
        (59.96, "1:00"),
        (60, "1:00"),
        (245, "4:05"),
        (3599.6, "1:00:00"),
        (7445, "2:04:05"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(60, 10**7))
def test_durations_read_back_to_the_second(seconds: float) -> None:
    total = 0
    for part in format_duration(seconds).split(":"):
        total = total * 60 + int(part)
    assert abs(total - seconds) <= 0.5


def test_the_nearest_name_ignores_case_and_stays_silent_when_nothing_is_near() -> None:
    assert nearest("sdg", ["SGD", "AdamW"]) == " Did you mean 'SGD'?"
    assert nearest("banana", ["SGD", "AdamW"]) == ""
