"""Record what lm-evaluation-harness itself says of some 400 answers: `python -m tests.minerva.record_lm_eval`.

Calls `process_results` of the installed lm_eval's minerva_math task and nothing of ours, alone, on the main thread,
where its signal timeouts work; writes lm_eval_table.jsonl beside this file. `test_lm_eval_table.py` holds our graders
against it, item by item.
"""

import json
from collections.abc import Iterator
from pathlib import Path

TABLE = Path(__file__).with_name("lm_eval_table.jsonl")

# gold answer: (written differently, but equal), (near misses)
PAIRS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "7": (("7.0", "07", "7.", r"\frac{14}{2}", "3+4", r"\sqrt{49}", "x=7", r"7\text{ cm}"), ("8", "70", "-7", "7x")),
    r"\frac{1}{2}": (
        ("0.5", ".5", r"\frac12", r"\dfrac{1}{2}", r"\tfrac{2}{4}", "1/2", r"2^{-1}", r"\frac{3}{6}"),
        (r"\frac{1}{3}", r"-\frac{1}{2}", "2", "0.05", r"\frac{2}{1}"),
    ),
    r"-\frac{3}{4}": (
        (r"\frac{-3}{4}", "-0.75", r"-\dfrac{3}{4}", r"\frac{3}{-4}", r"-\frac{6}{8}"),
        (r"\frac{3}{4}", "0.75", r"-\frac{4}{3}", "-0.7"),
    ),
    "1000": (("1,000", r"10^3", "1000.0", r"1{,}000", r"\$1000"), ("100", "10,000", "1001", "1000000")),
    r"2\sqrt{3}": (
        (r"\sqrt{12}", r"2 \sqrt 3", r"\sqrt{3}\cdot 2", r"\frac{6}{\sqrt{3}}", r"2\cdot\sqrt{3}"),
        (r"3\sqrt{2}", r"2\sqrt{2}", r"\sqrt{6}", "3.46"),
    ),
    r"x^2+2x+1": (("(x+1)^2", "1+2x+x^2", "x(x+2)+1", r"x^{2}+2x+1"), ("x^2+2x", "(x-1)^2", "x^2+x+1", "y^2+2y+1")),
    r"\pi": ((r"\pi", r"1\pi", r"\frac{2\pi}{2}"), ("3.14", r"2\pi", r"\frac{\pi}{2}", "pi")),
    r"(1,2)": (("(1, 2)", r"\left(1,2\right)", "(1.0,2)"), ("(2,1)", "(1,3)", "1,2", "[1,2]")),
    r"[0,\infty)": ((r"[0, \infty)", r"\left[0,\infty\right)"), (r"(0,\infty)", r"[0,\infty]", "[0,1)")),
    r"(-2,3)\cup(3,5]": (
        (r"(-2, 3) \cup (3, 5]", r"\left(-2,3\right)\cup\left(3,5\right]"),
        (r"(-2,3)\cap(3,5]", r"(-2,5]", r"[-2,3)\cup(3,5]"),
    ),
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": (
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1\\ 2 \end{pmatrix}"),
        (r"\begin{pmatrix}2\\1\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    ),
    r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}": (
        (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}",),
        (r"\begin{pmatrix}1&0\\0&-1\end{pmatrix}", r"\begin{pmatrix}0&1\\1&0\end{pmatrix}"),
    ),
    r"\text{Tuesday}": (("Tuesday", r"\text{ Tuesday}", r"\mbox{Tuesday}"), ("Wednesday", "tuesday", r"\text{Tues}")),
    r"45^\circ": (("45", r"45^{\circ}", r"45\text{ degrees}"), ("54", r"45'", r"-45^\circ", r"\frac{\pi}{4}")),
    r"25\%": (("25", r"25 \%", "25%"), ("0.25", "52", r"2.5\%")),
    r"\$4.50": (("4.50", "4.5", r"\$4.5", r"4.50\text{ dollars}"), ("45", "4.05", r"\$5.40")),
    r"3+4i": (("4i+3", "3+4 i", r"(2+i)^2"), ("3-4i", "4+3i", "7i", "-3+4i")),
    r"\frac{\sqrt{2}}{2}": (
        (r"\frac{1}{\sqrt{2}}", r"\sqrt{\frac{1}{2}}", r"\frac{\sqrt2}{2}", r"\sin 45^\circ"),
        (r"\frac{\sqrt{3}}{2}", r"\frac{2}{\sqrt{2}}", r"\sqrt{2}"),
    ),
    "2^{10}": (("1024", "4^5", "32^2", r"2\cdot 512"), ("2^9", "20", "10^2", "1000")),
    "10!": (("3628800", "3,628,800"), ("9!", "362880", "10")),
    r"\binom{5}{2}": (("10", r"\frac{5\cdot4}{2}"), ("20", r"\binom{5}{1}", "25")),
    r"\log_2 8": (("3", r"\log_{2}8", r"\log_2{8}"), ("8", r"\log_8 2", "2")),
    "1,3,5": (("1, 3, 5", "5,3,1", "1,3,5."), ("1,3", "1,3,6", "1,5", "9")),
    r"\frac{3}{x}": ((r"\frac{6}{2x}", "3/x", r"3x^{-1}"), (r"\frac{x}{3}", "3x", r"\frac{3}{y}")),
    r"x \le 4": ((r"x\leq 4", r"x \leq 4"), ("x<4", r"x\ge 4", "4", r"x\le 5")),
    "y=2x+3": (("2x+3", "y = 2x + 3", "y=3+2x"), ("y=2x-3", "y=3x+2", "x=2y+3")),
    r"5\sqrt{2}\text{ cm}": ((r"5\sqrt{2}", r"\sqrt{50}", r"5\sqrt2"), (r"2\sqrt{5}", r"5\sqrt{3}", r"\sqrt{5}")),
    r"0.\overline{3}": ((r"\frac{1}{3}", r"0.\overline{3}"), ("0.3", "0.33", r"\frac{3}{10}")),
    r"6.02\times 10^{23}": ((r"6.02 \times 10^{23}", r"6.02\cdot 10^{23}"), (r"6.02\times 10^{22}", "6.02")),
    r"\emptyset": ((r"\emptyset",), ("0", r"\{0\}", r"\text{none}")),
}  # fmt: skip

