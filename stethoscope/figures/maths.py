r"""A problem's text as markdown in which only its formulas are markup.

The text of a data set is untrusted: markdown could load images, show links or imitate the page. Therefore every
character outside formulas is escaped (a backslash before each ASCII punctuation mark). A formula is passed to KaTeX
only if it cannot leave its delimiters and uses no command that links, defines macros or moves content; otherwise its
source is shown. KaTeX runs in untrusted mode: no links, no images.

Formulas are $...$, \(...\), $$...$$, \[...\], and an environment such as align on its own; [asy] is shown as code.
"""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

ENVIRONMENTS = "align|alignat|aligned|array|cases|eqnarray|equation|gather|gathered|multline|split|[bpvV]?matrix"
_FORMULA = re.compile(
    r"(?P<asy>\[asy\].*?\[/asy\])"
    r"|\$\$(?P<dollars>.+?)\$\$"
    r"|(?<!\\)\\\[(?P<brackets>.+?)\\\]"
    r"|(?<!\\)\\\((?P<round>.+?)\\\)"
    rf"|(?P<environment>\\begin\{{(?P<name>(?:{ENVIRONMENTS})\*?)\}}.*?\\end\{{(?P=name)\}})"
    r"|(?<!\\)\$(?P<inline>(?:\\.|[^$\\])+?)\$",
    re.DOTALL,
)
_UNSAFE = re.compile(
    r"\\(?:href|url|includegraphics|html\w+|def|edef|gdef|xdef|let|global|long|newcommand|renewcommand|providecommand"
    r"|expandafter|futurelet|rule|raisebox|vspace|hskip|mskip|kern|mkern|smash|[lrc]lap|math[lrc]lap)(?![A-Za-z])"
    r"|\\hspace\*?\{[^}]{6,}\}"
)
MARKUP = "\\`*_[]$<>~#|!&"  # starts markup in Streamlit's markdown
LONGEST = 4000


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the source text; `formula` is LaTeX that may be rendered, `code` is the code of a drawing."""

    source: str
    formula: str | None = None
    display: bool = False
    code: bool = False


def pieces(text: str) -> Iterator[Piece]:
    """Yield the pieces of `text` in order; their sources concatenate to the text."""
    end = 0
    for found in _FORMULA.finditer(text):
        if found.start() > end:
            yield Piece(text[end : found.start()])
        inline = found["round"] is not None or found["inline"] is not None
        yield Piece(found.group(), _body(found), display=not inline, code=found["asy"] is not None)
        end = found.end()
    if end < len(text):
        yield Piece(text[end:])


def markdown(text: str) -> str:
    """Return `text` as markdown: formulas for KaTeX, everything else literal."""
    return "".join(_markdown(piece) for piece in pieces(text))


def escape(text: str, marks: str = MARKUP) -> str:
    """Return `text` escaped as markdown, so that it is shown literally; used for every string from a file.

    Line breaks and indents are kept; unprintable characters are removed. A backslash is inserted before all `marks`, by
    default the markup characters of Streamlit's markdown. Backslashes have no effect on icon and emoji names (:smile:)
    and bare URLs (http://, www., @), so a zero-width space is inserted there.
    """
    shown = "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "" for c in text)
    parted = re.sub(r"(?m)^(\s*)([-+=:]|\d+(?=[.)]))", _first_of_line, shown)
    parted = re.sub(r":(?=[\w+/-]+:|//)|(?i:www)(?=\.)|@(?=\w)", "\\g<0>\u200b", parted)
    escaped = re.sub(rf"[{re.escape(marks)}]|:(?=[A-Za-z])", r"\\\g<0>", parted)  # otherwise :red is a directive
    return re.sub(r"\n( *)", lambda found: "  \n" + "\N{NO-BREAK SPACE}" * len(found[1]), escaped)


def _first_of_line(found: re.Match[str]) -> str:
    """Escape the start of a line that would begin a list, a heading underline or a block."""
    return f"{found[1]}\u200b{found[2]}"


def _markdown(piece: Piece) -> str:
    if piece.code:
        fence = "`" * (3 + max((len(run) for run in re.findall("`+", piece.source)), default=0))
        return f"\n\n{fence}text\n{piece.source}\n{fence}\n\n"
    if piece.formula is None:
        return escape(piece.source, string.punctuation)
    return f"\n\n$$\n{piece.formula}\n$$\n\n" if piece.display else f"${piece.formula}$"


def _body(found: re.Match[str]) -> str | None:
    """Return the renderable formula on one line; None for code, or if its source is shown."""
    if found["asy"] is not None:
        return None
    body = next(found[name] for name in ("dollars", "brackets", "round", "environment", "inline") if found[name])
    body = re.sub(r"\\\$", lambda _: r"\text{\textdollar}", body)
    body = re.sub(r"(?<!\\)%.*", "", body)  # a comment would hide the rest of the joined line
    body = re.sub(r"\s+", " ", "".join(c for c in body if c.isprintable() or c.isspace())).strip()
    body += " " if body.endswith("\\") else ""
    unfit = not body or "$" in body or len(body) > LONGEST or _UNSAFE.search(body) or "`" in body
    return None if unfit else body
