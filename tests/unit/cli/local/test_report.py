import io
import os
from pathlib import Path

from rich.console import Console

from cli.local.report import JobProgress, PatientConsole, Reporter


def plain() -> tuple[Reporter, io.StringIO]:
    output = io.StringIO()
    return Reporter(Console(file=output, width=100, highlight=False, markup=False)), output


def progress_line(fraction: float) -> str:
    return f'{{"event": "progress", "fraction": {fraction}, "detail": "step {int(fraction * 100)}"}}\n'


def test_without_a_terminal_every_quarter_is_a_line(tmp_path: Path) -> None:
    # Given
    reporter, output = plain()
    log = tmp_path / "job.log"
    progress = JobProgress("job", log, reporter)
    progress.follow()

    # When
    with log.open("a") as file:
        for fraction in (0.1, 0.3, 0.4, 0.6, 0.9):
            file.write("a line of a library\n" + progress_line(fraction))
            file.flush()
            progress.follow()

    # Then
    assert [line.split() for line in output.getvalue().splitlines()] == [
        ["..", "job", "30%", "step", "30"],
        ["..", "job", "60%", "step", "60"],
        ["..", "job", "90%", "step", "90"],
    ]


def test_half_a_line_waits_for_its_other_half_and_older_runs_are_not_read(tmp_path: Path) -> None:
    # Given
    reporter, output = plain()
    log = tmp_path / "job.log"
    log.write_text(progress_line(0.9))
    progress = JobProgress("job", log, reporter)

    # When
    line = progress_line(0.5)
    for part in (line[:10], line[10:]):
        with log.open("a") as file:
            file.write(part)
        progress.follow()

    # Then
    assert output.getvalue().split() == ["..", "job", "50%", "step", "50"]


def test_a_reader_that_goes_away_silences_the_reporter_and_nothing_else() -> None:
    # Given
    reading, writing = os.pipe()
    os.close(reading)
    with io.TextIOWrapper(os.fdopen(writing, "wb", buffering=0), write_through=True) as pipe:
        reporter = Reporter(PatientConsole(file=pipe))

        # Then
        reporter.say("nobody hears this")
        reporter.say("nor this")
        assert reporter.console.quiet


def test_with_a_terminal_lines_stand_above_the_bar() -> None:
    # Given
    output = io.StringIO()
    reporter = Reporter(Console(file=output, width=100, force_terminal=True, highlight=False, markup=False))

    # When
    reporter.advance("job", 0.5, "step 1")
    reporter.say("a part is up")
    reporter.close()

    # Then
    assert "50%" in output.getvalue()
    assert "a part is up\n" in output.getvalue()
