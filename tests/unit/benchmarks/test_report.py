"""Figures for people and for programs, the command line of every benchmark, and percentiles."""

import io
import json

import pytest

from benchmarks.report import Options, Report, machine_name, parse_options, percentile


def printed(report_as_json: bool) -> list[str]:
    stream = io.StringIO()
    report = Report(stream, "a machine", as_json=report_as_json)
    report.title("How fast")
    report.add("rows_per_second", 12_345.678, "rows/s")
    report.table("memory", "MB", {"api": {"rss": 90.04, "uss": 70.5}, "beat": {"rss": 80.0, "uss": 60.0}})
    return stream.getvalue().splitlines()


def test_with_json_every_figure_is_one_object_with_its_machine() -> None:
    # When
    figures = [json.loads(line) for line in printed(True)]
    # Then
    assert figures[0] == {"name": "rows_per_second", "value": 12346, "unit": "rows/s", "machine": "a machine"}
    assert [(figure["name"], figure["value"]) for figure in figures[1:]] == [
        ("memory.api.rss", 90.04),
        ("memory.api.uss", 70.5),
        ("memory.beat.rss", 80.0),
        ("memory.beat.uss", 60.0),
    ]


def test_for_people_there_is_a_title_with_the_machine_and_a_line_for_each_row() -> None:
    # When
    lines = printed(False)
    # Then
    assert lines[:3] == ["", "How fast", "  on a machine"]
    assert lines[3].split() == ["rows_per_second", "12,346", "rows/s"]
    assert [line.split() for line in lines[4:]] == [
        ["memory", "(MB)", "rss", "uss"],
        ["api", "90", "70.5"],
        ["beat", "80", "60"],
    ]


def test_figures_keep_four_digits_whatever_their_size() -> None:
    # Given
    stream = io.StringIO()
    report = Report(stream, "a machine", as_json=True)
    # When
    for value in (0.000123456, 9.87654, 1234.56, 7_654_321.2, 0.0):
        report.add("x", value, "s")
    # Then
    values = [json.loads(line)["value"] for line in stream.getvalue().splitlines()]
    assert values == [0.0001235, 9.877, 1235.0, 7_654_321, 0.0]


def test_the_command_line_is_the_same_for_every_benchmark() -> None:
    assert parse_options("text", []) == Options(is_quick=False, as_json=False)
    assert parse_options("text", ["--quick", "--json", "--requests", "7", "--rounds", "2"]) == Options(True, True, 7, 2)


@pytest.mark.parametrize("option", ["--requests", "--rounds"])
def test_fewer_than_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    # When
    with pytest.raises(SystemExit) as ended:
        parse_options("text", [option, "0"])
    # Then
    assert ended.value.code == 2
    assert "expected at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [([7.0], 0.95, 7.0), ([3.0, 1.0, 2.0], 0.5, 2.0), ([0.0, 10.0], 0.25, 2.5), ([4.0, 1.0], 1.0, 4.0)],
)
def test_a_percentile_lies_between_the_two_nearest_values(
    values: list[float], fraction: float, expected: float
) -> None:
    assert percentile(values, fraction) == expected


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 0.5)


def test_a_machine_is_named_by_processor_cores_and_memory() -> None:
    assert " cores, " in machine_name()
    assert machine_name().endswith(" GB")
