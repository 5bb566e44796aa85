"""The rules of the house that a machine can count: sizes, names, import cycles, and a test for each module.

    python tests/house_rules.py        prints what breaks a rule; exit status 1 if anything does

`make check` runs it, and tests/test_layering.py shows that each rule can fail.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

PACKAGES = ("gpt", "parallel", "data_prep", "launch")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ROOM_MODULES, MAX_LOOSE_MODULES = 300, 50, 14, 5
JSON_PARSER = Path("gpt/files/json_text.py")


def modules(root: Path) -> list[Path]:
    """All modules of the packages, `__init__.py` left out, relative to `root`."""
    found = (path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*.py"))
    return sorted(path for path in found if path.name != "__init__.py")


def sizes(root: Path) -> Iterator[str]:
    """Files and functions that are too long, tests and benchmarks included for files."""
    others = (path.relative_to(root) for folder in ("tests", "benchmarks") for path in (root / folder).rglob("*.py"))
    for path in [*modules(root), *sorted(others)]:
        source = (root / path).read_text(encoding="utf-8")
        lines = len(source.splitlines())
        if path.parts[0] in PACKAGES and lines > MAX_FILE_LINES:
            yield f"{path}: {lines} lines; at most {MAX_FILE_LINES}. Look for the second thing it does"
        if path.parts[0] not in PACKAGES:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    yield f"{path}:{node.lineno}: {node.name} has {length} lines; at most {MAX_FUNCTION_LINES}"


def class_names(root: Path) -> Iterator[str]:
    """Class names that two modules define: one name means one thing in the whole project."""
    defined = [
        (node.name, str(path))
        for path in modules(root)
        for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    for name, group in groupby(sorted(defined), key=lambda pair: pair[0]):
        places = [place for _, place in group]
        if len(places) > 1:
            yield f"class {name} is defined in {' and '.join(places)}; rename all but one"


def rooms(root: Path) -> Iterator[str]:
    """Rooms with too many modules, packages with too many loose ones, and rooms without a README."""
    folders = {path.parent for path in modules(root)}
    for folder in sorted(folders):
        count = sum(path.parent == folder for path in modules(root))
        limit = MAX_LOOSE_MODULES if len(folder.parts) == 1 else MAX_ROOM_MODULES
        if count > limit:
            yield f"{folder}/: {count} modules; at most {limit}. Look for a second subject"
        if not (root / folder / "README.md").exists():
            yield f"{folder}/: no README.md; say in a few lines what lives here"


def imports(root: Path, path: Path) -> set[str]:
    """The project's modules that a module imports when it is loaded, dotted."""
    found: set[str] = set()
    for node in _at_load(ast.parse((root / path).read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _at_load(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run at load: not those of functions, nor those that only a type checker sees."""
    for node in body:
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.dump(node.test):
                yield from _at_load([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _at_load([*node.body, *node.orelse, *node.finalbody])
        else:
            yield node


def cycles(root: Path) -> Iterator[str]:
    """Import cycles between modules."""
    names = {str(path.with_suffix("")).replace("/", "."): path for path in modules(root)}
    edges = {name: sorted(imports(root, path) & names.keys() - {name}) for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> Iterator[str]:
        if name in trail:
            yield f"import cycle: {' -> '.join([*trail[trail.index(name) :], name])}"
        elif name not in done:
            for other in edges[name]:
                yield from visit(other, [*trail, name])
            done.add(name)

    for name in edges:
        yield from visit(name, [])


def untested(root: Path) -> Iterator[str]:
    """Modules that no test in the mirrored folder imports, runs by name, or is named after."""
    for path in modules(root):
        folder = root / "tests" / path.parent
        dotted = str(path.with_suffix("")).replace("/", ".")
        parent, name = dotted.rsplit(".", 1)
        tests = sorted(folder.glob("test_*.py")) if folder.is_dir() else []
        if any(test.stem == f"test_{name}" for test in tests):
            continue
        texts = [test.read_text(encoding="utf-8") for test in tests]
        if not any(dotted in text or f"from {parent} import {name}" in text for text in texts):
            yield f"{path}: no test leads to it; add tests/{path.parent}/test_{name}.py, or import it in a test there"


def json_parsers(root: Path) -> Iterator[str]:
    """Modules that parse JSON themselves: damaged text may raise RecursionError there, which nobody expects."""
    for path in modules(root):
        for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
            parses = isinstance(node, ast.Attribute) and node.attr in ("load", "loads")
            if parses and isinstance(node.value, ast.Name) and node.value.id == "json" and path != JSON_PARSER:
                yield f"{path}:{node.lineno}: json.{node.attr}; use decode_json of {JSON_PARSER}"


RULES = (sizes, class_names, rooms, cycles, untested, json_parsers)


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    found = [line for rule in RULES for line in rule(root)]
    print("\n".join(found) or f"house rules: {len(modules(root))} modules, none breaks one")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
