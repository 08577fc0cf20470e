import pytest
import torch
import typer

from recsys.cli.console import Meter, one_line, print_json, print_table, user_errors


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("two\n lines"), "error: two lines"),
        (FileNotFoundError(2, "No such file", "x.csv"), "x.csv"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_console_a_users_error_is_one_line(error: Exception, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, user_errors():
        raise error
    assert ended.value.exit_code == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert "\n" not in one_line(error)


def test_console_memory_that_is_not_there_is_a_users_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, user_errors():
        torch.empty(1 << 50)
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err.startswith("error: out of memory: ")


def test_console_our_own_defects_are_not_hidden() -> None:
    with pytest.raises(KeyError), user_errors():
        raise KeyError("a defect")


def test_console_json_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "a\nb", "value": 1})
    assert capsys.readouterr().out == '{"text": "a\\nb", "value": 1}\n'


def test_console_table_holds_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", [{"name": "a", "value": 0.12345}, {"name": "b", "value": 2}])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("title", "name", "0.1235", "2"))


def test_console_meter_is_silent_on_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    meter.update("stage", 1, 2, "note")
    meter.close()
    assert capsys.readouterr().err == ""
