"""Model text as safe HTML: tokens tinted by KL(edited || base), with both models' most likely tokens on hover.

Every token is escaped with `html.escape`, so that model output never becomes markup. Tokens that form one character are
one span, with the largest of their KLs.
"""

import html
from collections.abc import Sequence

from stethoscope.results import TextColumn, TokenChance

FULL_TINT_NATS = 2.0
STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.85rem"


def column_html(column: TextColumn) -> str:
    """Return the tokens of `column` as one escaped HTML block.

    KL determines the tint, which is full at 2 nats. Hovering over a token shows its KL and the most likely tokens of
    both models. The first different token is underlined and labelled for screen readers.
    """
    spans, together = [], list[int]()
    for index, token in enumerate(column.tokens):
        together.append(index)
        if token or index == len(column.tokens) - 1:
            spans.append(_span(column, together))
            together = []
    return f'<div style="{STYLE}">{"".join(spans)}</div>'


def _span(column: TextColumn, indices: Sequence[int]) -> str:
    token = "".join(column.tokens[index] for index in indices)
    strength = min(max(column.kl[index] for index in indices) / FULL_TINT_NATS, 1.0)
    style = f"background:rgba(224,117,26,{0.55 * strength:.2f});border-radius:3px;" if strength > 0.01 else ""
    mark = ""
    if column.first_difference in indices:
        style += "border-bottom:2px solid #e0751a"
        mark = ' aria-label="first difference"'
    title = html.escape("\n".join(_hover(column, index) for index in indices)).replace("\n", "&#10;")
    text = html.escape(token if token.strip("\n") else token.replace("\n", "↵\n"))
    styled = f' style="{style}"' if style else ""
    return f'<span{styled} title="{title}"{mark}>{text}</span>'


def _hover(column: TextColumn, index: int) -> str:
    top = column.top[index]
    return "\n".join(
        (
            f"KL {column.kl[index]:.3f} nats",
            f"edited: {_likeliest(top.edited)}",
            f"base: {_likeliest(top.base)}",
        )
    )


def _likeliest(chances: Sequence[TokenChance]) -> str:
    return "  ".join(f"“{_visible(chance.token)}” {100 * chance.probability:.1f}%" for chance in chances)


def _visible(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")


def plain_html(text: str) -> str:
    """Return streamed `text` as one escaped HTML block in the same font."""
    return f'<div style="{STYLE}">{html.escape(text)}</div>'
