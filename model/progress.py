"""The progress bar of every long task."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else "")


def progress_bar(console: Console, *, unit: str | None = None) -> Progress:
    """Return a bar with its description, count and time left; with `unit`, also its rate in `unit`s a second.

    Shown on a terminal only: a log file gets lines from the task itself, where it has any to say.
    """
    rate = (_Rate(unit),) if unit else ()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *rate,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
