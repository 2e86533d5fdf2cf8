"""An import hook that checks each call of a function whose signature names a shape, as in ``Float[Tensor, "n d"]``.

jaxtyping's own hook wraps every function of a package, even without shapes to check, which takes a third of the test
suite's time. This hook wraps only functions and dataclasses that name a shape.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from beartype import beartype
from jaxtyping import jaxtyped


def checked(annotated: Any) -> Any:
    """Return a function or dataclass that raises `TypeCheckError` where a shape or dtype is not as annotated."""
    return jaxtyped(annotated, typechecker=beartype)


@contextmanager
def checked_shapes(package: str) -> Iterator[None]:
    """Check the calls of every function in the modules of `package` that are first imported inside."""
    finder = _Finder(package)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self._package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, SourceFileLoader) or spec.origin is None:
            return None
        loader = _Loader(fullname, spec.origin)
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=loader, submodule_search_locations=spec.submodule_search_locations
        )


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        """Compile a module with shapes again, so that no wrapped code remains in its cache."""
        source = self.get_data(self.path)
        return self.source_to_code(source, self.path) if b"jaxtyping" in source else super().get_code(fullname)

    def source_to_code(self, data: Any, path: Any, **options: Any) -> Any:  # pyrefly: ignore[bad-override]
        tree = ast.parse(data)
        names = _shape_names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and _mention(names, [node.args, node.returns]):
                node.decorator_list.append(_checked_at(node))  # below all others: they may change the signature
            if isinstance(node, ast.ClassDef) and _mention(
                names, [line for line in node.body if isinstance(line, ast.AnnAssign)]
            ):
                node.decorator_list.insert(0, _checked_at(node))  # above: a dataclass has been made by then
        return super().source_to_code(ast.fix_missing_locations(tree), path, **options)


def _checked_at(node: ast.stmt) -> ast.expr:
    decorator = ast.parse("__import__('tests.shapes', fromlist=['checked']).checked", mode="eval").body
    return ast.copy_location(decorator, node)


def _shape_names(tree: ast.Module) -> set[str]:
    """Return what a module imports from jaxtyping, and the names that it gives to types made of that."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping":
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign) and _mention(names, [node.value]):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _mention(names: set[str], nodes: Sequence[ast.AST | None]) -> bool:
    parts = (part for node in nodes if node is not None for part in ast.walk(node))
    return any(isinstance(part, ast.Name) and part.id in names for part in parts)
