"""What a template is: a function from a random generator to one problem with its worked steps and its answer."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Draft:
    """What a template returns: the problem, the worked steps without the final sentence, and the answer."""

    problem: str
    steps: str
    answer: str


Template = Callable[[random.Random], Draft]
