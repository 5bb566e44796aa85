"""Find the code and the package versions that a stage's output depends on, by following imports.

The walk starts at the module of the stage function. It follows every import of a module of ours, of the function's own
package, and of other source code that is not installed from the index. An import counts wherever it stands: at the
top, inside a function, or under TYPE_CHECKING (an object of that type is passed in, and its methods run). Packages from
the index count by their version, the standard library by Python's.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUR_PACKAGES = ("gpt", "parallel", "data_prep", "launch")
# These rooms run stages and show results: no change in them can change a stage's output ...
_NEUTRAL_ROOMS = ("data_prep.execution.", "data_prep.reports.")
# ... except for the limits under which a child process reads a page or a table.
_NOT_NEUTRAL = ("data_prep.execution.child_frames", "data_prep.execution.child_process")
# These only raise errors: `gpt/__init__.py` and `data_prep/__init__.py` contain only the error for a moved module.
_NEUTRAL_MODULES = ("gpt", "gpt.errors", "gpt.moved", "data_prep", "data_prep.execution", "data_prep.reports")
_IMPORTING_CALLS = ("import_extra", "import_module", "__import__")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_INSTALLED = ("site-packages", "dist-packages")
_DIGEST_CHARACTERS = 32  # 128 bits


@dataclass(frozen=True)
class Fingerprint:
    """The code that all tasks of a stage depend on: digests of modules and versions of packages."""

    code: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True)
class _Module:
    """One source file: the digest of its code, and (name, path) of the modules and the packages that it imports."""

    digest: str
    imports: tuple[tuple[str, str], ...]
    packages: frozenset[str]


def fingerprint(
    function: Callable[..., Any], *, packages: Iterable[str] = (), ignored_packages: Iterable[str] = ()
) -> Fingerprint:
    """Fingerprint of a stage function as its files are now.

    `packages` count besides the imported ones; `ignored_packages` are imported but have no influence. Files that have
    not changed since the last call in this process are not parsed again, since workers call this for every task.
    """
    start = _start(function)
    own = start[0].partition(".")[0]
    code: dict[str, str] = {}
    found = set(packages)
    waiting = [start, *_with_parents(start[0].rpartition(".")[0])]
    while waiting:
        name, path = waiting.pop()
        if name in code:
            continue
        stat = os.stat(path)
        module = _parse(name, path, own, mtime_ns=stat.st_mtime_ns, n_bytes=stat.st_size)
        code[name] = module.digest
        found |= module.packages
        waiting += module.imports
    return Fingerprint(dict(sorted(code.items())), versions(sorted(found.difference(ignored_packages))))


def differences(run: Fingerprint, here: Fingerprint) -> list[str]:
    """Name the modules and packages in which a worker's fingerprint differs from the run's."""
    names = sorted({*run.code, *here.code})
    changed = [f"the code of {name}" for name in names if here.code.get(name) != run.code.get(name)]
    found = ((name, version, here.versions.get(name)) for name, version in run.versions.items())
    return changed + [f"{name} {other} instead of {version}" for name, version, other in found if other != version]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of Python and of each package, by import name; "absent" if it is not installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


@functools.cache
def _version(package: str) -> str:
    """Asked once a process, which takes 0.4 ms: a process also keeps the version that it has imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pass
    if importlib.util.find_spec(package) is None:
        return "absent"  # the stage itself reports that it needs the package
    distributions = importlib.metadata.packages_distributions().get(package, [])  # slow: it lists all installed files
    return " ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in set(distributions)))


def _start(function: Callable[..., Any]) -> tuple[str, str]:
    """Name and file of the module that defines a function; for a program, the same in the workers that it spawned."""
    module = sys.modules[function.__module__]
    path = module.__file__
    assert path is not None, f"{function} must be defined in a file, so that worker processes can import it"
    if function.__module__ not in ("__main__", "__mp_main__"):
        return function.__module__, path
    return (Path(path).stem if module.__spec__ is None else module.__spec__.name), path


@functools.lru_cache(1024)
def _parse(name: str, path: str, own: str, *, mtime_ns: int, n_bytes: int) -> _Module:
    """The module as its file was at that time and size; its digest leaves out comments, docstrings and layout."""
    tree = ast.parse(Path(path).read_bytes())
    _remove_docstrings(tree)
    is_package = os.path.basename(path) == "__init__.py"
    imports: dict[str, str] = {}
    packages: set[str] = set()
    for imported in _imported_names(tree, package=name if is_package else name.rpartition(".")[0], path=path):
        top = imported.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if not _is_followed(top, own):
            packages.add(top)
        else:
            imports.update(_with_parents(imported))
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return _Module(digest, tuple(imports.items()), frozenset(packages))


def _remove_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                del node.body[0]


def _imported_names(tree: ast.AST, *, package: str, path: str) -> Iterator[str]:
    """Dotted names that a module may import; of `from a import b` both `a` and `a.b`, which need not be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0] if node.args else None
            if called in _IMPORTING_CALLS and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _named_in_text(node.value, package=package, path=path)


def _named_in_text(text: str, *, package: str, path: str) -> Iterator[str]:
    """Child processes are started by the dotted name of a module of ours, or by the name of a file next to this one."""
    if text.endswith(".py") and text.removesuffix(".py").isidentifier():
        if os.path.isfile(os.path.join(os.path.dirname(path), text)):
            yield f"{package}.{text.removesuffix('.py')}".removeprefix(".")
    elif len(text) < 200 and _DOTTED.fullmatch(text) and text.partition(".")[0] in OUR_PACKAGES:
        yield text


def _is_followed(top: str, own: str) -> bool:
    """Return whether a package's code counts, not its version: ours, the function's own, or not from the index."""
    if top in OUR_PACKAGES or top == own:
        return True
    path = _find(top)
    return path is not None and not any(part in _INSTALLED for part in Path(path).parts)


def _is_neutral(name: str) -> bool:
    return name in _NEUTRAL_MODULES or (name.startswith(_NEUTRAL_ROOMS) and name not in _NOT_NEUTRAL)


def _with_parents(name: str) -> Iterator[tuple[str, str]]:
    """(name, path) of a module and of the packages around it, whose `__init__.py` runs first, without neutral ones."""
    parts = name.split(".")
    for module in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
        path = None if _is_neutral(module) else _find(module)
        if path is not None:
            yield module, path


def _find(name: str) -> str | None:
    """Source file of a module, found without importing anything; None if it has none."""
    top, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # no name, or a module made by hand that has no spec
        return None
    if spec is None:
        return None
    if not parts:
        return spec.origin if spec.origin is not None and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        stem = os.path.join(folder, *parts)
        for path in (f"{stem}.py", os.path.join(stem, "__init__.py")):
            if os.path.isfile(path):
                return path
    return None
