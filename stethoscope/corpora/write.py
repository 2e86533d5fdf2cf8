"""Write two control corpora without mathematics: `python -m stethoscope.corpora.write` creates the files in controls/.

plain_prose has neither digits nor LaTeX. typeset_records has both, as dense as in a MATH problem, but nothing to
compute: labels, timetables and formulas only need to be copied. Together they distinguish "reads math" from "reads
LaTeX". Lengths are distributed like those of MATH's problems: log-normal, median 170 characters. Every text asks for
something that it states, in the format of the problems, so that the same grader can be used. The split depends on the
hash of the text.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).with_name("controls")
N_TEXTS = 600
MEDIAN_CHARS, SPREAD, SHORTEST, LONGEST = 170, 0.55, 60, 620


class Fact(NamedTuple):
    """A sentence, a question about it, and the answer in the words of the sentence."""

    sentence: str
    question: str
    answer: str


def words(text: str) -> tuple[str, ...]:
    """Return the words of `text`."""
    return tuple(text.split())


PEOPLE = words(
    "Amara Bruno Chiara Daniel Edith Farid Greta Hassan Ingrid Jorge Keiko Liam Mirela Nadia Oscar Priya Quentin "
    "Rosa Stefan Tamar Ulrich Vera Wanda Xenia Yusuf Zora"
)
PLACES = words(
    "library harbour bakery orchard museum station workshop kitchen greenhouse theatre lighthouse market chapel "
    "laundry stable archive ferry school courtyard cellar"
)
THINGS = words(
    "umbrella violin letter basket lantern ladder blanket camera kettle painting saddle typewriter compass telescope "
    "curtain notebook hammer vase rope mirror"
)
COLOURS = words("crimson olive ivory amber turquoise violet scarlet charcoal golden silver maroon indigo")
TRADES = words("carpenter nurse pilot gardener tailor baker sailor teacher mechanic painter lawyer shepherd")
WEATHER = words("foggy windy sunny rainy snowy stormy cloudy frosty humid mild")
FEELINGS = words("proud tired curious nervous cheerful annoyed grateful bored relieved puzzled")
ANIMALS = words("heron fox hedgehog pony goat falcon otter squirrel donkey swan badger tortoise")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COMPOUNDS = (
    r"\mathrm{H_2O}",
    r"\mathrm{CO_2}",
    r"\mathrm{NaCl}",
    r"\mathrm{C_6H_{12}O_6}",
    r"\mathrm{NH_4^+}",
    r"\mathrm{Fe_2O_3}",
    r"\mathrm{CaCO_3}",
    r"\mathrm{SO_4^{2-}}",
)
METRES = (r"\frac{3}{4}", r"\frac{6}{8}", r"\frac{2}{2}", r"\frac{4}{4}", r"\frac{5}{8}")


def prose(rng: random.Random) -> Fact:
    """Return one fact without digits."""
    who, other = rng.sample(PEOPLE, 2)
    place, elsewhere = rng.sample(PLACES, 2)
    thing, colour, animal = rng.choice(THINGS), rng.choice(COLOURS), rng.choice(ANIMALS)
    trade, sky, mood, day = rng.choice(TRADES), rng.choice(WEATHER), rng.choice(FEELINGS), rng.choice(DAYS)
    return rng.choice(
        (
            Fact(
                f"{who} left the {thing} in the {place} and walked home along the river.",
                f"Where did {who} leave the {thing}?",
                place,
            ),
            Fact(
                f"The {thing} that {who} bought from a neighbour is {colour}, although the shop had promised another.",
                f"Which colour has the {thing} that {who} bought?",
                colour,
            ),
            Fact(
                f"{who} has worked as a {trade} since moving to the town, and {other} often comes to help.",
                f"What is the trade of {who}?",
                trade,
            ),
            Fact(
                f"It was {sky} when {who} opened the door of the {place}, so the guests stayed inside.",
                f"How was the weather when {who} opened the door?",
                sky,
            ),
            Fact(
                f"A {animal} had been sleeping behind the {place}, and {who} was careful not to wake it.",
                f"Which animal was sleeping behind the {place} where {who} was?",
                animal,
            ),
            Fact(
                f"{who} felt {mood} after the long talk with {other}, but said nothing about it.",
                f"How did {who} feel after the talk?",
                mood,
            ),
            Fact(
                f"Every {day}, {who} meets {other} at the {place} and they read the newspaper aloud.",
                f"On which day does {who} meet {other}?",
                day,
            ),
            Fact(
                f"{who} lent the {colour} {thing} to {other}, who carried it from the {place} to the {elsewhere}.",
                f"To whom did {who} lend the {thing}?",
                other,
            ),
        )
    )


def record(rng: random.Random) -> Fact:
    """Return one typeset fact: digits and LaTeX, nothing to compute."""
    who, place, thing = rng.choice(PEOPLE), rng.choice(PLACES), rng.choice(THINGS)
    letter, number = rng.choice("ABCDEFGHKLMNPRST"), rng.randint(10, 99)
    shelf, lot = f"{letter}_{{{number}}}", f"{rng.randint(1, 9)}{{,}}{rng.randint(100, 999)}"
    hour = rf"{rng.randint(5, 23)}\text{{:}}{rng.randint(0, 59):02d}"
    date = rf"{rng.randint(1, 28)}/{rng.randint(1, 12)}/{rng.randint(1901, 2024)}"
    angle, compound, metre = rf"{rng.randint(1, 89)}^\circ", rng.choice(COMPOUNDS), rng.choice(METRES)
    version, key = f"v{rng.randint(1, 9)}.{rng.randint(0, 20)}", rf"\texttt{{{letter}{rng.randint(1000, 9999)}}}"
    return rng.choice(
        (
            Fact(
                f"The {thing} of {who} is kept on shelf ${shelf}$ of the {place}.",
                f"On which shelf is the {thing} of {who}?",
                shelf,
            ),
            Fact(
                f"The label on the {thing} reads $\\text{{Lot }}{lot}$ and was signed by {who}.",
                f"Which lot stands on the label that {who} signed?",
                lot,
            ),
            Fact(
                f"By the board in the {place}, the train of {who} leaves at ${hour}$ from platform ${number}$.",
                f"When does the train of {who} leave?",
                hour,
            ),
            Fact(
                f"{who} dated the entry ${date}$ and wrote ${compound}$ on the jar beside the {thing}.",
                f"What did {who} write on the jar?",
                compound,
            ),
            Fact(
                f"The second song of {who} is printed in ${metre}$ time, the first in ${rng.choice(METRES)}$.",
                f"In which time is the second song of {who} printed?",
                metre,
            ),
            Fact(
                f"The sign at the {place} points ${angle}$ north of the road, as {who} noted in file ${key}$.",
                f"In which file did {who} note the sign?",
                key,
            ),
            Fact(
                f"{who} installed release ${version}$ on the machine with the serial number ${key}$.",
                f"Which release did {who} install?",
                version,
            ),
        )
    )


def text_of(make: Callable[[random.Random], Fact], rng: random.Random) -> dict[str, str]:
    """Return one text of a drawn length: facts about different people, then a question about one of them."""
    length = min(max(MEDIAN_CHARS * math.exp(rng.gauss(0, SPREAD)), SHORTEST), LONGEST)
    facts = [make(rng)]
    while True:
        fact = make(rng)
        if any(_people(fact) & _people(other) for other in facts):
            continue
        now = sum(len(other.sentence) + 1 for other in facts) + len(facts[0].question)
        if abs(now + len(fact.sentence) - length) > abs(now - length):  # it would move the text further from `length`
            break
        facts.append(fact)
    asked = rng.choice(facts)
    problem = " ".join([*(fact.sentence for fact in facts), asked.question])
    marked = f"Final Answer: The final answer is ${asked.answer}$. I hope it is correct."
    return {"problem": problem, "solution": f"The text says: {asked.sentence} {marked}", "answer": asked.answer}


def _people(fact: Fact) -> set[str]:
    return {name for name in PEOPLE if name in fact.sentence}


def split_of(problem: str) -> str:
    """Return the split of a text by its hash: 60% train, 15% dev, 25% test."""
    place = int(hashlib.sha256(problem.encode()).hexdigest()[:8], 16) % 20
    return "train" if place < 12 else "dev" if place < 15 else "test"


def corpora() -> dict[str, list[dict[str, str]]]:
    """Return the texts of both corpora by split."""
    files: dict[str, list[dict[str, str]]] = {"train": [], "dev": [], "test": []}
    for subject, make in (("plain_prose", prose), ("typeset_records", record)):
        rng, seen = random.Random(subject), set[str]()
        while len(seen) < N_TEXTS:
            text = text_of(make, rng)
            if text["problem"] not in seen:
                seen.add(text["problem"])
                files[split_of(text["problem"])].append(text | {"subject": subject})
    return files


def main() -> None:
    """Write the files."""
    for split, texts in corpora().items():
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        (FOLDER / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
