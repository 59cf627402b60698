"""Bars show what takes its time, on a terminal only."""

from __future__ import annotations

import io

from rich.console import Console

from ullage.apps.cli.bars import Bars


def shown(*, terminal: bool) -> str:
    stream = io.StringIO()
    with Bars(Console(file=stream, force_terminal=terminal, width=100)) as bars:
        for done in (0, 50, 100):
            bars("images", done, 100)
        bars("images", 20, 40)  # the next split
    return stream.getvalue()


def test_on_a_terminal():
    text = shown(terminal=True)
    assert "images" in text
    assert "100/100" in text
    assert "20/40" in text


def test_elsewhere_nothing_is_written():
    assert shown(terminal=False).strip() == ""
