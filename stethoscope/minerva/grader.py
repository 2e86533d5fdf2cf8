"""The grader child: `python -m stethoscope.minerva.grader` reads answers as JSON lines and writes grades as JSON lines.

exact_match is lm-evaluation-harness 0.4.13's: its own functions, loaded from the one file that holds them (importing
the package around it would drag in datasets and torch), so

    correct = is_equiv(normalize(extract(completion)), normalize(gold answer)),

and math_verify is its second metric, verify(parse(gold solution), parse(completion)). Both use signal timeouts,
which work here because everything runs on the main thread. What they swallow (a timeout, an answer or a gold answer
that cannot be parsed, a failed comparison) they log, and the log decides the status: only what was compared and found
different is `incorrect`. Each answer gives five lines, so that the parent, who kills a child at the deadline, keeps
what was already known: extraction, exact_match, math_verify, the strict score, and how the gold answer reads.
"""

import argparse
import ast
import contextlib
import importlib.util
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from stethoscope.records import GoldReading, GradeStatus

NOT_EXTRACTED = "[invalidanswer]"  # what lm-eval's get_unnormalized_answer returns without the marker sentence
ORPHAN_CPU_S = 5.0  # CPU seconds beyond the deadline after which the system ends a child whose parent is gone
_UNDECIDED = ("Failed comparing", "Had some trouble simplifying", "couldn't")  # parse one of the two, or subtract them


