"""Record lm-evaluation-harness' prompts, and its grades of about 600 answers.

Run `python -m tests.minerva.record_lm_eval`.

Calls `process_results` and `fewshot_context` of the installed lm_eval's minerva_math task and none of our code, on the
main thread, where its signal timeouts work. Writes lm_eval_table.jsonl and lm_eval_prompts.jsonl to this folder, which
`test_lm_eval_table.py` and `test_prompts.py` compare with ours, item by item.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

TABLE = Path(__file__).with_name("lm_eval_table.jsonl")

# topic: {gold answer: (written differently, but equal), (near misses)}
Pairs = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
PAIRS: dict[str, Pairs] = {
    "number": {
        "7": (("7.0", "07", "7.", r"\frac{14}{2}", "3+4", r"\sqrt{49}", "x=7", "7,"), ("8", "70", "-7", "7x", "0.7")),
        "1000": (("1,000", r"10^3", "1000.0", r"1{,}000", r"\$1000"), ("100", "10,000", "1001", "1000000")),
        "-12": (("-12.0", r"-\frac{24}{2}", "3-15", r"-1{2}", "- 12"), ("12", "-1.2", "-21", r"-\frac{1}{12}")),
        "2^{10}": (("1024", "4^5", "32^2", r"2\cdot 512"), ("2^9", "20", "10^2", "1000")),
        "10!": (("3628800", "3,628,800"), ("9!", "362880", "10")),
        r"\binom{5}{2}": (("10", r"\frac{5\cdot4}{2}"), ("20", r"\binom{5}{1}", "25")),
        r"6.02\times 10^{23}": ((r"6.02 \times 10^{23}", r"6.02\cdot 10^{23}"), (r"6.02\times 10^{22}", "6.02")),
        "4210_7": (("4210_{7}", "4210_7 "), ("4210", "4201_7", "4210_8", "1470")),
        "1.75": ((r"\frac{7}{4}", "1.750", r"1\frac{3}{4}", r"\frac{175}{100}"), ("1.57", "17.5", r"\frac{4}{7}")),
    },
    "fraction": {
        r"\frac{1}{2}": (
            ("0.5", ".5", r"\frac12", r"\dfrac{1}{2}", r"\tfrac{2}{4}", "1/2", r"2^{-1}", r"\frac{3}{6}"),
            (r"\frac{1}{3}", r"-\frac{1}{2}", "2", "0.05", r"\frac{2}{1}"),
        ),
        r"-\frac{3}{4}": (
            (r"\frac{-3}{4}", "-0.75", r"-\dfrac{3}{4}", r"\frac{3}{-4}", r"-\frac{6}{8}"),
            (r"\frac{3}{4}", "0.75", r"-\frac{4}{3}", "-0.7"),
        ),
        r"\frac{17}{8}": ((r"\frac{34}{16}", "2.125", r"\dfrac{17}{8}", "17/8"), (r"\frac{8}{17}", "2.12", "2")),
        r"0.\overline{3}": ((r"\frac{1}{3}", r"0.\overline{3}"), ("0.3", "0.33", r"\frac{3}{10}")),
        "25\\%": (("25", r"25 \%", "25%"), ("0.25", "52", r"2.5\%")),
    },
    "root": {
        r"2\sqrt{3}": (
            (r"\sqrt{12}", r"2 \sqrt 3", r"\sqrt{3}\cdot 2", r"\frac{6}{\sqrt{3}}", r"2\cdot\sqrt{3}"),
            (r"3\sqrt{2}", r"2\sqrt{2}", r"\sqrt{6}", "3.46"),
        ),
        r"\frac{\sqrt{2}}{2}": (
            (r"\frac{1}{\sqrt{2}}", r"\sqrt{\frac{1}{2}}", r"\frac{\sqrt2}{2}", r"\sin 45^\circ"),
            (r"\frac{\sqrt{3}}{2}", r"\frac{2}{\sqrt{2}}", r"\sqrt{2}"),
        ),
        r"1+\sqrt{5}": ((r"\sqrt5+1", r"\sqrt{5} + 1", r"1 + 5^{1/2}"), (r"1-\sqrt{5}", r"\sqrt{6}", "3.236")),
        r"\sqrt[3]{4}": ((r"4^{1/3}", r"\sqrt[3]4", r"2^{\frac{2}{3}}"), (r"\sqrt{4}", r"\sqrt[4]{3}", r"\sqrt[3]{2}")),
        r"\pi": ((r"\pi", r"1\pi", r"\frac{2\pi}{2}"), ("3.14", r"2\pi", r"\frac{\pi}{2}", "pi")),
        r"\log_2 8": (("3", r"\log_{2}8", r"\log_2{8}"), ("8", r"\log_8 2", "2")),
    },
    "expression": {
        r"x^2+2x+1": (("(x+1)^2", "1+2x+x^2", "x(x+2)+1", r"x^{2}+2x+1"), ("x^2+2x", "(x-1)^2", "x^2+x+1", "y^2+2y+1")),
        r"\frac{3}{x}": ((r"\frac{6}{2x}", "3/x", r"3x^{-1}"), (r"\frac{x}{3}", "3x", r"\frac{3}{y}")),
        r"p - q": (("p-q", "-q+p", "-(q-p)"), ("q-p", "p+q", "pq", "p")),
        r"(x-2)(x+5)": (("x^2+3x-10", "(x+5)(x-2)", r"(x-2) \cdot (x+5)"), ("(x+2)(x-5)", "x^2+3x+10", "x^2-3x-10")),
        "y=2x+3": (("2x+3", "y = 2x + 3", "y=3+2x"), ("y=2x-3", "y=3x+2", "x=2y+3")),
        r"x \le 4": ((r"x\leq 4", r"x \leq 4"), ("x<4", r"x\ge 4", "4", r"x\le 5")),
        "3+4i": (("4i+3", "3+4 i", r"(2+i)^2"), ("3-4i", "4+3i", "7i", "-3+4i")),
        r"\frac{1}{2}e^{2t}": ((r"\frac{e^{2t}}{2}", r"0.5e^{2t}"), (r"e^{2t}", r"\frac{1}{2}e^{t}", r"\frac12 e^{2}")),
    },
    "tuple": {
        r"(1,2)": (("(1, 2)", r"\left(1,2\right)", "(1.0,2)"), ("(2,1)", "(1,3)", "1,2", "[1,2]")),
        "1,3,5": (("1, 3, 5", "5,3,1", "1,3,5."), ("1,3", "1,3,6", "1,5", "9")),
        r"\left( \frac{1}{2}, -3 \right)": (
            (r"\left(\frac{1}{2},-3\right)", r"(\frac12,-3)", "(0.5,-3)", r"(\frac{1}{2}, -3)"),
            (r"(\frac{1}{2},3)", r"(-3,\frac{1}{2})", "(1,2,-3)"),
        ),
        r"\{1,2,3\}": ((r"\{1, 2, 3\}", r"\{3,2,1\}", r"\left\{1,2,3\right\}"), (r"\{1,2\}", r"\{1,2,4\}", "(1,2,3)")),
        r"\emptyset": ((r"\emptyset", r"\emptyset."), ("0", r"\{0\}", r"\text{none}")),
    },
    "interval": {
        r"[0,\infty)": ((r"[0, \infty)", r"\left[0,\infty\right)"), (r"(0,\infty)", r"[0,\infty]", "[0,1)")),
        r"(-2,3)\cup(3,5]": (
            (r"(-2, 3) \cup (3, 5]", r"\left(-2,3\right)\cup\left(3,5\right]"),
            (r"(-2,3)\cap(3,5]", r"(-2,5]", r"[-2,3)\cup(3,5]"),
        ),
        r"[-2,7]": ((r"[-2, 7]", r"x \in [-2,7]", r"\left[-2, 7\right]"), ("(-2,7)", "[-7,2]", "[2,7]", "-2,7")),
        r"(-\infty,-1)\cup(1,\infty)": (
            (r"(-\infty, -1) \cup (1, \infty)", r"\left(-\infty,-1\right)\cup\left(1,\infty\right)"),
            (r"(-1,1)", r"(-\infty,1)\cup(1,\infty)", r"(-\infty,-1]\cup[1,\infty)"),
        ),
    },
    "matrix": {
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": (
            (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1\\ 2 \end{pmatrix}"),
            (r"\begin{pmatrix}2\\1\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", "12"),
        ),
        r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}": (
            (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{pmatrix} 1 & 0 \\ 0 & 1\end{pmatrix}"),
            (r"\begin{pmatrix}1&0\\0&-1\end{pmatrix}", r"\begin{pmatrix}0&1\\1&0\end{pmatrix}"),
        ),
        r"\begin{pmatrix} -1/2 \\ 3 \end{pmatrix}": (
            (r"\begin{pmatrix}-1/2\\3\end{pmatrix}", r"\begin{pmatrix} -\frac{1}{2} \\ 3 \end{pmatrix}"),
            (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\begin{pmatrix} 3 \\ -1/2 \end{pmatrix}", "-1/2, 3"),
        ),
    },
    "text": {
        r"\text{Tuesday}": (("Tuesday", r"\text{ Tuesday}", r"\mbox{Tuesday}"), ("Wednesday", r"\text{Tues}")),
        r"\text{(B)}": (("(B)", "B", r"\text{(B) }", r"\textbf{(B)}"), ("(C)", r"\text{(A)}", "b")),
        r"\text{even}": (("even", r"\mbox{even}", r"\text{even}."), ("odd", r"\text{neither}", "not even")),
        "Navin": (("Navin", r"\text{Navin}"), ("Evelyn", "Nav", "navin and Evelyn")),
    },
    "unit": {
        r"45^\circ": (("45", r"45^{\circ}", r"45\text{ degrees}"), ("54", r"45'", r"-45^\circ", r"\frac{\pi}{4}")),
        r"\$4.50": (("4.50", "4.5", r"\$4.5", r"4.50\text{ dollars}"), ("45", "4.05", r"\$5.40")),
        r"5\sqrt{2}\text{ cm}": ((r"5\sqrt{2}", r"\sqrt{50}", r"5\sqrt2"), (r"2\sqrt{5}", r"5\sqrt{3}", r"\sqrt{5}")),
        r"12 \text{ square inches}": (
            ("12", "12 square inches", r"12\text{ in}^2", r"12 \text{ inches}^2"),
            ("21", "1.2", r"12^2", r"\frac{1}{12}"),
        ),
        r"30\text{ mph}": (("30", "30 mph", r"30.0\text{ mph}"), ("3", "30^2", "60")),
    },
}

MARKED = " Final Answer: The final answer is $@$. I hope it is correct."


def marked(answer: str) -> str:
    """Return `answer` in the few-shot examples' final sentence."""
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
ODD: dict[str, tuple[str, ...]] = {
    "empty": (
        "",
        " ",
        "\n",
        "I do not know.",
        marked(""),
        marked(" "),
        marked("$"),
        marked(r"\boxed{}"),
        marked(r"\text{}"),
        "Final Answer: The final answer is",
        "I hope it is correct.",
    ),
    "malformed": (
        marked(r"\frac{1}{"),
        marked(r"\sqrt{"),
        marked("{{{"),
        marked("}}}"),
        marked(r"\begin{pmatrix} 1"),
        marked(r"\left( 1"),
        marked("1 2 3 4"),
        marked("+-*/"),
        marked("=" * 40),
        marked("x = "),
        marked(r"\unknowncommand{7}"),
        marked("(" * 60 + ")" * 60),
        marked(r"7\\"),
        marked("$7$"),
        marked(r"\frac{}{}"),
        marked(r"7^"),
        marked(r"\frac 7"),
        marked(r"\end{pmatrix}"),
        marked("7}"),
        marked("$$7$$"),
        marked(r"\(7\)"),
        " Final Answer: The final answer is 7. I hope it is correct",
        " final answer: the final answer is $7$. I hope it is correct.",
    ),
    "repeated": (
        "7 " * 200,
        " The The The The The" * 40,
        marked("7") * 20,
        marked("7 7 7 7"),
        marked("7") + marked("8"),
        marked("8") + marked("7"),
        (" So the answer is $7$." * 30),
        ("\n" * 300),
        marked("7" * 300),
        marked("7+" * 50 + "7"),
        marked(r"\frac{7}{" * 6 + "1" + "}" * 6),
    ),
    "strange": (
        marked("七"),
        marked(r"\text{" + "a" * 300 + "}"),
        marked(r"\frac{0}{0}"),
        marked(r"\frac{1}{0}"),
        marked(r"\infty"),
        marked(r"-\infty"),
        marked("nan"),
        marked("None"),
        marked("7;8"),
        marked(r"\{1,2\}"),
        marked(r"\{2,1\}"),
        marked("7 = 7"),
        marked("7 or 8"),
        marked("7 and 8"),
        marked(r"\pm 7"),
        marked("x=7, y=8"),
        marked("7\u2028"),
        marked("\u202e7"),
        marked("７"),
        marked("True"),
        marked("7 <script>"),
    ),
}
ODD_GOLDS = ("7", r"\{1,2\}", r"\text{Tuesday}")


