"""How the worked solutions write products, and how templates are listed by name."""

from stethoscope.mini.drafts import Template

PRIMES = frozenset(n for n in range(11, 130) if all(n % d for d in range(2, n)))


def times(a: int, b: int) -> str:
    """Return the worked product of a digit and a number below 1000, as ``7*46=280+42=322``."""
    tens, ones = b - b % 10, b % 10
    if b < 10 or ones == 0:
        return f"{a}*{b}={a * b}"
    return f"{a}*{b}={a * tens}+{a * ones}={a * b}"


def times_long(a: int, b: int) -> str:
    """Return the worked product of a digit and a number, hundreds first when there are any."""
    if b < 100:
        return times(a, b)
    hundreds, rest = b - b % 100, b % 100
    return f"{times(a, rest)}. {a}*{hundreds}={a * hundreds}. {a * hundreds}+{a * rest}={a * b}"


def by_name(*templates: Template) -> dict[str, Template]:
    """Return the templates by the names of their functions."""
    return {template.__name__: template for template in templates}