MARKED = " Final Answer: The final answer is $@$. I hope it is correct."


def marked(answer: str) -> str:
    """Return `answer` in the sentence that the few-shot examples end with."""
    return MARKED.replace("@", answer)


FRAMES = {
    "marked": " We compute it." + MARKED,
    "no marker": " So the answer is $@$.",
    "boxed only": r" Therefore \boxed{@}.",
    "cut before the end": " Final Answer: The final answer is $@$. I hope",
    "said twice": " A." + MARKED + MARKED,
    "no dollars": " Final Answer: The final answer is @. I hope it is correct.",
    "boxed in the marker": r" Final Answer: The final answer is $\boxed{@}$. I hope it is correct.",
    "text behind": " B." + MARKED + "\n\nProblem: another one",
}
ODD = (
    "", " ", "\n", "I do not know.", marked(""), marked(" "), marked("$"), marked(r"\frac{1}{"),
    marked(r"\sqrt{"), marked("{{{"), marked("}}}"), marked(r"\begin{pmatrix} 1"),
    marked(r"\left( 1"), marked("1 2 3 4"), marked("+-*/"), marked("=" * 40),
    marked("x = "), marked(r"\unknowncommand{7}"), marked("七"), marked("7" * 300),
    marked(r"\text{" + "a" * 300 + "}"), marked("(" * 60 + ")" * 60), "7 " * 200,
    " The The The The The" * 40, marked("7") * 20, "Final Answer: The final answer is", "I hope it is correct.",
    " Final Answer: The final answer is 7. I hope it is correct", 
    " final answer: the final answer is $7$. I hope it is correct.",
    marked(r"\frac{0}{0}"), marked(r"\frac{1}{0}"), marked(r"\infty"), marked(r"-\infty"),
    marked("nan"), marked("None"), marked(r"\boxed{}"), marked(r"7\\"), marked("$7$"),
    marked("7,"), marked("7;8"), marked(r"\{1,2\}"), marked(r"\{2,1\}"), marked("7 = 7"),
    marked("7 or 8"), marked("7 and 8"), marked(r"\pm 7"), marked("x=7, y=8"),
)  # fmt: skip
ODD_GOLDS = ("7", r"\{1,2\}", r"\text{Tuesday}")


def answers() -> Iterator[dict[str, str]]:
    """Yield kind, completion and gold solution of every item."""
    for gold, (equal, near) in PAIRS.items():
        solution = rf"We compute it. The result is $\boxed{{{gold}}}$."
        for kind, written in (("equal", equal), ("near miss", near)):
            for text in written:
                yield {"kind": kind, "completion": FRAMES["marked"].replace("@", text), "solution": solution}
        for frame, template in FRAMES.items():
            yield {"kind": frame, "completion": template.replace("@", gold), "solution": solution}
    for number, text in enumerate(ODD):
        gold = ODD_GOLDS[number % len(ODD_GOLDS)]
        yield {"kind": "odd", "completion": text, "solution": rf"So it is $\boxed{{{gold}}}$."}


def main() -> None:
    """Ask lm-eval about every answer and write the table."""
    from lm_eval.tasks.minerva_math import utils

    with TABLE.open("w", encoding="utf-8") as file:
        for item in answers():
            boxed = utils.last_boxed_only_string(item["solution"])
            gold = utils.normalize_final_answer(utils.remove_boxed(boxed))
            scores = utils.process_results({"answer": gold, "solution": item["solution"]}, [item["completion"]])
            row = item | {name: int(scores[name]) for name in ("exact_match", "math_verify")}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