def answers() -> Iterator[dict[str, str]]:
    """Yield kind, topic, completion and gold solution of every item."""
    for topic, pairs in PAIRS.items():
        for gold, (equal, near) in pairs.items():
            solution = rf"We compute it. The result is $\boxed{{{gold}}}$."
            asked = {"topic": topic, "solution": solution}
            for kind, written in (("equal", equal), ("near miss", near)):
                for text in written:
                    yield asked | {"kind": kind, "completion": FRAMES["marked"].replace("@", text)}
            for frame, template in FRAMES.items() if gold in [*pairs][:3] else ():
                yield asked | {"kind": frame, "completion": template.replace("@", gold)}
    for topic, texts in ODD.items():
        for number, text in enumerate(texts):
            gold = ODD_GOLDS[number % len(ODD_GOLDS)]
            yield {"topic": topic, "solution": rf"So it is $\boxed{{{gold}}}$.", "kind": "odd", "completion": text}


PROMPTS = Path(__file__).with_name("lm_eval_prompts.jsonl")
QUESTIONS = (
    "What is $3+4$?",
    " A question between blanks. ",
    "Two lines.\n\nProblem: and a frame inside. Solution:",
    r"Let $f(x) = \begin{cases} x & \text{if } x > 0 \\ {{ 0 }} & {% else %} \end{cases}$.",
    "Ein Umlaut: ä, ein Zeichen: 七.",
    "",
)


