"""The house: who may import whom, read from the imports themselves, lazy ones included."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "stethoscope"

GROUND = {"errors", "files", "records", "results", "statistics", "locations", "progress", "releases", "use_cases"}
MAY_IMPORT = {
    "errors": set(),
    "progress": {"errors"},
    "locations": {"errors"},
    "files": {"errors"},
    "releases": {"errors"},
    "corpora": set(),
    "hub": {"errors", "progress", "locations"},
    "records": {"errors"},
    "results": {"errors", "records"},
    "statistics": {"errors"},
    "profiles": {"errors", "files", "records", "locations"},
    "recipes": {"errors", "files", "locations", "records"},
    "reach": {"recipes", "records", "results"},
    "arms": {"reach", "recipes", "records", "results"},
    "claims": {"arms", "records", "results", "statistics"},
    "verdicts": {"reach", "recipes", "records", "results", "statistics"},
    "predictions": {"arms", "claims", "records", "results", "statistics"},
    "strengths": {"records"},
    "use_cases": {"records", "results"},
    "store": GROUND | {"hub", "recipes"},
    "model": GROUND | {"store", "hub"},
    "sae": GROUND | {"store", "hub", "model"},
    "delta": GROUND | {"reach", "store", "hub", "model", "sae"},
    "minerva": GROUND | {"claims", "store", "hub", "model"},
    "figures": {"progress", "arms", "recipes", "records", "results", "predictions", "statistics", "verdicts"},
    "report": {"errors", "arms", "reach", "figures", "recipes", "results", "store", "verdicts"},
    "pipeline": GROUND | {"arms", "reach", "recipes", "store", "hub", "model", "sae", "delta", "minerva"},
    "job": GROUND,
    "jobs": GROUND | {"job", "profiles", "store", "pipeline"},
    "cli": GROUND | {"reach", "report", "profiles", "recipes", "arms", "store", "minerva", "pipeline", "verdicts"},
    "__main__": {"cli"},
    "mini": GROUND | {"profiles", "reach", "arms", "store", "model", "sae", "delta", "minerva", "pipeline"},
}
PAGES_MAY_IMPORT = {
    "report",
    "errors",
    "locations",
    "progress",
    "records",
    "results",
    "profiles",
    "recipes",
    "reach",
    "arms",
    "predictions",
    "use_cases",
    "verdicts",
    "strengths",
    "figures",
    "jobs",
    "statistics",
    "store",
    "minerva",
}
HEAVY = ("torch", "transformers", "sae_lens", "lm_eval", "datasets")


def imported_parts(path: Path) -> set[str]:
    """Return the second-level names under `stethoscope` that a file imports anywhere, TYPE_CHECKING blocks excepted."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    parts: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "stethoscope" and rest:
                parts.add(rest.split(".")[0])
    return parts - {"__version__"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        assert not imported_parts(path)
        return
    foreign = imported_parts(path) - {part} - MAY_IMPORT[part]
    assert not foreign, f"{path.relative_to(ROOT)} may not import {sorted(foreign)}"


def test_the_table_has_no_cycle() -> None:
    resolved: set[str] = set()
    waiting = dict(MAY_IMPORT)
    while waiting:
        ready = [part for part, needs in waiting.items() if needs <= resolved]
        assert ready, f"cycle among {sorted(waiting)}"
        resolved |= set(ready)
        for part in ready:
            del waiting[part]


@pytest.mark.parametrize("path", [ROOT / "app.py", *sorted((ROOT / "pages").glob("*.py"))], ids=lambda path: path.stem)
def test_pages_import_only_light_parts(path: Path) -> None:
    assert imported_parts(path) <= PAGES_MAY_IMPORT


def test_pages_leave_torch_alone() -> None:
    modules = ["stethoscope.jobs"] + [f"pages.{path.stem}" for path in sorted((ROOT / "pages").glob("_*.py"))]
    figures = [f"stethoscope.figures.{path.stem}" for path in (PACKAGE / "figures").glob("[a-z]*.py")]
    code = (
        "import sys, importlib\n"
        f"for name in {modules + figures!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_streamlit_below_the_pages() -> None:
    users = [path for path in PACKAGE.rglob("*.py") if "import streamlit" in path.read_text()]
    assert users == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_readable(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or node.lineno) - node.lineno <= 60, f"{path.name}:{node.name} is too long"
