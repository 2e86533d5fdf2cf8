"""Grades equal lm-eval's, and a hostile answer (bomb, kill, crash) costs at most its own grade."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from stethoscope.errors import Cancelled, CorpusError, ResourceError, StethoscopeError
from stethoscope.minerva import grading
from stethoscope.minerva.grader import Grader, lm_eval_functions
from stethoscope.minerva.grading import Answer, GraderPool
from stethoscope.minerva.problems import answer_of
from stethoscope.progress import Progress
from stethoscope.records import GoldReading, Grade, GradeStatus

CORRECT, INCORRECT = GradeStatus.CORRECT, GradeStatus.INCORRECT
WHOLE, DOUBTFUL, UNREAD = GoldReading.WHOLE, GoldReading.DOUBTFUL, GoldReading.UNREAD
NO_ANSWER, UNPARSABLE, TIMEOUT = GradeStatus.NO_ANSWER, GradeStatus.UNPARSABLE, GradeStatus.TIMEOUT


def final(answer: str) -> str:
    return f" Steps. Final Answer: The final answer is ${answer}$. I hope it is correct."


GOLD_7 = f"3+4=7.{final('7')}"
BOMB = final("9^{9^{9^9}}")
# name, completion, gold solution, exact_match status
CASES = [
    ("equal", final("7"), GOLD_7, CORRECT),
    ("unequal", final("8"), GOLD_7, INCORRECT),
    ("no marker", " 3+4=7, so it is $7$", GOLD_7, NO_ANSWER),
    ("empty", "", GOLD_7, NO_ANSWER),
    ("cut before the last sentence", " Final Answer: The final answer is $7$", GOLD_7, NO_ANSWER),
    ("cut inside the last sentence", " Final Answer: The final answer is $7$. I hope", GOLD_7, NO_ANSWER),
    ("first marker counts", final("7") + final("8"), GOLD_7, CORRECT),
    ("decimal and fraction", final("0.5"), r"It is $\boxed{\frac{1}{2}}$.", CORRECT),
    ("unsimplified", final(r"\frac{2}{4}"), r"It is $\boxed{\frac12}$.", CORRECT),
    ("unit", final(r"7\text{ cm}"), r"$\boxed{7}$", CORRECT),
    ("unit in the gold answer", final("7"), r"$\boxed{7\text{ cm}}$", CORRECT),
    ("thousands", final("1,000"), r"$\boxed{1000}$", CORRECT),
    ("expanded", final("x^2+2x+1"), r"$\boxed{(x+1)^2}$", CORRECT),
    ("same tuple", final("(1,2)"), r"$\boxed{(1,2)}$", CORRECT),
    ("other tuple", final("(1,3)"), r"$\boxed{(1,2)}$", UNPARSABLE),
    ("number for a tuple", final("3"), r"$\boxed{(1,2)}$", UNPARSABLE),
    ("word", final("blue"), "The sky is blue." + final("blue"), CORRECT),
    ("other word", final("green"), "The sky is blue." + final("blue"), INCORRECT),
    ("garbage", final(r"\frac{1}{"), GOLD_7, UNPARSABLE),
    ("empty answer", " Final Answer: The final answer is $$. I hope it is correct.", GOLD_7, UNPARSABLE),
    ("not latin", final("七") + "\u2028\x00\n", GOLD_7, None),
    ("newline in the marker", " Final Answer: The final answer\nis $7$. I hope it is correct.", GOLD_7, NO_ANSWER),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(n_workers=1, deadline_s=30.0) as shared:
        yield shared


def test_grades_are_those_of_lm_eval(pool: GraderPool) -> None:
    reference = lm_eval_functions()
    grades = pool.grade([(completion, solution) for _, completion, solution, _ in CASES])
    for (name, completion, solution, expected), grade in zip(CASES, grades, strict=True):
        gold = reference.normalize_final_answer(answer_of(solution))
        theirs = reference.process_results({"answer": gold, "solution": solution}, [completion])
        assert (grade.exact_match is CORRECT) == bool(theirs["exact_match"]), name
        assert (grade.math_verify is CORRECT) == bool(theirs["math_verify"]), name
        assert expected is None or grade.exact_match is expected, name
        assert grade.marked == (grade.exact_match is not NO_ANSWER), name


def test_the_two_metrics_differ_where_they_should(pool: GraderPool) -> None:
    unmarked, nothing = pool.grade([(" 3+4=7, so it is $7$", GOLD_7), (" I do not know", GOLD_7)])
    assert unmarked == Grade(exact_match=NO_ANSWER, math_verify=CORRECT, strict=NO_ANSWER, gold=WHOLE, marked=False)
    assert nothing.math_verify is NO_ANSWER


def test_what_math_verify_could_not_read_or_compare_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = Grader(patience_s=5)
    assert grader.math_verify(final("8"), GOLD_7) is INCORRECT
    for malformed in (r"\frac{1}{", "x=", r"\begin{pmatrix}1"):  # found, and read as text alone
        assert grader.math_verify(final(malformed), GOLD_7) is UNPARSABLE
        assert grader.math_verify(final("8"), final(malformed)) is UNPARSABLE

    def fail(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("math_verify.grader.sympy_expr_eq", fail)  # which verify swallows, and says "not equal"
    assert grader.math_verify(final("8"), GOLD_7) is UNPARSABLE


def test_the_gold_answer_can_be_given_and_must_be_somewhere(pool: GraderPool) -> None:
    (given,) = pool.grade([Answer(final("7"), "no answer here", "14/2")])
    assert (given.exact_match, given.math_verify, given.answer) == (CORRECT, CORRECT, "7")
    with pytest.raises(CorpusError, match="has no answer"):
        pool.grade([(final("7"), "7")])  # an answer is no solution: it would be graded against nothing


def test_many_answers_keep_their_order(pool: GraderPool) -> None:
    assert pool.grade([]) == []
    answers = [(final(str(number)), final(str(number if number % 3 else -1))) for number in range(70)]
    grades = pool.grade(answers)
    assert [grade.answer for grade in grades] == [str(number) for number in range(70)]
    assert [grade.exact_match is CORRECT for grade in grades] == [number % 3 != 0 for number in range(70)]


BOMBS = {
    "tower": BOMB,
    "braces": final("{" * 10_000),
    "nested fractions": final("\\frac{1}{" * 400 + "1" + "}{1}" * 400),
    "factorials": final("((((9!)!)!)!)"),
    "binomial": final(r"\binom{10^{12}}{10^{6}}"),
    "nested text": final("\\text{" * 2000 + "}" * 2000),
    "backtracking": "Final Answer: The final answer is " * 1200,
    "dollars": final("$" * 9000),
    "megabyte behind the answer": final("7") + "x" * 1_000_000,
    "megabyte": "y" * 1_000_000,
}
GRADES_OF_BOMBS = {  # marked, exact_match, math_verify
    "tower": (True, TIMEOUT, TIMEOUT),
    "braces": (True, UNPARSABLE, TIMEOUT),
    "nested fractions": (True, UNPARSABLE, TIMEOUT),
    "factorials": (True, TIMEOUT, TIMEOUT),
    "binomial": (True, TIMEOUT, TIMEOUT),
    "nested text": (True, TIMEOUT, TIMEOUT),
    "backtracking": (False, TIMEOUT, TIMEOUT),  # extracting the answer is what takes so long
    "dollars": (True, UNPARSABLE, NO_ANSWER),
    "megabyte behind the answer": (True, CORRECT, CORRECT),
    "megabyte": (False, NO_ANSWER, NO_ANSWER),
}


PATIENCE_S = 120.0  # what ends by itself takes at most 0.2 s of processor time (a megabyte of "y")


class Impatient(GraderPool):
    """Gives answers `PATIENCE_S`, but only a second to those that are `endless`, by index.

    The second begins with the line that has the field named there: what that says must not depend on time.
    """

    def __init__(self, endless: dict[int, str | None], memory_bytes: int = 2 << 30) -> None:
        super().__init__(n_workers=1, deadline_s=PATIENCE_S, memory_bytes=memory_bytes)
        self.endless = endless

    def _collect(self, child: grading._Child, part: dict[str, object], index: int, last: str) -> None:
        if (field := self.endless.get(index)) is not None:
            super()._collect(child, part, index, field)
        self.deadline_s = 1.0 if index in self.endless else PATIENCE_S
        try:
            super()._collect(child, part, index, last)
        finally:
            self.deadline_s = PATIENCE_S  # of the next child


def test_bombs_cost_their_own_deadline_and_nobody_else_s_grade() -> None:
    """Called from another thread, like the job worker does; signal timeouts would not work there."""
    fine = (final("7"), GOLD_7)
    answers = [answer for bomb in BOMBS.values() for answer in ((bomb, GOLD_7), fine)]
    grades: list[Grade] = []
    endless: dict[int, str | None] = {}
    for at, (marked, exact, verified) in enumerate(GRADES_OF_BOMBS.values()):
        if verified is TIMEOUT:  # the second begins behind the last line that does not depend on time
            endless[2 * at] = None if not marked else "marked" if exact is TIMEOUT else "exact_match"
    with Impatient(endless) as pool:
        thread = threading.Thread(target=lambda: grades.extend(pool.grade(answers)))
        thread.start()
        thread.join(600)
        assert not thread.is_alive()
    assert [(grade.exact_match, grade.math_verify) for grade in grades[1::2]] == [(CORRECT, CORRECT)] * len(BOMBS)
    found = zip(BOMBS, grades[::2], strict=True)
    assert {name: (grade.marked, grade.exact_match, grade.math_verify) for name, grade in found} == GRADES_OF_BOMBS


def test_the_deadline_is_one_for_all_lines_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that sends each of its three lines late gets only the rest of the deadline, not a new one."""
    given: list[float] = []
    now = [100.0]
    monkeypatch.setattr(grading, "time", SimpleNamespace(monotonic=lambda: now[0]))
    lines = iter([{"marked": True, "answer": "7"}, {"exact_match": CORRECT}, {"math_verify": CORRECT}])

    class Slow(grading._Child):
        def __init__(self) -> None:
            """Start no process."""

        def receive(self, timeout_s: float) -> dict[str, object]:
            given.append(timeout_s)
            now[0] += 8.0
            return {"index": 0} | next(lines)

    with GraderPool(deadline_s=30.0) as pool:
        pool._collect(Slow(), {}, 0, "math_verify")
    assert given == [30.0, 22.0, 14.0]