def prompts() -> Iterator[dict[str, object]]:
    """Yield each question with the hash of lm-eval's whole prompt, plain and as a chat, and where decoding stops."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import _yaml_loader, minerva_math

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "test.json")
        file.write_text(json.dumps({"problem": "p", "solution": r"$\boxed{1}$"}))
        config = _yaml_loader.load_yaml(Path(minerva_math.__path__[0], "minerva_math_algebra.yaml"))
        config |= {"dataset_path": "json", "dataset_name": None, "training_split": None}
        config |= {"dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": folder}}
        task = ConfigurableTask(config=config)
        for question in QUESTIONS:
            doc = {"problem": question, "solution": "s", "answer": "a"}
            chat = task.fewshot_context(doc, 4, apply_chat_template=True, chat_template=lambda messages, **_: messages)
            yield {
                "problem": question,
                "prompt_sha256": sha256(task.fewshot_context(doc, 4)),
                "chat_roles": [message["role"] for message in chat],
                "chat_sha256": sha256(chat[-1]["content"]),
                "until": task.config.generation_kwargs["until"],
            }


def sha256(text: str) -> str:
    """Return the hash of a prompt (its four examples belong to lm-eval and are not included here)."""
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write `rows` as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def scored(item: dict[str, str]) -> dict[str, object]:
    """Return `item` with lm-eval's two scores of it."""
    from lm_eval.tasks.minerva_math import utils

    boxed = utils.last_boxed_only_string(item["solution"])
    gold = utils.normalize_final_answer(utils.remove_boxed(boxed))
    scores = utils.process_results({"answer": gold, "solution": item["solution"]}, [item["completion"]])
    return item | {name: int(scores[name]) for name in ("exact_match", "math_verify")}


if __name__ == "__main__":
    write(TABLE, (scored(item) for item in answers()))
    write(PROMPTS, prompts())
