"""The benchmark's figures as a picture: an SVG file that needs no script, no font and no other host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log10
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement

#: Pixels: of the picture, and of its margins to the left and right, at the top and the bottom.
WIDTH, HEIGHT, SIDE, TOP, BOTTOM = 800, 420, 60, 60, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # The colour-blind can distinguish these.


def bars(path: Path, title: str, names: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> None:
    """Draw a group of bars for each name, one of each series, over a logarithmic axis of multiples."""
    values = [value for found in series.values() for value in found if value]
    top, bottom = (log10(find(values)) + add for find, add in ((max, 0.1), (min, -0.3)))
    picture = _Picture(title, list(series), lambda value: (log10(value) - bottom) / (top - bottom))
    picture.rule([value for step in range(-3, 4) for value in (10.0**step, 3 * 10.0**step)])
    room = 1 / len(names)
    for place, name in enumerate(names):
        picture.label((place + 0.5) * room, name)
        for number, found in enumerate(series.values()):
            if value := found[place]:
                left = (place + 0.1 + 0.8 * number / len(series)) * room
                picture.bar(left, 0.8 * room / len(series), value, number)
    picture.save(path)


def curves(path: Path, title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw a curve of each series over a logarithmic axis; its marks are the x of the points."""
    xs = sorted({x for points in series.values() for x, _ in points})
    top = 1.1 * max(y for points in series.values() for _, y in points)
    picture = _Picture(title, list(series), lambda value: value / top)
    picture.rule([step * 10 ** int(log10(top)) / 2 for step in range(21)])
    span = log10(xs[-1] / xs[0]) or 1.0
    for x in xs:
        picture.label(0.05 + 0.9 * log10(x / xs[0]) / span, f"{x:,.0f}")
    for number, points in enumerate(series.values()):
        picture.curve([(0.05 + 0.9 * log10(x / xs[0]) / span, y) for x, y in points], number)
    picture.save(path)


class _Picture:
    """A title, a legend, and what is drawn; places across are shares of the width.

    :param height: returns the share of the height for a value.
    """

    def __init__(self, title: str, legend: Sequence[str], height: Callable[[float], float]) -> None:
        view = f"0 0 {WIDTH} {HEIGHT}"
        self._root = Element(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": view, "font-family": "sans-serif"}
        )
        self._height = height
        self._add("rect", width=WIDTH, height=HEIGHT, fill="#fff")
        self._text(WIDTH / 2, 24, title, size=16)
        for number, name in enumerate(legend):
            x = SIDE + number * (WIDTH - 2 * SIDE) / len(legend)
            self._add("rect", x=x, y=36, width=12, height=12, fill=COLOURS[number])
            self._text(x + 18, 46, name, anchor="start")

    def _add(self, tag: str, text: str = "", **attributes: object) -> None:
        values = {
            name.replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else str(value)
            for name, value in attributes.items()
        }
        SubElement(self._root, tag, values).text = text or None

    def _text(self, x: float, y: float, text: str, *, size: int = 12, anchor: str = "middle") -> None:
        self._add("text", text, x=x, y=y, font_size=size, text_anchor=anchor)

    def _x(self, share: float) -> float:
        return SIDE + share * (WIDTH - 2 * SIDE)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self._height(value) * (HEIGHT - TOP - BOTTOM)

    def rule(self, values: Sequence[float]) -> None:
        """Draw a line for each of the values that has a place."""
        for value in values:
            if 0 <= self._height(value) <= 1:
                self._add("line", x1=SIDE, x2=WIDTH - SIDE, y1=self._y(value), y2=self._y(value), stroke="#ccc")
                self._text(SIDE - 6, self._y(value) + 4, f"{value:g}", anchor="end")

    def label(self, share: float, text: str) -> None:
        """Write below the picture."""
        self._text(self._x(share), HEIGHT - BOTTOM + 18, text)

    def bar(self, left: float, width: float, value: float, number: int) -> None:
        """Draw a bar of a series, with its value."""
        x, y, across = self._x(left), self._y(value), width * (WIDTH - 2 * SIDE)
        self._add("rect", x=x, y=y, width=across, height=HEIGHT - BOTTOM - y, fill=COLOURS[number])
        self._text(x + across / 2, y - 4, f"{value:.2g}", size=10)

    def curve(self, points: Sequence[tuple[float, float]], number: int) -> None:
        """Draw the curve of a series, with its values."""
        places = [(self._x(share), self._y(value)) for share, value in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        self._add("polyline", points=line, fill="none", stroke=COLOURS[number], stroke_width=2)
        for (x, y), (_, value) in zip(places, points, strict=True):
            self._add("circle", cx=x, cy=y, r=3, fill=COLOURS[number])
            self._text(x, y - 8, f"{value:.3g}", size=10)

    def save(self, path: Path) -> None:
        """Write the file."""
        ElementTree(self._root).write(path, encoding="utf-8", xml_declaration=True)
