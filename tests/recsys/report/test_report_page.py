"""A page is one whole HTML file that loads nothing, and everything given to it is text."""

import re
from html.parser import HTMLParser

import pytest

from recsys.report import Axis, Code, Page, Plot, Point, Section, Series, Table, Text, bytes_text

VOID = {"meta", "!doctype"}
UNRULY = '<script>alert("1")</script> & "quotes" \u00b5'


class Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong order; keeps all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed at once."""

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def full_page(text: str = UNRULY) -> str:
    point = Point(x=1.0, y=2.0, low=1.5, high=2.5, about=text, label=text[:10])
    plot = Plot(
        title=text, x=Axis(label=text), y=Axis(label=text), series=[Series(name=text, number=0, points=[point])],
        levels=[(2.0, text)], caption=text, legend=[text],
    )  # fmt: skip
    table = Table(columns=[text, "n"], rows=[[text, "1"]], caption=text, numeric=frozenset({"n"}))
    section = Section(heading=text, blocks=[Text(text), Code(text), table, plot])
    return Page(title=text, lead=text, sections=[section]).html()


def test_page_closes_every_tag() -> None:
    reader = Balanced()
    reader.feed(full_page())
    assert reader.open == []


def test_page_takes_everything_as_text() -> None:
    reader = Balanced()
    reader.feed(full_page())
    assert "<script" not in full_page()
    assert "".join(reader.text).count(UNRULY) >= 12


def test_page_loads_nothing() -> None:
    page = full_page("plain").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//|url\(|@import|\bsrc=|\bhref=", page.replace("</", ""))


def test_page_uses_only_colours_that_it_defines() -> None:
    page = full_page()
    assert set(re.findall(r"var\((--\w+)\)", page)) <= set(re.findall(r"(--\w+):", page))


def test_table_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match="row 1 of table 'sizes' has 1 cells, not 2"):
        Table(columns=["a", "b"], rows=[["1", "2"], ["3"]], caption="sizes")


def test_table_marks_rows_and_sets_numbers_right() -> None:
    html = Table(
        columns=["a", "n"], rows=[["x", "1"], ["y", "2"]], numeric=frozenset({"n"}), marked=frozenset({1})
    ).html()
    assert '<tr class="marked"><td>y</td><td class="number">2</td></tr>' in html
    assert '<tr><td>x</td><td class="number">1</td></tr>' in html


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (158_100, "158 kB"), (999_499, "999 kB"), (999_600, "1 MB"),
     (1_581_000, "1.58 MB"), (2_500_000_000, "2.5 GB")],
)  # fmt: skip
def test_bytes_are_written_in_three_digits(size: float, text: str) -> None:
    assert bytes_text(size) == text
