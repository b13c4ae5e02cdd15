"""Turns a matplotlib figure into SVG for a page, with the page's colours and font, tooltips and safe ids."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from asrgate.harness.escape import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Placeholder colours for drawing; the page's style sheet gives each its light and its dark colour.
INK, MUTED, RULE, PAPER = "#fe0100", "#fe0101", "#fe0102", "#fe0103"
PALETTE = tuple(f"#fe02{number:02x}" for number in range(8))
OTHER = "#fe0300"
BAND = "#fe0301"
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper", BAND: "band", OTHER: "series-other"}
_VARIABLES |= {colour: f"series-{number}" for number, colour in enumerate(PALETTE)}

WIDTH_INCHES = 7.2
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"

STYLE: dict[Any, Any] = {  # matplotlib's rcParams
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font, readable by screen readers
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is literal
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.color": RULE,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Mark:
    """What the page knows about one drawn artist, by its gid: its variant and its tooltip."""

    variant: int | None
    text: str


def to_svg(figure: Figure, name: str, description: str, marks: Mapping[str, Mark]) -> str:
    """Return the figure as an `<svg>` element with role img.

    Args:
        name: unique in the page; prefixes every id.
        description: what a screen reader says instead of the picture.
        marks: gid -> its mark.
    """
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):  # makes the output reproducible
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for tag in ("metadata", "style"):  # a style element would apply to the whole page
            for unwanted in parent.findall(f"{{{_SVG}}}{tag}"):
                parent.remove(unwanted)
    _name_elements(root, name, marks)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", visible(description))
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub("#fe0[0-9a-f]{3}", lambda found: f"var(--{_VARIABLES[found.group()]})", text)


def _name_elements(root: ElementTree.Element, name: str, marks: Mapping[str, Mark]) -> None:
    """Prefix the ids that are referenced, turn those of marks into classes and tooltips, drop the others."""
    used = set()
    for element in root.iter():
        for value in element.attrib.values():
            used.update(re.findall(r"url\(#([^)]+)\)", value))
        used.update(re.findall(r"^#(.+)", element.get(_XLINK, "")))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")
        if own is not None and (mark := marks.get(own)) is not None:
            element.set("class", "mark" if mark.variant is None else f"mark v{mark.variant}")
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = visible(mark.text)
            element.insert(0, title)
        for attribute, value in list(element.attrib.items()):
            if attribute == _XLINK:
                element.set(attribute, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(attribute, re.sub(r"url\(#", f"url(#{name}-", value))
