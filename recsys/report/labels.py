"""Where the labels of a plot go: beside what they name, and on nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

LETTER, LINE = 6.6, 14.0  # the mean width of a letter and the height of a line, at 12 pixels
GAP = 4.0
DESCENT = 3.0


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of the drawing; y runs downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @staticmethod
    def around(x: float, y: float, radius: float) -> "Box":
        """What a mark covers."""
        return Box(left=x - radius, top=y - radius, right=x + radius, bottom=y + radius)

    @staticmethod
    def of_text(text: str, left: float, top: float) -> "Box":
        """What a line of text covers, about."""
        return Box(left=left, top=top, right=left + LETTER * len(text), bottom=top + LINE)

    @property
    def baseline(self) -> float:
        """Where the letters of a line stand."""
        return self.bottom - DESCENT

    def meets(self, other: "Box") -> bool:
        """Whether they overlap."""
        across = self.left <= other.right and other.left <= self.right
        return across and self.top <= other.bottom and other.top <= self.bottom

    def within(self, frame: "Box") -> bool:
        """Whether nothing of it is outside."""
        across = frame.left <= self.left and self.right <= frame.right
        return across and frame.top <= self.top and self.bottom <= frame.bottom


class Labels:
    """Hands out free places inside a frame, first come, first served."""

    def __init__(self, frame: Box, marks: Sequence[Box]) -> None:
        self.frame = frame
        self.marks = tuple(marks)
        self.taken: list[Box] = []

    def beside(self, text: str, mark: Box) -> Box | None:
        """A place above, right of, left of, below or at a corner of a mark; None where all are taken."""
        wide, middle, height = LETTER * len(text), (mark.left + mark.right) / 2, (mark.top + mark.bottom) / 2
        above, level, below = mark.top - GAP - LINE, height - LINE / 2, mark.bottom + GAP
        left, centre, right = mark.left - GAP - wide, middle - wide / 2, mark.right + GAP
        sides = ((centre, above), (right, level), (left, level), (centre, below))
        corners = (*sides, (right, above), (left, above), (right, below), (left, below))
        free = self._free([Box.of_text(text, *corner) for corner in corners], own=mark)
        return self._take(free[0]) if free else None

    def along(self, text: str, y: float, left: float, right: float) -> Box:
        """A place above or below a line across at y, as far left as there is one; the first where there is none."""
        steps = range(int(left), max(int(left) + 1, int(right - LETTER * len(text))), int(LINE))
        places = [Box.of_text(text, x, top) for x in steps for top in (y - GAP - LINE, y + GAP)]
        return self._take((self._free(places) or places)[0])

    def _free(self, places: Sequence[Box], own: Box | None = None) -> list[Box]:
        others = [*self.taken, *(mark for mark in self.marks if mark != own)]
        return [place for place in places if place.within(self.frame) and not any(map(place.meets, others))]

    def _take(self, place: Box) -> Box:
        self.taken.append(place)
        return place
