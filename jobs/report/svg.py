"""A matplotlib figure as inline SVG: text stays text, colours follow the page's light or dark scheme.

The result has no ids, scripts, style sheets, dates or addresses, so any number of charts fit on one page.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from jobs.report.figures import COLOURS, TIP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE_POINTS = 860  # wider charts scroll instead of shrinking
_DROPPED = {"metadata", "defs", "style", "clipPath"}
_KEPT_STYLES = re.compile(r"fill|stroke|opacity|text-anchor|font-size|font-weight")
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HREF = "{http://www.w3.org/1999/xlink}href"


def as_svg(figure: Figure, title: str) -> Markup:
    """The figure as an ``<svg>`` element named ``title``. Everything that was drawn as text is escaped."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "potstill"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser draws the text, with its own fonts
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(_legal(buffer.getvalue().decode()))  # noqa: S314 (matplotlib wrote it)
    shapes = {one.get("id"): one.get("d", "") for one in root.iter() if one.tag.endswith("path") and one.get("id")}
    _simplify(root, shapes)
    width, height = (float(root.attrib.pop(name).removesuffix("pt")) for name in ("width", "height"))
    attributes = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width * 4 / 3:.0f}", "role": "img"}
    root.attrib = attributes | ({"class": "wide"} if width > _WIDE_POINTS else {})
    root.insert(0, _title(title))
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 (serialised: text is escaped)


def _simplify(element: ElementTree.Element, shapes: dict[str | None, str]) -> None:
    """Drop what a page does not need, in place: definitions, ids, clipping, fonts. Markers are drawn where they are used."""
    element.tag = element.tag.rpartition("}")[2]
    if element.tag == "use":
        element.tag = "path"
        element.set("d", shapes[element.attrib.pop(_HREF)[1:]])
        element.set("transform", f"translate({element.attrib.pop('x')} {element.attrib.pop('y')})")
    for child in list(element):
        if child.tag.rpartition("}")[2] in _DROPPED:
            element.remove(child)
        else:
            _simplify(child, shapes)
            if child.tag == "g" and not len(child):
                element.remove(child)
    element.attrib.pop("clip-path", None)
    name = element.attrib.pop("id", "")
    if name.startswith(TIP):
        element.insert(0, _title(name.removeprefix(TIP)))
    if "d" in element.attrib:
        element.set(
            "d", " ".join(re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.2f}", element.attrib["d"]).split())
        )
    if "style" in element.attrib:
        element.set("style", _style(element.attrib["style"]))
    if element.tag != "text":
        element.text = None
    element.tail = None


def _style(style: str) -> str:
    """The declarations that matter, with the page's variables for the palette's colours."""
    kept = [one.strip() for one in style.split(";") if _KEPT_STYLES.match(one.strip())]
    for variable, colour in COLOURS.items():
        kept = [one.replace(colour, f"var({variable})") for one in kept]
    return "; ".join(kept)


def _legal(text: str) -> str:
    """``text`` with characters that XML forbids (a class name may hold them) replaced by U+FFFD."""
    return _ILLEGAL.sub("\ufffd", text)


def _title(text: str) -> ElementTree.Element:
    title = ElementTree.Element("title")
    title.text = _legal(text)
    return title
