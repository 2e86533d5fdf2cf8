"""Model text as safe HTML: each edited token tinted by KL(edited || base), the first difference marked.

Every token goes through `html.escape`: model output never becomes markup.
"""

import html
from collections.abc import Sequence

FULL_TINT_NATS = 2.0
STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.85rem"


def token_html(tokens: Sequence[str], kl: Sequence[float] = (), first_difference: int | None = None) -> str:
    """Return `tokens` as one escaped HTML block.

    `kl` (nats, one per token, may be shorter) sets the tint, full at 2 nats; the token at `first_difference` is
    underlined and named for screen readers.
    """
    spans = []
    for index, token in enumerate(tokens):
        nats = kl[index] if index < len(kl) else 0.0
        strength = min(max(nats, 0.0) / FULL_TINT_NATS, 1.0)
        style = f"background:rgba(224,117,26,{0.55 * strength:.2f});border-radius:3px" if strength > 0.01 else ""
        title = f' title="KL {nats:.3f} nats"' if index < len(kl) else ""
        mark = ""
        if index == first_difference:
            style += ";border-bottom:2px solid #e0751a"
            mark = ' aria-label="first difference"'
        text = html.escape(token if token.strip("\n") else token.replace("\n", "↵\n"))
        spans.append(f'<span style="{style.lstrip(";")}"{title}{mark}>{text}</span>' if style or title else text)
    return f'<div style="{STYLE}">{"".join(spans)}</div>'


def plain_html(text: str) -> str:
    """Return streamed `text` as one escaped HTML block in the same type."""
    return f'<div style="{STYLE}">{html.escape(text)}</div>'
