r"""A problem's text as markdown in which only its formulas are markup.

The text of a data set is not to be trusted: markdown could fetch images, draw links or imitate the page. So every
character outside formulas is made literal (a backslash before each ASCII punctuation mark), and a formula goes to
KaTeX only when it cannot leave its delimiters and uses no command that links, defines or moves out of its place;
else it is shown as it is written. KaTeX itself is used untrusted: no links, no images.

Formulas are $...$, \(...\), $$...$$, \[...\], and an environment such as align on its own; [asy] is shown as code.
"""

import re
import string

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
LONGEST = 4000


def markdown(text: str) -> str:
    """Return `text` as markdown: formulas for KaTeX, everything else literal."""
    parts, end = [], 0
    for found in _FORMULA.finditer(text):
        parts.append(literal(text[end : found.start()]))
        parts.append(_formula(found))
        end = found.end()
    return "".join((*parts, literal(text[end:])))


def literal(text: str) -> str:
    """Return `text` such that markdown shows it as it is: punctuation escaped, line breaks and indents kept."""
    shown = "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "" for c in text)
    escaped = "".join(f"\\{c}" if c in string.punctuation else c for c in shown)
    return re.sub(r"\n( *)", lambda found: "  \n" + "\N{NO-BREAK SPACE}" * len(found[1]), escaped)


def _formula(found: re.Match[str]) -> str:
    if (code := found["asy"]) is not None:
        fence = "`" * (3 + max((len(run) for run in re.findall("`+", code)), default=0))
        return f"\n\n{fence}text\n{code}\n{fence}\n\n"
    body = next(found[name] for name in ("dollars", "brackets", "round", "environment", "inline") if found[name])
    body = re.sub(r"\\\$", lambda _: r"\text{\textdollar}", body)
    body = re.sub(r"(?<!\\)%.*", "", body)  # a comment would swallow what stands behind it on the joined line
    body = re.sub(r"\s+", " ", "".join(c for c in body if c.isprintable() or c.isspace())).strip()
    body += " " if body.endswith("\\") else ""
    if not body or "$" in body or len(body) > LONGEST or _UNSAFE.search(body) or "`" in body:
        return literal(found.group())
    inline = found["round"] is not None or found["inline"] is not None
    return f"${body}$" if inline else f"\n\n$$\n{body}\n$$\n\n"
