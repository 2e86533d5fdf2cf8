"""The seven math subjects: at least five templates each, with answers that have to be computed.

Every template has tens of thousands of problems, so that a test problem is new in its numbers, and answers
spread over a wide range, so that guessing does not pay. Products of a digit and a longer number are worked in
two parts (``7*46=280+42=322``); everything else is one short equation per step.
"""

import random
from math import gcd

from stethoscope.mini.arithmetic import PRIMES, by_name, times, times_long
from stethoscope.mini.drafts import Draft, Template

# --- algebra ---------------------------------------------------------------------------------------------------


def linear_equation(rng: random.Random) -> Draft:
    a, x, b = rng.randint(2, 9), rng.randint(11, 99), rng.randint(11, 99)
    c = a * x + b
    return Draft(f"Solve for $x$: ${a}x+{b}={c}$.", f"{c}-{b}={a * x}. {a * x}/{a}={x}.", str(x))


def linear_value(rng: random.Random) -> Draft:
    a, k, b = rng.randint(2, 9), rng.randint(11, 99), rng.randint(11, 99)
    return Draft(f"If $f(x)={a}x+{b}$, what is $f({k})$?", f"{times(a, k)}. {a * k}+{b}={a * k + b}.", str(a * k + b))


def sum_and_difference(rng: random.Random) -> Draft:
    y = rng.randint(11, 99)
    x = y + rng.randint(11, 99)
    s, d = x + y, x - y
    return Draft(f"If $x+y={s}$ and $x-y={d}$, find $x$.", f"{s}+{d}={s + d}. {s + d}/2={x}.", str(x))


def number_puzzle(rng: random.Random) -> Draft:
    a, x = rng.randint(2, 9), rng.randint(11, 99)
    b = rng.randint(2, min(99, a * x - 2))
    c = a * x - b
    return Draft(
        f"A number is multiplied by {a} and then {b} is subtracted. The result is {c}. What is the number?",
        f"{c}+{b}={a * x}. {a * x}/{a}={x}.",
        str(x),
    )


def expanded_coefficient(rng: random.Random) -> Draft:
    a, b, c, d = rng.randint(2, 9), rng.randint(11, 49), rng.randint(2, 9), rng.randint(11, 99)
    return Draft(
        f"Expand ${a}({b}x+{c})+{d}x$. What is the coefficient of $x$?",
        f"{times(a, b)}. {a * b}+{d}={a * b + d}.",
        str(a * b + d),
    )


# --- counting and probability ----------------------------------------------------------------------------------


def pick_a_pair(rng: random.Random) -> Draft:
    a, b, c = rng.randint(2, 9), rng.randint(5, 49), rng.randint(5, 49)
    return Draft(
        f"A club has {a} boys and {b} girls. Then {c} more girls join. "
        "In how many ways can we pick one boy and one girl?",
        f"{b}+{c}={b + c}. {times(a, b + c)}.",
        str(a * (b + c)),
    )


def routes(rng: random.Random) -> Draft:
    a, b, c = rng.randint(2, 9), rng.randint(11, 49), rng.randint(11, 99)
    return Draft(
        f"There are {a} roads from P to Q, {b} roads from Q to R and {c} roads from P to R. "
        "How many routes lead from P to R?",
        f"{times(a, b)}. {a * b}+{c}={a * b + c}.",
        str(a * b + c),
    )


def neither(rng: random.Random) -> Draft:
    c = rng.randint(2, 19)
    a, b = c + rng.randint(5, 60), c + rng.randint(5, 60)
    union = a + b - c
    n = union + rng.randint(5, 99)
    return Draft(
        f"Of {n} people, {a} like tea, {b} like milk and {c} like both. How many like neither?",
        f"{a}+{b}={a + b}. {a + b}-{c}={union}. {n}-{union}={n - union}.",
        str(n - union),
    )


def red_ball(rng: random.Random) -> Draft:
    while True:
        a, b, c = rng.randint(2, 40), rng.randint(2, 40), rng.randint(2, 40)
        if a + b + c in PRIMES:
            break
    n = a + b + c
    return Draft(
        f"A bag has {a} red, {b} blue and {c} green balls. What is the probability of drawing a red ball?",
        f"{a}+{b}={a + b}. {a + b}+{c}={n}.",
        f"\\frac{{{a}}}{{{n}}}",
    )


