"""Detect answers that end in a loop, from the text alone, so that the result is independent of the tokenizer.

A completion is repetitive if it ends with a repeated unit: the same 1 to 200 characters, at least four times in a row
and at least 40 characters in total; the last copy can be incomplete. The unit must contain a letter or digit, or the
repetition must have at least 80 characters: a row of dashes under a title, or a matrix of spaces, is not a loop.
"""

MAX_PERIOD = 200
MIN_COPIES = 4
MIN_CHARS = 40
MIN_CHARS_OF_MARKS = 80


def is_repetitive(completion: str) -> bool:
    """Return whether the completion's end repeats one unit (see the module); trailing white space is ignored."""
    text = completion.rstrip()
    backwards = text[::-1][: MAX_PERIOD * MIN_COPIES + MIN_CHARS_OF_MARKS]
    for period in range(1, min(MAX_PERIOD, len(backwards) // MIN_COPIES) + 1):
        run = period
        while run < len(backwards) and backwards[run] == backwards[run - period]:
            run += 1
        says_something = any(character.isalnum() for character in backwards[:period])
        if run >= max(MIN_COPIES * period, MIN_CHARS if says_something else MIN_CHARS_OF_MARKS):
            return True
    return False
