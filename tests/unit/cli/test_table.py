import pytest

from cli.table import print_table


def test_no_value_is_cut_or_read_as_markup_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given
    monkeypatch.setenv("COLUMNS", "20")
    row = ("batch_2e329f7f61a614f26908a918", "[bold]name[/bold]", "1,234")
    # When
    print_table(("id", "name", "rows"), [row, ("b", "n", "5")], numbers=("rows",))
    # Then
    head, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == list(row)
    assert head.rstrip().endswith("rows")
    assert second.rstrip() == f"{'b':<32}{'n':<19}{'5':>5}"