def inclusive_count(rng: random.Random) -> Draft:
    a = rng.randint(101, 499)
    b = a + rng.randint(11, 399)
    return Draft(
        f"How many whole numbers are there from {a} to {b}, both counted?",
        f"{b}-{a}={b - a}. {b - a}+1={b - a + 1}.",
        str(b - a + 1),
    )


# --- geometry --------------------------------------------------------------------------------------------------


def rectangle_perimeter(rng: random.Random) -> Draft:
    a, b = rng.randint(11, 199), rng.randint(11, 99)
    return Draft(
        f"A rectangle has sides {a} and {b}. What is its perimeter?",
        f"{a}+{b}={a + b}. {times(2, a + b)}.",
        str(2 * (a + b)),
    )


def third_angle(rng: random.Random) -> Draft:
    a, b = rng.randint(11, 89), rng.randint(11, 80)
    return Draft(
        f"Two angles of a triangle are ${a}^\\circ$ and ${b}^\\circ$. How many degrees has the third angle?",
        f"{a}+{b}={a + b}. 180-{a + b}={180 - a - b}.",
        str(180 - a - b),
    )


def cut_area(rng: random.Random) -> Draft:
    c = rng.randint(2, 8)
    a, b = rng.randint(c + 1, 9), rng.randint(11, 99)
    return Draft(
        f"A square of side {c} is cut out of a rectangle with sides {a} and {b}. What area is left?",
        f"{times(a, b)}. {c}*{c}={c * c}. {a * b}-{c * c}={a * b - c * c}.",
        str(a * b - c * c),
    )


def triangle_perimeter(rng: random.Random) -> Draft:
    a, b = rng.randint(21, 99), rng.randint(21, 99)
    c = rng.randint(abs(a - b) + 1, a + b - 1)
    return Draft(
        f"A triangle has sides {a}, {b} and {c}. What is its perimeter?",
        f"{a}+{b}={a + b}. {a + b}+{c}={a + b + c}.",
        str(a + b + c),
    )


def missing_side(rng: random.Random) -> Draft:
    a, b = rng.randint(11, 99), rng.randint(11, 199)
    p = 2 * (a + b)
    return Draft(
        f"The perimeter of a rectangle is {p} and one side is {a}. How long is the other side?",
        f"{p}/2={a + b}. {a + b}-{a}={b}.",
        str(b),
    )


# --- intermediate algebra --------------------------------------------------------------------------------------


def polynomial_remainder(rng: random.Random) -> Draft:
    a, b, c, r = rng.randint(2, 9), rng.randint(2, 9), rng.randint(11, 99), rng.randint(2, 5)
    square, linear = a * r * r, b * r
    return Draft(
        f"What is the remainder when ${a}x^2+{b}x+{c}$ is divided by $x-{r}$?",
        f"{times(a, r * r)}. {b}*{r}={linear}. {square}+{linear}={square + linear}. "
        f"{square + linear}+{c}={square + linear + c}.",
        str(square + linear + c),
    )


def arithmetic_sequence(rng: random.Random) -> Draft:
    a, d, n = rng.randint(11, 99), rng.randint(2, 9), rng.randint(12, 60)
    return Draft(
        f"An arithmetic sequence starts with {a} and has common difference {d}. What is its term number {n}?",
        f"{n}-1={n - 1}. {times(d, n - 1)}. {d * (n - 1)}+{a}={d * (n - 1) + a}.",
        str(d * (n - 1) + a),
    )


def composition(rng: random.Random) -> Draft:
    a, b, c, k = rng.randint(2, 9), rng.randint(11, 99), rng.randint(11, 49), rng.randint(11, 49)
    return Draft(
        f"Let $f(x)={a}x+{b}$ and $g(x)=x+{c}$. Find $f(g({k}))$.",
        f"{k}+{c}={k + c}. {times(a, k + c)}. {a * (k + c)}+{b}={a * (k + c) + b}.",
        str(a * (k + c) + b),
    )


def shifted_square(rng: random.Random) -> Draft:
    a, d, b = rng.randint(11, 89), rng.randint(2, 9), rng.randint(11, 99)
    return Draft(
        f"What is the value of $(x-{a})^2+{b}$ at $x={a + d}$?",
        f"{a + d}-{a}={d}. {d}*{d}={d * d}. {d * d}+{b}={d * d + b}.",
        str(d * d + b),
    )


