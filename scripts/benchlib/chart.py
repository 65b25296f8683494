"""The ratios as a picture: one line for each kind of work, one dot for each other system."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

from benchlib.report import Results, ratio

ROW = 18
TOP = 56
LEFT = 120
WIDTH = 560
DECADES = 2
"""To either side of equally fast."""
COLOURS = ("#d1495b", "#edae49", "#00798c", "#6a4c93", "#66a182", "#2e4057")


def svg(results: Results) -> str:
    """Return how many times as fast the first system is as each of the others, as SVG."""
    first, *others = [system.label for system in results.systems]
    names = [
        workload.name
        for workload in results.workloads
        if any(results.ratio(workload.name, first, other) for other in others)
    ]
    height = TOP + ROW * (len(names) + 1) + 8
    look = {"font-family": "sans-serif", "font-size": "11"}
    size = {"width": str(LEFT + WIDTH + 20), "height": str(height)}
    picture = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **look, **size})
    _add(picture, "rect", width="100%", height="100%", fill="white")
    _text(picture, LEFT, 16, f"{first} is so many times as fast as")
    for index, other in enumerate(others):
        _dot(picture, LEFT + 10 + 95 * index, 30, index, other)
        _text(picture, LEFT + 19 + 95 * index, 34, other)
    _scale(picture, height)
    for index, name in enumerate(names):
        y = TOP + ROW * (index + 1)
        _text(picture, LEFT - 8, y + 4, name, anchor="end")
        _line(picture, LEFT, y, LEFT + WIDTH, y, "#eeeeee")
        for number, other in enumerate(others):
            value = results.ratio(name, first, other)
            if value:
                _dot(picture, _x(value), y, number, f"{name}: {ratio(value)} {other}")
    ET.indent(picture)
    return ET.tostring(picture, encoding="unicode") + "\n"


def _scale(picture: ET.Element, height: int) -> None:
    for exponent in range(-DECADES, DECADES + 1):
        for step in (1, 2, 5):
            value = step * 10.0**exponent
            if value <= 10**DECADES:
                shade = "#888888" if value == 1 else "#dddddd"
                _line(picture, _x(value), TOP, _x(value), height - 8, shade)
                _text(picture, _x(value), TOP - 4, f"{value:g}", anchor="middle")


def _x(value: float) -> float:
    """Return where a ratio lies; what is off the scale lies at its end."""
    decades = min(max(math.log10(value), -DECADES), DECADES)
    return round(LEFT + WIDTH * (decades + DECADES) / (2 * DECADES), 1)


def _dot(picture: ET.Element, x: float, y: float, index: int, title: str) -> None:
    dot = _add(picture, "circle", cx=x, cy=y, r=4, fill=COLOURS[index % len(COLOURS)])
    ET.SubElement(dot, "title").text = title


def _line(picture: ET.Element, x1: float, y1: float, x2: float, y2: float, stroke: str) -> None:
    _add(picture, "line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke)


def _text(picture: ET.Element, x: float, y: float, text: str, anchor: str = "start") -> None:
    element = _add(picture, "text", x=x, y=y)
    element.set("text-anchor", anchor)
    element.text = text


def _add(picture: ET.Element, tag: str, **attributes: object) -> ET.Element:
    return ET.SubElement(picture, tag, {key: str(value) for key, value in attributes.items()})
