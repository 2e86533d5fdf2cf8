"""The two control languages, which are not math: facts, stories and instructions; and dates, lists and codes.

Both use the same frame and the same final sentence as the math subjects, so that the same grader marks them.
The second is matched for digits and symbols: it is there so that "has digits in it" cannot pass for "is math".
"""

import random

from stethoscope.mini.arithmetic import by_name
from stethoscope.mini.drafts import Draft, Template

NAMES = (
    "Anna",
    "Ben",
    "Carl",
    "Dora",
    "Emma",
    "Finn",
    "Greta",
    "Hugo",
    "Ida",
    "Jonas",
    "Karin",
    "Leo",
    "Maja",
    "Nils",
    "Olga",
    "Paul",
    "Rosa",
    "Sven",
    "Tilda",
    "Uwe",
)
OBJECTS = (
    "ring",
    "key",
    "coin",
    "book",
    "lamp",
    "cup",
    "hat",
    "spoon",
    "letter",
    "map",
    "pen",
    "shoe",
    "clock",
    "stone",
    "bell",
    "drum",
)
PLACES = (
    "box",
    "bag",
    "drawer",
    "kitchen",
    "garden",
    "cellar",
    "attic",
    "basket",
    "cupboard",
    "tower",
    "barn",
    "desk",
    "shelf",
    "chest",
    "boat",
    "shed",
)
TOWNS = (
    "Lund",
    "Oslo",
    "Bergen",
    "Turku",
    "Riga",
    "Vilna",
    "Bremen",
    "Gent",
    "Basel",
    "Graz",
    "Pisa",
    "Porto",
    "Tours",
    "Leeds",
    "Cork",
    "Bath",
)
YOUNG = {
    "dog": "puppy",
    "cat": "kitten",
    "cow": "calf",
    "horse": "foal",
    "sheep": "lamb",
    "hen": "chick",
    "duck": "duckling",
    "bear": "cub",
    "goat": "kid",
    "deer": "fawn",
    "pig": "piglet",
    "swan": "cygnet",
    "goose": "gosling",
    "frog": "tadpole",
    "owl": "owlet",
    "kangaroo": "joey",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "long": "short",
    "old": "new",
    "wet": "dry",
    "dark": "light",
    "fast": "slow",
    "hard": "soft",
    "rich": "poor",
    "full": "empty",
    "loud": "quiet",
    "high": "low",
    "thick": "thin",
    "clean": "dirty",
    "early": "late",
    "open": "closed",
    "strong": "weak",
    "wide": "narrow",
}
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
ORDINALS = ("first", "second", "third", "fourth")

# Looking up one of two people or things: a model of this size guesses between the two, so these problems stay in
# the training text, where they do no harm, and are left out of the problem files, where they would add noise to the
# control accuracy.
TRAINING_ONLY = frozenset({"where_is_it", "who_lives_where", "room_of"})


def _two(rng: random.Random, words: tuple[str, ...] | list[str]) -> list[str]:
    return rng.sample(list(words), 2)


# --- facts and stories -----------------------------------------------------------------------------------------


def where_is_it(rng: random.Random) -> Draft:
    (a, b), (x, y), (p, q) = _two(rng, NAMES), _two(rng, OBJECTS), _two(rng, PLACES)
    wanted, place, who = rng.choice([(x, p, a), (y, q, b)])
    return Draft(
        f"{a} put the {x} in the {p}. {b} put the {y} in the {q}. Where is the {wanted}?",
        f"{who} put the {wanted} in the {place}.",
        place,
    )


def moved_again(rng: random.Random) -> Draft:
    (a, b), x, (p, q) = _two(rng, NAMES), rng.choice(OBJECTS), _two(rng, PLACES)
    return Draft(
        f"{a} put the {x} in the {p}. Later {b} moved it to the {q}. Where is the {x} now?",
        f"{b} moved the {x} to the {q}.",
        q,
    )