def sum_of_squares(rng: random.Random) -> Draft:
    s, p = rng.randint(11, 30), rng.randint(2, 60)
    return Draft(
        f"If $x+y={s}$ and $xy={p}$, find $x^2+y^2$.",
        f"{s}*{s}={s * s}. 2*{p}={2 * p}. {s * s}-{2 * p}={s * s - 2 * p}.",
        str(s * s - 2 * p),
    )


# --- number theory ---------------------------------------------------------------------------------------------


def remainder(rng: random.Random) -> Draft:
    m, q = rng.randint(21, 99), rng.randint(2, 9)
    r = rng.randint(1, m - 1)
    n = m * q + r
    return Draft(f"What is the remainder when {n} is divided by {m}?", f"{times(q, m)}. {n}-{m * q}={r}.", str(r))


def lcm_from_gcd(rng: random.Random) -> Draft:
    g, x, y = rng.randint(2, 9), rng.randint(2, 9), rng.randint(11, 49)
    while gcd(x, y) != 1:
        y = rng.randint(11, 49)
    a, b = g * x, g * y
    return Draft(
        f"The greatest common divisor of {a} and {b} is {g}. What is their least common multiple?",
        f"{a}/{g}={x}. {times(x, b)}.",
        str(x * b),
    )


def digit_sum(rng: random.Random) -> Draft:
    n, k = rng.randint(1011, 9999), rng.randint(11, 99)
    digits = [int(c) for c in str(n)]
    total = sum(digits)
    return Draft(
        f"Add {k} to the sum of the digits of {n}. What do you get?",
        f"{'+'.join(map(str, digits))}={total}. {total}+{k}={total + k}.",
        str(total + k),
    )


def base_to_decimal(rng: random.Random) -> Draft:
    b = rng.randint(5, 9)
    d1, d2, d3 = rng.randint(1, b - 1), rng.randint(0, b - 1), rng.randint(0, b - 1)
    inner = d1 * b + d2
    return Draft(
        f"Write the base {b} number ${d1}{d2}{d3}_{b}$ in base ten.",
        f"{d1}*{b}={d1 * b}. {d1 * b}+{d2}={inner}. {times(b, inner)}. {inner * b}+{d3}={inner * b + d3}.",
        str(inner * b + d3),
    )


def next_multiple(rng: random.Random) -> Draft:
    m, q = rng.randint(11, 99), rng.randint(2, 8)
    n = m * q + rng.randint(1, m - 1)
    return Draft(
        f"What is the smallest multiple of {m} that is greater than {n}?", f"{times(q + 1, m)}.", str(m * (q + 1))
    )


def consecutive_sum(rng: random.Random) -> Draft:
    k, n = rng.randint(3, 8), rng.randint(11, 399)
    extra = k * (k - 1) // 2
    return Draft(
        f"What is the sum of {k} consecutive whole numbers if the first is {n}?",
        f"{times_long(k, n)}. {k * n}+{extra}={k * n + extra}.",
        str(k * n + extra),
    )


# --- prealgebra ------------------------------------------------------------------------------------------------


def buy_and_give(rng: random.Random) -> Draft:
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    c = rng.randint(5, a + b - 5)
    return Draft(
        f"Anna has {a} apples. She buys {b} more and gives {c} away. How many apples does she have now?",
        f"{a}+{b}={a + b}. {a + b}-{c}={a + b - c}.",
        str(a + b - c),
    )


def boxes_of_pens(rng: random.Random) -> Draft:
    a, b = rng.randint(3, 9), rng.randint(11, 79)
    c = rng.randint(5, min(99, a * b - 5))
    return Draft(
        f"There are {a} boxes with {b} pens each. Then {c} pens are lost. How many pens are left?",
        f"{times(a, b)}. {a * b}-{c}={a * b - c}.",
        str(a * b - c),
    )


def percent_more(rng: random.Random) -> Draft:
    p, k, c = 10 * rng.randint(1, 9), rng.randint(11, 99), rng.randint(11, 99)
    part = p // 10 * k
    return Draft(
        f"What is {p}\\% of {10 * k}, plus {c}?", f"{times(p // 10, k)}. {part}+{c}={part + c}.", str(part + c)
    )


