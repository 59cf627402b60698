"""A bar for each thing that takes its time, on a terminal; nothing where the output goes elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text


class Bars:
    """Bars that appear when they hear of something; they vanish at the end, and what is printed stays.

    Args:
        console: Where to draw; None means the terminal behind stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeLeft())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, count: int) -> None:
        """Hear that ``done`` of ``count`` are done; when more has been done of it before, it began anew."""
        if what not in self._tasks or done < self._progress.tasks[self._tasks[what]].completed:
            self._tasks[what] = self._progress.add_task(what, total=count)
        self._progress.update(self._tasks[what], completed=done, total=count)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")
