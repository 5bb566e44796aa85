"""The child process of the documentation crawl: render pages with pydoc and print them. Run as a script.

`--list` prints the name of every page, one a line. Without it, names come in on stdin, and one JSON line a page goes
out, in the same order: {"name", "html"} or {"name", "error"}. The modules of the standard library are imported here,
so that their effects (crashes, prints, changes of global state) stay out of the pipeline.
"""

import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import pkgutil
import pydoc
import re
import sys
import sysconfig
from collections.abc import Iterator
from typing import Any

# Test suites, programs that run or open a window when imported, and modules that only test CPython's own build.
LEFT_OUT = {"antigravity", "this", "test", "idlelib", "turtledemo", "__hello__", "__phello__", "__main__", "pydoc_data"}
LEFT_OUT_PARTS = {"__main__", "tests", "test", "idle_test"}
LEFT_OUT_PREFIXES = ("_test", "_xx", "xx")
# Text that differs between runs: `<object object at 0x7f..>`, also with &nbsp; for a space, and handles of ctypes.
ADDRESS = re.compile(r"(?: |&nbsp;)(?:at(?: |&nbsp;)0x|handle(?: |&nbsp;))[0-9a-f]{6,}")


WRAPPED_AT = 50  # a line of prose that is followed by another of its paragraph has at least this many characters


class UnwrappedPage(pydoc.HTMLDoc):
    """pydoc's page, with each paragraph of prose on one line, as on a web page: a browser wraps it.

    The docstrings are wrapped by hand, so that a rule that looks at lines would see parts of sentences.
    """

    def markup(self, text: str, *args: Any, **names: Any) -> str:
        return super().markup(join_paragraphs(text), *args, **names)


def join_paragraphs(text: str) -> str:
    """Join the lines of each paragraph that is wrapped prose. Code, tables and lists keep their lines."""
    joined: list[str] = []
    for is_blank, lines in itertools.groupby(text.split("\n"), key=lambda line: not line.strip()):
        paragraph = list(lines)
        if is_blank or not _is_wrapped_prose(paragraph):
            joined += paragraph
        else:
            joined.append(paragraph[0].rstrip() + "".join(f" {line.strip()}" for line in paragraph[1:]))
    return "\n".join(joined)


def _is_wrapped_prose(lines: list[str]) -> bool:
    indents = {len(line) - len(line.lstrip()) for line in lines}
    is_long = all(len(line.strip()) >= WRAPPED_AT for line in lines[:-1])
    return is_long and len(indents) == 1 and not any(line.lstrip().startswith((">>>", "...", "|")) for line in lines)


def page_names() -> Iterator[str]:
    """Yield `module NAME` for each module of the standard library, `topic NAME` for each topic of pydoc, sorted."""
    for name in sorted(sys.stdlib_module_names):
        if name not in LEFT_OUT and not name.startswith(LEFT_OUT_PREFIXES):
            yield f"module {name}"
            spec = importlib.util.find_spec(name)  # does not run a top-level module
            folders = list(spec.submodule_search_locations or []) if spec else []
            yield from (f"module {submodule}" for submodule in _submodules(name, folders))
    from pydoc_data import topics

    yield from (f"topic {name}" for name in sorted(topics.topics))


def _submodules(package: str, folders: list[str]) -> Iterator[str]:
    for found in sorted(pkgutil.iter_modules(folders), key=lambda found: found.name):
        if found.name in LEFT_OUT_PARTS or found.name.startswith(LEFT_OUT_PREFIXES):
            continue
        yield f"{package}.{found.name}"
        if found.ispkg:
            yield from _submodules(f"{package}.{found.name}", [os.path.join(folder, found.name) for folder in folders])


def render(page: str) -> str:
    """Render the page that `pydoc -b` would serve, without wrapped lines, this machine's paths and memory addresses."""
    kind, _, name = page.partition(" ")
    html = UnwrappedPage()
    if kind == "topic":
        from pydoc_data import topics

        body = html.bigsection(name, "index", f"<pre>{html.markup(topics.topics[name])}</pre>")
        title = f"Help on {name}"
    else:
        module = importlib.import_module(name)
        body = html.document(module, name)
        title = pydoc.describe(module)
    text = ADDRESS.sub("", html.page(title, body))
    for folder, shown in ((sysconfig.get_path("stdlib"), "/usr/lib/python3"), (sys.base_prefix, "/usr")):
        text = text.replace(folder, shown)
    return text


def main() -> None:
    """Print the list, or the pages named on stdin."""
    if sys.argv[1:] == ["--list"]:
        print("\n".join(page_names()))
        return
    names = sys.stdin.read().split("\n")
    # A module may print, read or close the standard streams at import, so the pages go out through a private copy.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    for name in filter(None, names):
        try:
            with contextlib.redirect_stdout(sys.__stderr__):
                line = {"name": name, "html": render(name)}
        except (Exception, SystemExit) as error:
            line = {"name": name, "error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(line) + "\n")  # ASCII, so that a lone surrogate in a docstring can pass
        out.flush()


if __name__ == "__main__":
    main()