def average_of_three(rng: random.Random) -> Draft:
    mean = rng.randint(21, 79)
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    c = 3 * mean - a - b
    while c < 5:
        mean += 7
        c = 3 * mean - a - b
    return Draft(
        f"What is the average of {a}, {b} and {c}?",
        f"{a}+{b}={a + b}. {a + b}+{c}={3 * mean}. {3 * mean}/3={mean}.",
        str(mean),
    )


def order_of_operations(rng: random.Random) -> Draft:
    b, d = rng.randint(2, 9), rng.randint(11, 59)
    c, a = d + rng.randint(11, 40), rng.randint(11, 99)
    return Draft(
        f"Compute ${a}+{b}({c}-{d})$.",
        f"{c}-{d}={c - d}. {times(b, c - d)}. {a}+{b * (c - d)}={a + b * (c - d)}.",
        str(a + b * (c - d)),
    )


# --- precalculus -----------------------------------------------------------------------------------------------


def dot_product(rng: random.Random) -> Draft:
    a, b, c, d = rng.randint(2, 9), rng.randint(2, 19), rng.randint(11, 39), rng.randint(2, 9)
    return Draft(
        f"Find the dot product of the vectors $({a},{b})$ and $({c},{d})$.",
        f"{times(a, c)}. {times(d, b)}. {a * c}+{b * d}={a * c + b * d}.",
        str(a * c + b * d),
    )


def determinant(rng: random.Random) -> Draft:
    a, b, c, d = rng.randint(3, 9), rng.randint(2, 9), rng.randint(2, 9), rng.randint(11, 39)
    det = a * d - b * c
    return Draft(
        f"Find the determinant $\\begin{{vmatrix}}{a}&{b}\\\\{c}&{d}\\end{{vmatrix}}$.",
        f"{times(a, d)}. {b}*{c}={b * c}. {a * d}-{b * c}={det}.",
        str(det),
    )


def logarithm(rng: random.Random) -> Draft:
    base, k = rng.choice([(2, 4), (2, 5), (2, 6), (2, 7), (2, 8), (3, 3), (3, 4), (3, 5), (5, 2), (5, 3), (7, 2)])
    c = rng.randint(11, 199)
    return Draft(
        f"Solve for $x$: $\\log_{base}(x-{c})={k}$.",
        f"{base}^{k}={base**k}. {base**k}+{c}={base**k + c}.",
        str(base**k + c),
    )


def imaginary_part(rng: random.Random) -> Draft:
    a, b, c, d = rng.randint(2, 9), rng.randint(2, 9), rng.randint(11, 39), rng.randint(2, 9)
    return Draft(
        f"What is the imaginary part of $({a}+{b}i)({c}+{d}i)$?",
        f"{a}*{d}={a * d}. {times(b, c)}. {a * d}+{b * c}={a * d + b * c}.",
        str(a * d + b * c),
    )


def coterminal_angle(rng: random.Random) -> Draft:
    k, r = rng.randint(1, 9), rng.randint(11, 359)
    n = 360 * k + r
    return Draft(
        f"Which angle from $0^\\circ$ to $360^\\circ$ has the same sine and cosine as ${n}^\\circ$?",
        f"{k}*360={360 * k}. {n}-{360 * k}={r}.",
        str(r),
    )


MATH_TEMPLATES: dict[str, dict[str, Template]] = {
    "algebra": by_name(linear_equation, linear_value, sum_and_difference, number_puzzle, expanded_coefficient),
    "counting_and_probability": by_name(pick_a_pair, routes, neither, red_ball, inclusive_count),
    "geometry": by_name(rectangle_perimeter, third_angle, cut_area, triangle_perimeter, missing_side),
    "intermediate_algebra": by_name(
        polynomial_remainder, arithmetic_sequence, composition, shifted_square, sum_of_squares
    ),
    "number_theory": by_name(remainder, lcm_from_gcd, digit_sum, base_to_decimal, next_multiple, consecutive_sum),
    "prealgebra": by_name(buy_and_give, boxes_of_pens, percent_more, average_of_three, order_of_operations),
    "precalculus": by_name(dot_product, determinant, logarithm, imaginary_part, coterminal_angle),
}
