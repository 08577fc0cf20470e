"""What a label may say; what the numbers become is in test_labels and test_logs."""

import pytest

from features.label_spec import LabelSpec


def test_label_reads_the_column_of_its_name() -> None:
    assert LabelSpec(name="click").column == "click"
    assert LabelSpec(name="click", column="clicked").column == "clicked"


def test_label_takes_one_rule() -> None:
    with pytest.raises(ValueError, match="label 'y' takes either positive or positive_from"):
        LabelSpec(name="y", positive=(1,), positive_from=2)


def test_no_value_is_positive_and_dropped() -> None:
    with pytest.raises(ValueError, match=r"label 'y': \[1.0\] stand in positive and in dropped"):
        LabelSpec(name="y", positive=(1, 2), dropped=(1, 3))
