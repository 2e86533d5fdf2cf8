"""Convert a problem's text to HTML: formulas as MathML, everything else escaped.

latex2mathml converts LaTeX to MathML, but copies the content of \\text{...} unchanged and keeps links and styles. So
its output is parsed as XML and rewritten with allowed elements and attributes only. A formula that cannot be converted,
or whose output is not well-formed, is shown as source text.
"""

import html
import xml.etree.ElementTree as ET
from functools import lru_cache

from stethoscope.figures.maths import Piece, pieces

NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
ELEMENTS = {
    "math",
    "mrow",
    "mi",
    "mo",
    "mn",
    "ms",
    "mtext",
    "mspace",
    "mfrac",
    "msqrt",
    "mroot",
    "msub",
    "msup",
    "msubsup",
    "munder",
    "mover",
    "munderover",
    "mtable",
    "mtr",
    "mtd",
    "mstyle",
    "mpadded",
    "mphantom",
    "menclose",
    "mfenced",
}
ATTRIBUTES = {
    "display",
    "mathvariant",
    "stretchy",
    "fence",
    "form",
    "separator",
    "separators",
    "open",
    "close",
    "columnalign",
    "displaystyle",
    "scriptlevel",
    "rowspacing",
    "columnspacing",
    "columnlines",
    "rowlines",
    "lspace",
    "rspace",
    "width",
    "height",
    "depth",
    "linethickness",
    "accent",
    "accentunder",
    "minsize",
    "maxsize",
    "movablelimits",
    "symmetric",
    "largeop",
    "notation",
}


def text_html(text: str) -> str:
    """Return `text` as HTML: convertible formulas as MathML, everything else escaped, line breaks kept."""
    return "".join(_piece_html(piece) for piece in pieces(text))


def _piece_html(piece: Piece) -> str:
    if piece.formula is not None and (drawn := _mathml(piece.formula, display=piece.display)) is not None:
        return drawn
    return f"<code>{html.escape(piece.source)}</code>" if piece.code else html.escape(piece.source)


@lru_cache(maxsize=20_000)  # short formulas are frequent: numbers, single letters
def _mathml(formula: str, *, display: bool) -> str | None:
    """Return a formula as MathML with allowed elements and attributes; None if it cannot be converted."""
    from latex2mathml.converter import convert

    try:
        root = ET.fromstring(convert(formula, display="block" if display else "inline"))
    except Exception:  # noqa: BLE001 -- if a malformed formula breaks the converter, its source is shown
        return None
    for element in root.iter():
        if element.tag.removeprefix(NAMESPACE) not in ELEMENTS:
            return None
        element.attrib = {name: value for name, value in element.attrib.items() if name in ATTRIBUTES}
        element.tag = element.tag.removeprefix(NAMESPACE)
    return ET.tostring(root, encoding="unicode")
