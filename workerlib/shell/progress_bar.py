"""The door to rich in this library: a bar that shows how far a map is."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from workerlib.core.mapping import Progress


class ProgressBar:
    """A bar on the terminal's stderr, to be given to a map as `on_progress`; a context manager around the map.

    It has an end when the number of items is known: from `total`, or from items that have a length. Where stderr is no
    terminal it shows nothing but its last state.
    """

    def __init__(self, label: str, *, total: int | None = None, console: Console | None = None) -> None:
        self._label = label
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[workers]}"),
            console=console or Console(stderr=True),
        )
        self._task = self._bars.add_task(label, total=total, rate="", workers="")
        self._total = total

    def __call__(self, progress: Progress) -> None:
        """Shows this state."""
        workers = f"{progress.workers} workers" + (f", {progress.lost} lost" if progress.lost else "")
        elapsed = self._bars.tasks[0].elapsed
        rate = f"{progress.done / elapsed:,.0f}/s" if elapsed else ""
        total = progress.total if self._total is None else self._total
        self._bars.update(self._task, completed=progress.done, total=total, rate=rate, workers=workers)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
