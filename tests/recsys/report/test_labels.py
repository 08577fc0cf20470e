"""Labels overlap neither marks nor each other, and stay inside the frame."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from recsys.report.labels import Box, Labels

FRAME = Box(left=0, top=0, right=300, bottom=200)
PLACES = st.lists(st.tuples(st.floats(10, 290), st.floats(10, 190)), min_size=1, max_size=12)


@given(PLACES)
def test_labels_cover_nothing(places: list[tuple[float, float]]) -> None:
    marks = [Box.around(x, y, 5) for x, y in places]
    labels = Labels(FRAME, marks)
    found = [box for mark in marks if (box := labels.beside("a label", mark)) is not None]
    assert not any(one.meets(other) for one, other in combinations(found, 2))
    assert not any(box.meets(mark) for box in found for mark in marks)
    assert all(box.within(FRAME) for box in found)


def test_label_stands_above_its_mark_where_it_can() -> None:
    mark = Box.around(150, 100, 5)
    found = Labels(FRAME, [mark]).beside("x", mark)
    assert found is not None
    assert found.bottom < mark.top
    assert abs((found.left + found.right) / 2 - 150) < 1e-9


def test_label_of_a_line_moves_past_marks_and_is_always_written() -> None:
    mark = Box.around(20, 94, 12)
    found = Labels(FRAME, [mark]).along("level", 100, 6, 300)
    assert not found.meets(mark)
    everything = Labels(FRAME, [Box(left=0, top=0, right=300, bottom=200)]).along("level", 100, 6, 300)
    assert everything.left == 6
