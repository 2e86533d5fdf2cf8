"""The layers of the package: which modules may import which, read from all imports including lazy ones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "stethoscope"

GROUND = {
    "errors",
    "files",
    "formatting",
    "records",
    "results",
    "statistics",
    "locations",
    "progress",
    "releases",
    "use_cases",
}
MAY_IMPORT = {
    "errors": set(),
    "progress": {"errors"},
    "formatting": set(),
    "locations": {"errors"},
    "files": {"errors"},
    "releases": {"errors"},
    "corpora": set(),
    "hub": {"errors", "progress", "locations"},
    "records": {"errors"},
    "results": {"errors", "records"},
    "statistics": {"errors"},
    "use_cases": {"records", "results"},
    "profiles": {"errors", "files", "records", "locations"},
    "recipes": {"errors", "files", "locations", "records", "results"},
    "judging": {"errors", "formatting", "recipes", "records", "results", "statistics"},
    "store": GROUND | {"hub", "recipes"},
    "model": GROUND | {"store", "hub"},
    "sae": GROUND | {"store", "hub", "model"},
    "delta": GROUND | {"recipes", "store", "hub", "model", "sae"},
    "minerva": GROUND | {"store", "hub", "model"},
    "figures": {"formatting", "progress", "judging", "recipes", "records", "results", "statistics"},
    "report": {"errors", "formatting", "judging", "figures", "recipes", "results", "store"},
    "pipeline": GROUND | {"judging", "recipes", "store", "hub", "model", "sae", "delta", "minerva"},
    "jobs": GROUND | {"profiles", "store", "pipeline"},
    "cli": GROUND | {"judging", "report", "profiles", "recipes", "store", "minerva", "pipeline"},
    "__main__": {"cli"},
    "mini": GROUND | {"profiles", "judging", "recipes", "store", "model", "sae", "delta", "minerva", "pipeline"},
}
SCREENS_MAY_IMPORT = {
    "report",
    "errors",
    "formatting",
    "locations",
    "progress",
    "records",
    "results",
    "profiles",
    "recipes",
    "judging",
    "use_cases",
    "figures",
    "jobs",
    "statistics",
    "store",
    "minerva",
}
HEAVY = ("torch", "transformers", "sae_lens", "lm_eval", "datasets")


def imported_parts(path: Path, package: str = "stethoscope") -> set[str]:
    """Return the second-level names under `package` that a file imports anywhere, TYPE_CHECKING blocks excepted."""
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
            if top == package and rest:
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


SCREEN_FILES = sorted((ROOT / "screens").rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", [ROOT / "app.py", *SCREEN_FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_screens_import_only_light_parts(path: Path) -> None:
    assert imported_parts(path) <= SCREENS_MAY_IMPORT


@pytest.mark.parametrize("path", SCREEN_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_screen_imports_its_own_cards_and_what_is_shared(path: Path) -> None:
    """`links` is above the screens; a card never imports a page (the file named like its folder), which draws."""
    (_, *folder, _) = path.relative_to(ROOT).parts
    foreign = {part for part in imported_parts(path, "screens") if part not in ("shared", *folder)}
    if path.name == "links.py":
        return
    assert foreign <= ({"links"} if folder == ["runs"] else set()), f"{path.relative_to(ROOT)} imports {foreign}"


def test_streamlit_finds_no_pages_by_itself() -> None:
    """A folder called pages/ beside app.py would make an address in a fresh process run its file alone."""
    assert not list((ROOT / "pages").rglob("*.py"))


def test_screens_leave_torch_alone() -> None:
    cards = [module_of(path) for path in SCREEN_FILES if path.stem != path.parent.name]
    modules = ["stethoscope.jobs.worker", *cards]
    figures = [f"stethoscope.figures.{path.stem}" for path in (PACKAGE / "figures").glob("[a-z]*.py")]
    code = (
        "import sys, importlib\n"
        f"for name in {modules + figures!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_streamlit_below_the_screens() -> None:
    users = [path for path in PACKAGE.rglob("*.py") if "import streamlit" in path.read_text()]
    assert users == []