def young_animal(rng: random.Random) -> Draft:
    name, town, animal = rng.choice(NAMES), rng.choice(TOWNS), rng.choice(sorted(YOUNG))
    return Draft(
        f"In {town}, {name} saw a young {animal}. What do we call a young {animal}?",
        f"A young {animal} is called {YOUNG[animal]}.",
        YOUNG[animal],
    )


def opposite_word(rng: random.Random) -> Draft:
    name, thing, word = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(sorted(OPPOSITES))
    return Draft(
        f"{name} says that the {thing} is {word}. What is the opposite of {word}?",
        f"The opposite of {word} is {OPPOSITES[word]}.",
        OPPOSITES[word],
    )


def repeat_word(rng: random.Random) -> Draft:
    a, b = _two(rng, OBJECTS + PLACES)
    name = rng.choice(NAMES)
    return Draft(
        f"Tell {name} the word {a} two times and then the word {b}.",
        f"{name} hears {a} {a} {b}.",
        f"{a} {a} {b}",
    )


def who_lives_where(rng: random.Random) -> Draft:
    (a, b), (s, t) = _two(rng, NAMES), _two(rng, TOWNS)
    who, town = rng.choice([(a, s), (b, t)])
    return Draft(f"{a} lives in {s} and {b} lives in {t}. Who lives in {town}?", f"{who} lives in {town}.", who)


# --- digits and codes ------------------------------------------------------------------------------------------


def nth_of_list(rng: random.Random) -> Draft:
    values = [rng.randint(10, 99) for _ in range(4)]
    n = rng.randrange(4)
    return Draft(
        f"Here is a list: {values[0]}, {values[1]}, {values[2]}, {values[3]}. Which is the {ORDINALS[n]} entry?",
        f"The {ORDINALS[n]} entry is {values[n]}.",
        str(values[n]),
    )


def part_of_code(rng: random.Random) -> Draft:
    parts = [f"{rng.randint(0, 99):02d}" for _ in range(3)]
    n = rng.randrange(3)
    letter = rng.choice("ABCDEFGH")
    return Draft(
        f"A code is {letter}-{parts[0]}-{parts[1]}-{parts[2]}. What is its {ORDINALS[n]} pair of digits?",
        f"The {ORDINALS[n]} pair is {parts[n]}.",
        parts[n],
    )


def date_to_iso(rng: random.Random) -> Draft:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1900, 2099)
    iso = f"{year}-{month:02d}-{day:02d}"
    return Draft(f"Write the date {day:02d}/{month:02d}/{year} with the year in front.", f"The date is {iso}.", iso)


def month_name(rng: random.Random) -> Draft:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1900, 2099)
    return Draft(
        f"A letter is dated {year}-{month:02d}-{day:02d}. In which month was it written?",
        f"Month {month:02d} is {MONTHS[month - 1]}.",
        MONTHS[month - 1],
    )


def room_of(rng: random.Random) -> Draft:
    (a, b), p, q = _two(rng, NAMES), rng.randint(100, 999), rng.randint(100, 999)
    who, room = rng.choice([(a, p), (b, q)])
    return Draft(f"Rooms: {a} {p}, {b} {q}. In which room is {who}?", f"{who} is in room {room}.", str(room))


def last_digits(rng: random.Random) -> Draft:
    number = f"{rng.randint(100, 999)}-{rng.randint(1000, 9999)}"
    return Draft(
        f"A phone number is {number}. Say it without the line.",
        f"The number is {number.replace('-', '')}.",
        number.replace("-", ""),
    )


CONTROL_TEMPLATES: dict[str, dict[str, Template]] = {
    "facts_and_stories": by_name(where_is_it, moved_again, young_animal, opposite_word, repeat_word, who_lives_where),
    "digits_and_codes": by_name(nth_of_list, part_of_code, date_to_iso, month_name, room_of, last_digits),
}
