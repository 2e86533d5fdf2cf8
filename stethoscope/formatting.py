"""Numbers and names as people read them: the one place for screens, figures, reports and the terminal."""

BYTE_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))


def counted(done: int, total: int, unit: str = "") -> str:
    """Return the progress of a stage as text: "3 of 64", or bytes as "1.20 of 8.60 GB"."""
    if unit != "B":
        return f"{done} of {total}"
    scale, name = next((scale, name) for scale, name in BYTE_UNITS if total >= scale or scale == 1)
    return f"{done / scale:.{2 if scale > 1 else 0}f} of {total / scale:.{2 if scale > 1 else 0}f} {name}"


def size_text(size_bytes: int) -> str:
    """Return a size as text in decimal units: "7.8 GB", "335 MB", "50 kB"."""
    if size_bytes >= 10**9:
        return f"{size_bytes / 1e9:.1f} GB"
    if size_bytes >= 10**6:
        return f"{size_bytes / 1e6:.0f} MB"
    return f"{size_bytes / 1000:.0f} kB"


def pace(rate: float, unit: str = "") -> str:
    """Return a speed as text: "3.1 per s", or bytes as "12.4 MB per s"."""
    return f"{rate / 1e6:.1f} MB per s" if unit == "B" else f"{rate:.1f} per s"


def duration_text(seconds: float) -> str:
    """Return a duration as text: "40 s", "12 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def pretty(name: str) -> str:
    """Return the display name of a subject or corpus: `number_theory` -> `number theory`."""
    return name.replace("_", " ")


def signed(value: float | None, digits: int = 3, unit: str = "") -> str:
    """Return `value` with its sign and a true minus, or a dash if it is undefined.

    A value that `digits` would round to a signed zero is printed to one significant digit instead.
    """
    if value is None:
        return "–"
    if abs(value) < 1e-9:  # rounding errors of a sum that cancels
        return f"0{unit}"
    style = f"+.{digits}f" if round(value, digits) else "+.0e" if abs(value) < 1e-4 else "+.1g"
    return f"{value:{style}}{unit}".replace("-", "\N{MINUS SIGN}")


def shown_p(p: float | None) -> str:
    """Return what follows "p" in a text: "< .001", "= .032", or a dash if it is undefined."""
    if p is None:
        return "–"
    return "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".", 1)


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction in [0, 1] as percent, or a dash."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}%"


def points(fraction: float) -> str:
    """Return a difference of fractions in percentage points with one decimal and a sign (none for zero)."""
    return f"{100 * fraction:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0").replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float) -> str:
    """Return an interval of fractions in percentage points."""
    return f"[{points(low)}, {points(high)}]"


def number(value: float | None, digits: int = 3) -> str:
    """Return `value` with `digits` decimals, or a dash if it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"
