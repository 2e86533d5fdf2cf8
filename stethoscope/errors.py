"""One exception tree. A user's mistake carries what happened, what was got, what was expected and the next step.

`UserError` and its children print as one line and exit the command line with code 2; the dashboard shows their four
parts. Everything else that escapes is ours (exit code 1). Programmer mistakes assert.
"""

LONGEST_WORD = 300


def printable(text: str) -> str:
    """Return `text` with what no terminal shows (control characters, half a surrogate pair) as its escape."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return `text` in one line, printable, and the middle of very long words left out."""
    words = (word if len(word) <= LONGEST_WORD else f"{word[:200]}...{word[-50:]}" for word in text.split())
    return printable(" ".join(words))


class StethoscopeError(Exception):
    """Root of every error that this package raises on purpose."""


class Cancelled(StethoscopeError):
    """The user asked a running job to stop; everything finished so far is stored."""


class Paused(Cancelled):
    """The user asked a running job to stop for now; the same request goes on where it stopped."""


class UserError(StethoscopeError):
    """A mistake that the user can mend.

    Args:
        what: what is wrong, naming the thing.
        got: what was found there.
        expected: what would have been right.
        next_step: what to do now.
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
    """Raise `error`, where there is one."""
    if error is not None:
        raise error


class ProfileError(UserError):
    """An unknown or broken profile."""


class OutputError(UserError):
    """A file or folder that cannot be written, or must not be written over."""


class LocationError(UserError):
    """A name of a place that can lead nowhere."""


class RecipeError(UserError):
    """A recipe that cannot be read, or does not fit the model that it names."""


class CheckpointError(UserError):
    """A model or task-vector checkpoint that is missing, corrupt, not finite or of the wrong shape."""


class TiedApartError(CheckpointError):
    """A task vector that moves two weights apart which the base ties: its layers can be edited, these weights not."""


class NotFiniteError(CheckpointError):
    """A checkpoint with a NaN or an infinity in it."""


class SaeError(UserError):
    """A sparse autoencoder that is missing, corrupt or does not fit the model."""


class GenerationError(UserError):
    """A model whose predictions are no numbers, so that it cannot be asked for text."""


class CorpusError(UserError):
    """Problems or control prompts that are missing, malformed or too few."""


class StoreError(UserError):
    """A stored record that is missing or does not match its content id."""


class ResourceError(UserError):
    """Not enough memory or disk, or a device that is not there."""
