"""The package: imports are declared, tested versions are allowed, and a wheel is complete."""

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TRAINING = {"peft"}  # of the extra "train": only stethoscope.mini imports it
OWN = {"stethoscope", "screens", "benchmarks", "tests"}


@functools.cache
def imported(*roots: str) -> dict[str, set[str]]:
    """Return top-level modules of third parties, and which files import them."""
    found: dict[str, set[str]] = {}
    for root in roots:
        place = ROOT / root
        for path in [place] if place.is_file() else place.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names = [node.module]
                for name in names:
                    top = name.partition(".")[0]
                    if top not in sys.stdlib_module_names and top not in OWN:
                        found.setdefault(top, set()).add(path.relative_to(ROOT).as_posix())
    return found


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def test_what_is_imported_is_declared() -> None:
    distributions = packages_distributions()
    declared = names(PROJECT["dependencies"])
    undeclared = {
        (module, path)
        for module, paths in imported("stethoscope", "screens", "app.py").items()
        for path in paths
        if not (module in TRAINING and path.startswith("stethoscope/mini/"))
        and not declared & {canonicalize_name(each) for each in distributions.get(module, [])}
    }
    assert undeclared == set()


def test_what_is_declared_is_imported_or_asked_for_by_name() -> None:
    distributions = packages_distributions()
    used = {
        canonicalize_name(each)
        for module in imported("stethoscope", "screens", "app.py")
        for each in distributions.get(module, [])
    }
    by_name = {"lm-eval", "antlr4-python3-runtime", "threadpoolctl"}  # read from files, or by a library that we import
    assert names(PROJECT["dependencies"]) - used <= by_name


def test_the_versions_that_are_tested_are_allowed() -> None:
    pins = dict(
        line.split(" ")[0].split("==")
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    pinned = {canonicalize_name(re.sub(r"\[.*\]", "", name)): Version(version) for name, version in pins.items()}
    ranges = {canonicalize_name(each.name): each for each in map(Requirement, PROJECT["dependencies"])}
    assert pinned.keys() <= ranges.keys()
    assert {name for name, version in pinned.items() if not ranges[name].specifier.contains(version)} == set()


def test_this_python_is_allowed_and_so_are_newer_ones() -> None:
    allowed = Requirement(f"x{PROJECT['requires-python']}").specifier
    assert all(allowed.contains(each) for each in ("3.11.0", "3.12.1", "3.13.0", "3.14.0"))
    assert not allowed.contains("3.10.13")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the unpacked wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."]
    built = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def run_installed(installed: Path, folder: Path, code: str) -> str:
    """Run `code` in `folder` with the unpacked wheel before everything else, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "STETHOSCOPE_HOME"}
    environment |= {"PYTHONPATH": str(installed), "XDG_DATA_HOME": str(folder / "data"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_wheel_holds_all_that_is_not_python(installed: Path) -> None:
    places = [ROOT / name for name in ("stethoscope", "screens", "static", ".streamlit", "app.py")]
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*"))]
    names = [path.relative_to(ROOT).as_posix() for path in files if path.is_file() and path.suffix != ".pyc"]
    packed = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {name if name.startswith("stethoscope/") else f"stethoscope/dashboard/{name}" for name in names} <= packed
    assert not [name for name in packed if name.startswith(("screens", "tests", "benchmarks", "runs", "cache"))]


def test_an_installed_package_serves_its_own_pages_and_writes_to_the_user_s_folder(
    installed: Path, tmp_path: Path
) -> None:
    code = (
        "from stethoscope.cli.app import app_script; from stethoscope.store.home import home;"
        "print(app_script(), app_script().is_file(), home())"
    )
    script, there, home = run_installed(installed, tmp_path, code).split()
    assert (Path(script), there) == (installed / "stethoscope" / "dashboard" / "app.py", "True")
    assert Path(home) == tmp_path / "data" / "stethoscope"


def test_the_installed_pages_find_each_other(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, sys; from stethoscope.cli.app import app_script; place = app_script().parent;"
        "sys.path.insert(0, str(place));"  # as Streamlit does
        "files = [path.relative_to(place) for path in (place / 'screens').rglob('*.py')];"
        "names = ['.'.join(path.with_suffix('').parts) for path in files if path.stem != path.parent.name];"
        "print(len([importlib.import_module(name) for name in names]), 'torch' in sys.modules)"
    )
    n_modules, torch = run_installed(installed, tmp_path, code).split()
    shared = [path for path in (ROOT / "screens").rglob("*.py") if path.stem != path.parent.name]
    assert (int(n_modules), torch) == (len(shared), "False")
