"""Errors of requests name field, value and what is accepted, and stay short."""

from serving.errors import InvalidArgumentError, shown


def test_invalid_argument_names_field_value_and_range() -> None:
    error = InvalidArgumentError.got("k", 0, "1 to 10000")
    assert str(error) == "k: got 0, accepted: 1 to 10000"
    assert (error.field, error.reason) == ("k", "got 0, accepted: 1 to 10000")


def test_unknown_name_gives_the_nearest() -> None:
    error = InvalidArgumentError.unknown_name("columns", "gendre", ["gender", "age"])
    assert str(error) == "columns: unknown name 'gendre', did you mean 'gender'? accepted: ['age', 'gender']"


def test_long_values_are_cut() -> None:
    assert len(shown("x" * 10_000)) == 80
