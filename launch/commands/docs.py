"""`triaxial docs`: say where the documentation and the batch scripts are, or print a page."""

import argparse
import difflib
from collections.abc import Iterable
from pathlib import Path

from gpt.errors import ConfigError
from launch.shipped import shipped_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "page",
        nargs="?",
        help="print this page, such as settings or tutorials/first_model; slurm/train.sbatch works too",
    )


def run(args: argparse.Namespace) -> int:
    """Print the folders and the names of the pages, or one page. ConfigError: there is no such page."""
    pages = _pages()
    if args.page is None:
        print(f"documentation: {shipped_folder('docs')}")
        print(f"batch scripts: {shipped_folder('slurm')}; copy the folder, then set account and partition")
        print("\nPages, which `triaxial docs PAGE` prints:")
        print("\n".join(f"  {name}" for name in _shown(pages)))
        return 0
    path = _found(args.page, pages)
    print(path.read_text(encoding="utf-8"), end="")
    return 0


def _pages() -> dict[str, Path]:
    """Name -> file; the names have no suffix, but scripts keep it."""
    docs, slurm = shipped_folder("docs"), shipped_folder("slurm")
    pages = {str(path.relative_to(docs).with_suffix("")): path for path in sorted(docs.rglob("*.md"))}
    scripts = {f"slurm/{path.name.removesuffix('.md')}": path for path in sorted(slurm.iterdir()) if path.is_file()}
    return pages | scripts


def _shown(names: Iterable[str]) -> list[str]:
    """What a user reads first, then the rest in order: tutorials, guides, references; results and decisions last."""
    order = ("tutorials/", "guides/", "slurm/", "", "results/", "adr/")
    return sorted(names, key=lambda name: (order.index(next((o for o in order if o and name.startswith(o)), "")), name))


def _found(name: str, pages: dict[str, Path]) -> Path:
    wanted = name.removeprefix("docs/").removesuffix(".md").strip("/")
    fitting = [each for each in pages if each == wanted] or [each for each in pages if each.endswith(f"/{wanted}")]
    if len(fitting) == 1:
        return pages[fitting[0]]
    if fitting:
        raise ConfigError(f"{name} is the name of several pages: {', '.join(fitting)}. Use one of them")
    raise ConfigError(f"{name}: no such page; {_nearest(wanted, pages)}")


def _nearest(wanted: str, pages: Iterable[str]) -> str:
    """The pages whose last word begins like the wanted one, those of its folder first; else those spelled like it."""
    folder, _, word = wanted.rpartition("/")
    words = {each: each.rpartition("/")[2] for each in pages}
    begun = [each for each, own in words.items() if own.startswith(word[:4]) or word.startswith(own)]
    begun.sort(key=lambda each: (not each.startswith(f"{folder}/"), not words[each].startswith(word), len(each)))
    near = begun[:2] or difflib.get_close_matches(wanted, list(words), n=1)
    near = near or [each for each, own in words.items() if own in difflib.get_close_matches(word, words.values(), n=1)]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else "use one of those that `triaxial docs` lists"
