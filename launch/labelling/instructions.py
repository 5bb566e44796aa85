"""Write a taxonomy as a page of instructions for labellers. The page has no script, and all text in it is escaped."""

from collections.abc import Iterator
from html import escape

from data_prep.reports.style import html_page
from gpt.errors import escaped
from gpt.moderation.taxonomy import Category, LabelExample, Taxonomy

_STYLE = """
body { max-width: 52rem }
.category { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem .9rem;
  margin: 1rem 0 }
.category h2 { margin: 0 0 .3rem; overflow-wrap: anywhere } .category p { margin: .4rem 0; overflow-wrap: anywhere }
.category.child { margin-left: 1.6rem }
.id { font: 600 .8em ui-monospace, monospace; border: 1px solid currentColor; border-radius: 4px; padding: 0 .3em;
  margin-right: .5rem; color: var(--s0) }
.tag { color: var(--soft); font-size: .85rem; margin-right: 1rem }
.how { white-space: pre-line }
.category li { margin: .3rem 0; overflow-wrap: anywhere }
.category ul { list-style: none; padding: 0; margin: .6rem 0 0 }
.yes, .no { font-weight: 600; margin-right: .5rem } .yes { color: var(--s1) } .no { color: var(--s2) }
.why { color: var(--soft); margin-left: .5rem }
@media (max-width: 40rem) { .category.child { margin-left: .6rem } }
@media print { .category { break-inside: avoid } }
"""


def instructions_page(taxonomy: Taxonomy) -> str:
    """The page's HTML: rules that hold for all categories, then each category after the one that contains it."""
    title = f"Instructions for labellers: {escaped(taxonomy.label)}"
    rules = [
        "Label each category for itself: a text may be positive for several, or for none.",
        "If you cannot tell, mark the category as unsure (Shift and its letter, or tap it twice). It then counts as "
        "unknown, which is better than a guess. A category without a mark counts as no.",
        "Judge the text as it stands, not what you think of its author.",
    ]
    if any(category.parent for category in taxonomy.categories):
        rules.append("A category below another is a part of it: if it is positive, the one above is positive too.")
    if any(category.severity for category in taxonomy.categories):
        rules.append("Severity 1 is the mildest.")
    cards = (category_card(category, taxonomy) for category in _in_tree_order(taxonomy))
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p class=note>{len(taxonomy.ids)} categories &middot; digest {taxonomy.digest[:16]}</p>",
        f"<ul>{''.join(f'<li>{_text(rule)}</li>' for rule in rules)}</ul>",
        *cards,
    ]
    return html_page(title, "\n".join(parts), style=_STYLE)


def category_card(category: Category, taxonomy: Taxonomy) -> str:
    """One category as HTML: definition, instructions and examples."""
    tags = [f"part of {category.parent}"] if category.parent else []
    tags += [f"severity {category.severity}"] if category.severity else []
    marks = "".join(f"<span class=tag>{_text(tag)}</span>" for tag in tags)
    how = f"<p class=how>{_text(category.instructions.strip())}</p>" if category.instructions.strip() else ""
    examples = "".join(map(_example, category.examples))
    return (
        f'<section class="category{" child" if taxonomy.ancestors(category.id) else ""}">'
        f"<h2><span class=id>{_text(category.id)}</span>{_text(category.title)}</h2>{marks}"
        f"<p>{_text(category.definition.strip())}</p>{how}{f'<ul>{examples}</ul>' if examples else ''}</section>"
    )


def _example(example: LabelExample) -> str:
    mark = "<span class=yes>positive</span>" if example.label else "<span class=no>negative</span>"
    why = f"<span class=why>{_text(example.reason)}</span>" if example.reason else ""
    return f"<li>{mark}{_text(example.text)}{why}</li>"


def _in_tree_order(taxonomy: Taxonomy, parent: str | None = None) -> Iterator[Category]:
    """The categories, each directly before those that it contains; siblings in the order of the file."""
    for category in taxonomy.categories:
        if category.parent == parent:
            yield category
            yield from _in_tree_order(taxonomy, category.id)


def _text(text: str) -> str:
    """Text as HTML, without characters that change its direction or control a terminal."""
    return escape(escaped(text))
