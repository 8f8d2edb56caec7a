"""What a person sees of a start: lines, and a bar for the training of the built-in model where there is a terminal."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

PLAIN_STEP_FRACTION = 0.25  # without a terminal there is a line for every quarter


class PatientConsole(Console):
    """Falls silent when nobody reads any more; rich would end the process, and with it all that it supervises."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Reporter:
    """Prints lines above the bar, if there is one. Draws only when told to: a drawing thread of its own would be alive
    while processes are forked."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PatientConsole(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._told_fraction = 0.0

    def say(self, line: str) -> None:
        try:
            self.console.print(line)
        except OSError:  # the terminal was closed
            self.console.quiet = True

    def advance(self, name: str, fraction: float, detail: str) -> None:
        """fraction: [0, 1] of the job `name`."""
        if self.console.is_terminal:
            self._draw(name, fraction, detail)
        elif fraction >= self._told_fraction + PLAIN_STEP_FRACTION:
            self._told_fraction = fraction
            self.say(f"  ..  {name:<16}{fraction:4.0%}  {detail}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, name: str, fraction: float, detail: str) -> None:
        if self._bar is None:
            columns = (BarColumn(bar_width=20), TaskProgressColumn(), TimeElapsedColumn())
            text = TextColumn("{task.fields[detail]}", markup=False)
            self._bar = Progress(
                TextColumn("  ..  {task.description:<16}"), *columns, text, console=self.console,
                auto_refresh=False, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._bar.add_task(name, total=1.0, detail=detail)
        self._bar.update(self._bar.task_ids[0], completed=fraction, detail=detail, refresh=True)


class JobProgress:
    """Follows the JSON lines in the log of a job: `{"event": "progress", "fraction": 0.4, "detail": "…"}`."""

    def __init__(self, name: str, log: Path, reporter: Reporter) -> None:
        self._name = name
        self._log = log
        self._reporter = reporter
        self._offset = log.stat().st_size if log.exists() else 0

    def follow(self) -> None:
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(min(self._offset, self._log.stat().st_size))  # a large log is put aside at a start
            lines = file.read().split(b"\n")
            self._offset = file.tell() - len(lines[-1])  # the last one is not complete yet
        for line in lines[:-1]:
            self._take(line)

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"{"):
            return
        event = json.loads(line)
        if event.get("event") == "progress":
            self._reporter.advance(self._name, float(event["fraction"]), str(event.get("detail", "")))
        elif event.get("event") == "done":
            self._reporter.close()
