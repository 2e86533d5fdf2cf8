"""Exceptions of the package. A user's error says what happened, what was found, what was expected, and what to do next.

`UserError` and its subclasses print as one line, and the command line exits with code 2; the dashboard shows the four
parts. Any other exception is an internal error (exit code 1). Programming errors are assertions.
"""

LONGEST_WORD = 300


def printable(text: str) -> str:
    """Return `text` with unprintable characters (control characters, lone surrogates) escaped."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return `text` as one printable line, with very long words shortened in the middle."""
    words = (word if len(word) <= LONGEST_WORD else f"{word[:200]}...{word[-50:]}" for word in text.split())
    return printable(" ".join(words))


class StethoscopeError(Exception):
    """Base class of all errors that this package raises deliberately."""


class Cancelled(StethoscopeError):
    """The user stopped a running job; all finished work is stored."""


class Paused(Cancelled):
    """The user paused a running job; the same request continues where it stopped."""


class UserError(StethoscopeError):
    """An error that the user can fix.

    Args:
        what: what is wrong, and where.
        got: what was found.
        expected: what would be valid.
        next_step: what the user can do.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, next_step: str | None = None) -> None:
        self.what = what
        self.got = None if got is None else str(got)
        self.expected = None if expected is None else str(expected)
        self.next_step = next_step
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what]
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        line = "; ".join(parts)
        return one_line(f"{line}. {self.next_step}" if self.next_step else line)


def raise_if(error: UserError | None) -> None:
    """Raise `error` unless it is None."""
    if error is not None:
        raise error


class ProfileError(UserError):
    """An unknown or invalid profile."""


class OutputError(UserError):
    """A file or folder that cannot be written or must not be overwritten."""


class LocationError(UserError):
    """A location that cannot exist."""


class RecipeError(UserError):
    """A recipe that cannot be read or does not fit its model."""


class CheckpointError(UserError):
    """A checkpoint of a model or task vector that is missing, corrupt, not finite or of the wrong shape."""


class TiedApartError(CheckpointError):
    """A task vector that unties two weights that the base ties: layers can be edited, but these weights cannot."""


class NotFiniteError(CheckpointError):
    """A checkpoint that contains NaN or infinite values."""


class SaeError(UserError):
    """A sparse autoencoder that is missing, corrupt or does not fit the model."""


class GenerationError(UserError):
    """A model whose logits are not finite, so that it cannot generate text."""


class CorpusError(UserError):
    """Problems or control prompts that are missing, malformed or too few."""


class StoreError(UserError):
    """A stored record that is missing or does not match its content id."""


class ResourceError(UserError):
    """Not enough memory or disk space, or a device that does not exist."""