def test_a_bomb_in_the_gold_solution_costs_the_deadline_too() -> None:
    with Impatient({0: "marked", 1: "exact_match"}) as pool:
        grades = pool.grade([(final("7"), BOMB), Answer(final("7"), "z" * 1_000_000, "7"), (final("7"), GOLD_7)])
        pool.endless = {1: None, 4: None}
        assert pool.read_golds(["7", "{" * 10_000, "(1,2)", "", "x" * 1_000_000, "8"]) == [
            WHOLE,
            UNREAD,
            UNREAD,
            UNREAD,
            UNREAD,
            WHOLE,
        ]
    assert (grades[0].exact_match, grades[0].math_verify) == (TIMEOUT, TIMEOUT)
    assert (grades[1].exact_match, grades[2].exact_match) == (CORRECT, CORRECT)


def test_running_out_of_memory_is_not_called_different(monkeypatch: pytest.MonkeyPatch) -> None:
    """math_verify's comparisons catch every exception; numbers of gigabytes came out as "incorrect"."""
    import sympy

    grader = Grader(patience_s=5)
    assert grader.math_verify(final("8"), GOLD_7) is INCORRECT

    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    for name in ("simplify", "evalf", "doit", "equals", "is_zero"):
        monkeypatch.setattr(sympy.Basic, name, exhausted, raising=False)
    assert grader.math_verify(final("x+8"), r"$\boxed{x+7}$") is UNPARSABLE