def lm_eval_functions() -> ModuleType:
    """Return lm-eval's module of minerva_math functions, loaded without its parent packages."""
    package = importlib.util.find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        raise ImportError("lm_eval is not installed; pip install -r requirements.txt")
    path = Path(next(iter(package.submodule_search_locations))) / "tasks" / "minerva_math" / "utils.py"
    spec = importlib.util.spec_from_file_location("lm_eval_minerva_math", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _MemoryErrorsPass(ast.NodeTransformer):
    """Lets MemoryError pass every `except` of a module, which would otherwise treat it as "not equal"."""

    def visit_Try(self, node: ast.Try) -> ast.Try:
        self.generic_visit(node)
        passing = ast.parse("try: pass\nexcept MemoryError: raise").body[0]
        assert isinstance(passing, ast.Try)
        node.handlers[:0] = passing.handlers
        return node


def math_verify_grader() -> ModuleType:
    """Return math_verify's module of comparisons, in which running out of memory is an error instead of "not equal"."""
    import math_verify.grader as module

    assert module.__file__ is not None
    tree = _MemoryErrorsPass().visit(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
    exec(compile(ast.fix_missing_locations(tree), module.__file__, "exec"), module.__dict__)
    return module


class _Overheard(logging.Handler):
    """Records the templates of messages that a library logs, such as "Timed out comparing %s and %s"."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.templates: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.templates.append(str(record.msg))

    def heard(self, *beginnings: str) -> bool:
        return any(template.startswith(beginnings) for template in self.templates)


@contextlib.contextmanager
def _overhear(logger: logging.Logger) -> Iterator[_Overheard]:
    heard = _Overheard()
    logger.addHandler(heard)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)


class Grader:
    """Grades answers one at a time, on the main thread; `patience_s` is the libraries' own timeout in whole seconds."""

    def __init__(self, patience_s: int) -> None:
        import math_verify

        self._lm_eval = lm_eval_functions()
        self._parse = math_verify.parse
        self._verify = math_verify_grader().verify
        self._patience_s = patience_s
        self._readings: dict[str, GoldReading] = {}
        for logger in (self._lm_eval.eval_logger, self._math_logger):
            logger.setLevel(logging.DEBUG)
            logger.propagate = False

    @property
    def _math_logger(self) -> logging.Logger:
        return logging.getLogger("math_verify")

    def extract(self, completion: str) -> str | None:
        """Return the answer in the marker sentence, normalised by lm-eval; None if there is no such sentence."""
        found = self._lm_eval.get_unnormalized_answer(completion)
        return None if found == NOT_EXTRACTED else self._lm_eval.normalize_final_answer(found)

    def exact_match(self, answer: str, gold: str) -> GradeStatus:
        """Return lm-eval's grade of a normalised answer, compared with the text of the gold answer."""
        with _overhear(self._lm_eval.eval_logger) as heard:
            if self._lm_eval.is_equiv(answer, self._lm_eval.normalize_final_answer(gold)):
                return GradeStatus.CORRECT
            if heard.heard("Timed out"):
                return GradeStatus.TIMEOUT
        return GradeStatus.UNPARSABLE if heard.heard(*_UNDECIDED) else GradeStatus.INCORRECT

    def strict(self, answer: str, gold: str) -> GradeStatus:
        """Return whether a normalised exact match also passes the strict metric (see `records.Grade`)."""
        expected = self._lm_eval.normalize_final_answer(gold)
        if answer == expected:
            return GradeStatus.CORRECT
        if not (self._reads_whole(answer) and self._reads_whole(expected)):
            return GradeStatus.UNPARSABLE
        theirs, ours = self._boxed(gold), self._boxed(answer)
        same = self._verify(theirs, ours, timeout_seconds=self._patience_s)
        same = same and self._verify(ours, theirs, timeout_seconds=self._patience_s)
        return GradeStatus.CORRECT if same else GradeStatus.INCORRECT

    def gold_reading(self, gold: str) -> GoldReading:
        """Return how lm-eval's parser reads the gold answer; cached, because all arms answer the same problems."""
        if gold not in self._readings:
            self._readings[gold] = self._read_gold(gold)
        return self._readings[gold]

    def _read_gold(self, gold: str) -> GoldReading:
        text = self._lm_eval.normalize_final_answer(gold)
        read = self._parse_latex(text, strict=False)
        if read is None:
            return GoldReading.UNREAD
        if not self._reads_whole(text):
            return GoldReading.DOUBTFUL
        found = [part for part in self._boxed(gold) if not isinstance(part, str)]
        number = next(iter(found), None)
        number = getattr(number, "rhs", number)  # of an equation
        agree = number is None or not read.is_number or self._verify(number, read, timeout_seconds=self._patience_s)
        return GoldReading.WHOLE if agree else GoldReading.DOUBTFUL

    def _boxed(self, text: str) -> list[Any]:
        return self._parse(f"$\\boxed{{{text}}}$", parsing_timeout=self._patience_s)

    def _reads_whole(self, text: str) -> bool:
        return self._parse_latex(text, strict=True) is not None

    def _parse_latex(self, text: str, *, strict: bool) -> Any:
        """Return the expression parsed by sympy with lm-eval's settings; with `strict`, only if it parses everything.
        None if it parses nothing."""
        from sympy import SympifyError
        from sympy.parsing.latex import LaTeXParsingError, parse_latex

        try:
            with self._lm_eval.timeout(seconds=5):
                return parse_latex(text, strict=strict)
        except (LaTeXParsingError, SympifyError, TypeError, TimeoutError):
            return None

    def math_verify(self, completion: str, solution: str) -> GradeStatus:
        """Return math_verify's grade of the whole completion, compared with the whole gold solution, with lm-eval's
        settings."""
        with _overhear(self._math_logger) as heard:
            try:
                gold = self._parse(solution, parsing_timeout=self._patience_s)
                target = self._parse(completion, parsing_timeout=self._patience_s)
                if self._verify(gold, target, timeout_seconds=self._patience_s):
                    return GradeStatus.CORRECT
            except MemoryError:
                return GradeStatus.UNPARSABLE
        if heard.heard("Timeout"):
            return GradeStatus.TIMEOUT
        if heard.heard("Error") or _only_text(gold) or not gold:
            return GradeStatus.UNPARSABLE
        if not target:
            return GradeStatus.NO_ANSWER
        return GradeStatus.UNPARSABLE if _only_text(target) else GradeStatus.INCORRECT

    def grade(self, request: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        """Grade one request {completion, solution, gold}, writing each part as soon as it is known.

        A request without a completion only checks whether its gold answer can be read.
        """
        if "completion" not in request:
            write({"gold_read": self.gold_reading(request["gold"])})
            return
        completion, solution = request["completion"], request["solution"]
        answer = self.extract(completion)
        write({"marked": answer is not None, "answer": answer or ""})
        exact = GradeStatus.NO_ANSWER if answer is None else self.exact_match(answer, request["gold"])
        write({"exact_match": exact})
        write({"math_verify": self.math_verify(completion, solution)})
        if exact is GradeStatus.CORRECT and answer is not None:
            write({"strict": self.strict(answer, request["gold"])})
        else:
            write({"strict": exact})
        write({"gold": self.gold_reading(request["gold"])})


def _only_text(extracted: list[Any]) -> bool:
    """Return whether math_verify found text but parsed none of it as mathematics."""
    return bool(extracted) and all(isinstance(part, str) for part in extracted)


def _limit_memory(memory_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    with contextlib.suppress(ValueError, OSError):  # macOS has the limit but does not allow setting it
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu(seconds: float) -> None:
    """Make the system end this process after this much CPU time, in case the parent is gone; 0 removes the limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF's default action ends the process


def main(arguments: list[str] | None = None) -> None:
    """Serve requests from stdin until it closes; stdout contains only results."""
    parser = argparse.ArgumentParser(prog="python -m stethoscope.minerva.grader")
    parser.add_argument("--deadline-s", type=float, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    options = parser.parse_args(arguments)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries goes to stderr

    def write(line: dict[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    _limit_memory(options.memory_bytes)
    grader = Grader(patience_s=math.ceil(options.deadline_s) + 1)  # the parent's deadline is earlier
    warm = {"completion": "Final Answer: The final answer is $x+1$. I hope it is correct.", "solution": "$1+x$"}
    grader.grade({**warm, "gold": "1+x"}, lambda _: None)  # first use compiles grammars and patterns
    write({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_cpu(options.deadline_s + ORPHAN_CPU_S)  # CPU time: the wall clock of a running parent is earlier
        grader.grade(request, lambda part, index=request["index"]: write({"index": index, **part}))
        _limit_cpu(0)


if __name__ == "__main__":
    main()