def test_the_memory_of_a_child_is_limited() -> None:
    """2^(2^36) has 8 GB; the child's limit is lower, and its successor is unaffected."""
    with Impatient({0: "marked"}, memory_bytes=600 << 20) as pool:
        grades = pool.grade([(final("2^{68719476736}"), GOLD_7), (final("7"), GOLD_7)])
        limits = open(f"/proc/{next(iter(pool._children)).process.pid}/limits").read()  # noqa: SIM115
    assert {grades[0].exact_match, grades[0].math_verify} <= {UNPARSABLE, TIMEOUT}
    assert grades[1].exact_match is CORRECT
    assert str(600 << 20) in next(line for line in limits.splitlines() if line.startswith("Max address space"))


def test_what_was_known_before_the_deadline_is_kept() -> None:
    """exact_match compares equal texts; only math_verify reads both of the solution's boxes."""
    with Impatient({0: "exact_match"}) as pool:
        (grade,) = pool.grade([(final("7"), r"So $\boxed{9^{9^{9^9}}}$ or $\boxed{7}$")])
    assert (grade.answer, grade.exact_match, grade.math_verify) == ("7", CORRECT, TIMEOUT)


def test_what_the_libraries_time_out_by_themselves_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both catch their own timeouts and return False; here the algebra sleeps for more than a second."""
    grader = Grader(patience_s=1)
    reference = grader._lm_eval
    patient = reference.timeout
    monkeypatch.setattr(reference, "timeout", lambda seconds: patient(seconds=1))
    monkeypatch.setattr(reference, "parse_latex", lambda _: time.sleep(5))
    assert grader.exact_match("8", "7") is TIMEOUT
    monkeypatch.setattr("math_verify.grader.sympy_expr_eq", lambda *_: time.sleep(5))
    assert grader.math_verify(final("8"), GOLD_7) is TIMEOUT


@pytest.mark.parametrize("n_workers", [1, 2])
def test_many_threads_share_the_pool(n_workers: int) -> None:
    found: dict[int, list[str]] = {}
    with GraderPool(n_workers=n_workers, deadline_s=30.0) as pool:

        def work(number: int) -> None:
            answers = [(final(str(100 * number + index)), GOLD_7) for index in range(20)]
            found[number] = [grade.answer for grade in pool.grade(answers)]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pool._children) <= n_workers
    assert found == {number: [str(100 * number + index) for index in range(20)] for number in range(3)}


def test_a_killed_child_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed from outside while idle, and during an answer, which is graded again."""
    with GraderPool(deadline_s=30.0) as pool:
        assert pool.grade([(final("7"), GOLD_7)])[0].exact_match is CORRECT
        (child,) = pool._children
        os.kill(child.process.pid, signal.SIGKILL)
        assert pool.grade([(final("7"), GOLD_7)])[0].exact_match is CORRECT
        assert child not in pool._children
        (child,) = pool._children
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.wait()
        send, died = grading._Child.send, []

        def die_once(self: grading._Child, lines: bytes) -> None:
            if self.alive() and not died:
                died.append(self)
                self.process.kill()
                self.process.wait()
            send(self, lines)

        with monkeypatch.context() as once:
            once.setattr(grading._Child, "send", die_once)
            (grade,) = pool.grade([(final("7"), GOLD_7)])
        assert grade.exact_match is CORRECT, "a child that was found dead is not held against the answer"
        assert died
        (child,) = pool._children
        receive, lines = grading._Child.receive, []

        def kill_at_line_51(self: grading._Child, timeout_s: float) -> dict:
            lines.append(receive(self, timeout_s))
            if len(lines) == 51:  # one of five lines of the eleventh answer is there
                os.kill(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise grading._ChildDied
            return lines[-1]

        monkeypatch.setattr(grading._Child, "receive", kill_at_line_51)
        grades = pool.grade([(final("7"), GOLD_7)] * 40)
        assert child not in pool._children
        assert [(grade.exact_match, grade.math_verify) for grade in grades] == [(CORRECT, CORRECT)] * 40


def test_an_answer_that_always_ends_the_child_is_unparsable(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def die(self: grading._Child, lines: bytes) -> None:
        sent.append(self.process.pid)
        raise grading._ChildDied

    monkeypatch.setattr(grading._Child, "send", die)
    with GraderPool(deadline_s=5.0) as pool:
        (grade,) = pool.grade([(final("7"), GOLD_7)])
        assert pool._children == set()
    assert grade == Grade(exact_match=UNPARSABLE, math_verify=UNPARSABLE, strict=UNPARSABLE, marked=False)
    assert len(set(sent)) == 2  # tried once more in a fresh child


def test_a_child_that_cannot_start_is_one_clear_error() -> None:
    with GraderPool(memory_bytes=1 << 20) as pool:
        with pytest.raises(ResourceError, match="the grader process did not start"):
            pool.grade([(final("7"), GOLD_7)])
        assert pool._children == set()


def test_cancel_is_seen_between_batches(pool: GraderPool) -> None:
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        pool.grade([(final("7"), GOLD_7)], progress=progress)
    assert pool.grade([(final("7"), GOLD_7)])[0].exact_match is CORRECT


def test_close_ends_the_children_and_the_pool() -> None:
    pool = GraderPool(deadline_s=30.0)
    pool.close()
    pool = GraderPool(deadline_s=30.0)
    pool.grade([(final("7"), GOLD_7)])
    (child,) = pool._children
    pool.close()
    pool.close()
    assert child.process.poll() is not None
    with pytest.raises(AssertionError, match="closed"):
        pool.grade([(final("7"), GOLD_7)])


@pytest.mark.parametrize("doing", ["waiting", "grading a bomb"])
def test_children_do_not_outlive_a_killed_parent(doing: str) -> None:
    code = (
        "import os, signal\n"
        "from stethoscope.minerva import grading\n"
        "pool = grading.GraderPool(deadline_s=1.0)\n"
        "with pool._child() as child:\n"
        "    print(child.process.pid, flush=True)\n"
        "receive = grading._Child.receive\n"
        "def end(*_):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def end_in_the_midst(child, timeout_s):\n"
        "    receive(child, 600)\n"  # the bomb was extracted: now it is computed
        "    end()\n"
        f"if {doing == 'waiting'}:\n"
        "    end()\n"
        "grading._Child.receive = end_in_the_midst\n"
        f"pool.grade([({BOMB!r}, {BOMB!r})])\n"
    )
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout)
    for _ in range(3000):  # one that hangs has deadline_s + 5 s of CPU time left
        try:
            state = open(f"/proc/{pid}/stat").read().split(")")[-1].split()[0]  # noqa: SIM115
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the grader child outlived its parent")


PLANTED_CHILD = """
import stethoscope.minerva.grader as grader

class Planted(grader.Grader):
    def __init__(self, patience_s):
        self.patience_s = patience_s

    def grade(self, request, write):
        print("a library's noise, patience", self.patience_s)
        while request.get("hangs"):
            pass
        write({"marked": False})

grader.Grader, grader.ORPHAN_CPU_S = Planted, 0.2
grader.main(["--deadline-s", "0.3", "--memory-bytes", str(8 << 30)])
"""


def test_a_child_answers_in_json_alone_and_ends_by_itself_where_nobody_ends_it() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", PLANTED_CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, noise = child.communicate('{"index": 0}\n{"index": 1, "hangs": true}\n', timeout=600)
    finally:
        child.kill()
    assert [json.loads(line) for line in said.splitlines()] == [{"ready": True}, {"index": 0, "marked": False}]
    assert "a library's noise, patience 2" in noise, "the libraries' own timeouts come after the parent's"
    assert child.returncode == -signal.SIGPROF


def test_batches_fit_into_a_pipe_and_keep_their_order() -> None:
    sizes = [100] * 40 + [9_000] * 5 + [40_000] + [8_192, 8_192, 1] + [100]
    requests = [grading._Request(index, b"x" * size) for index, size in enumerate(sizes)]
    batches = list(grading._batches(requests))
    assert [request for batch in batches for request in batch] == requests
    for batch in batches:
        assert len(batch) == 1 or sum(len(request.line) for request in batch) <= grading.BATCH_BYTES
    assert [len(batch) for batch in batches] == [16, 16, 9, 1, 1, 1, 1, 1, 2, 2]


def test_an_answer_out_of_turn_is_no_grade() -> None:
    class Confused(grading._Child):
        def __init__(self) -> None:
            """Start no process."""

        def receive(self, timeout_s: float) -> dict[str, object]:
            return {"index": 5, "math_verify": CORRECT}

    with GraderPool() as pool, pytest.raises(StethoscopeError, match="out of order"):
        pool._collect(Confused(), {}, 4, "math_verify")


def test_half_a_surrogate_pair_in_a_completion_is_graded(pool: GraderPool) -> None:
    (grade,) = pool.grade([(final("7\ud835"), GOLD_7)])
    assert grade.marked
    assert grade.answer == "7?"


def test_a_pool_that_is_forgotten_ends_its_children() -> None:
    pool = GraderPool(deadline_s=30.0)
    pool.grade([(final("7"), GOLD_7)])
    (child,) = pool._children
    del pool
    gc.collect()
    assert child.process.poll() == -signal.SIGKILL


def test_the_child_imports_little() -> None:
    code = (
        "import sys\n"
        "from stethoscope.minerva.grader import Grader\n"
        "Grader(patience_s=5)\n"
        "heavy = {'torch', 'datasets', 'transformers', 'pandas', 'lm_eval'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
