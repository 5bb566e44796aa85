"""Write the report of a run as one HTML page with its plots inside, which needs no network."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from data_prep.documents.counts import Counts
from data_prep.documents.losses import FileLoss, losses_in, reading_facts
from data_prep.pipeline import PreparedCorpus
from data_prep.reports.conversations_page import PAGE_FILE as CHATS_FILE
from data_prep.reports.dropped import DropExample
from data_prep.reports.style import html_page

_NO_DOCUMENTS = ("crawl", "read", "completions", "fitting completions")  # steps that count something else
_PAIR = ("before", "s0")  # the colours of a histogram's two series

Facts = Mapping[str, Sequence[Mapping[str, Any]]]  # stage: the facts of each of its tasks

# Tables of numbers among the facts: name to (title, note).
_TABLES = {
    "languages": ("Languages", "Documents by the first language found, before any is dropped."),
    "clusters_of_size_from": (
        "Clusters of copies",
        "Clusters by size; each label is the least size of its column. One document of each stays.",
    ),
    "masked": ("Masked", "Personal data, by kind."),
}

# Added to the shared style: bars next to a table's rows, and histograms of two series.
_STYLE = """
a { color: var(--s0) } body { max-width: 62rem } table { width: 100% } .scroll { max-height: none }
td.word { white-space: normal; overflow-wrap: break-word; max-width: 20rem }
.columns div { max-width: 12rem } .labels span { max-width: 12rem }
@media (max-width: 40rem) { td.bar { min-width: 3rem } }
.columns { display: flex; align-items: flex-end; gap: 3px; height: 11rem; border-bottom: 1px solid var(--soft) }
.columns div { flex: 1; display: flex; align-items: flex-end; justify-content: center; gap: 1px; height: 100% }
.columns i { flex: 1; background: var(--c) } .before { --c: var(--checkpoint) }
.labels { display: flex; gap: 3px; font-size: .75rem; color: var(--soft) } .labels span { flex: 1; text-align: center }
"""


def report_page(prepared: PreparedCorpus, dropped: Sequence[DropExample] = ()) -> str:
    """Return the page's HTML with examples of dropped documents. A run gives the same page, except for the seconds."""
    about = prepared.description
    parts = [
        f"<h1>{escape(prepared.folder.name)}: {about['tokens']:,} tokens, {about['documents']:,} documents</h1>",
        f"<p class=note>{escape(str(prepared.folder))} &middot; tokenizer {escape(about['tokenizer']['file'])}, "
        f"{about['vocab_size']:,} tokens</p>",
        f'<p><a href="{CHATS_FILE}">What the model sees</a></p>' if "chat" in about else "",
        _steps(prepared.counts),
        _reasons(prepared.counts),
        _examples(dropped),
        _lengths(prepared.counts),
        _losses(losses_in(reading_facts(prepared.facts))),
    ]
    for name, (title, note) in _TABLES.items():
        sums = _sums(prepared.facts, name)
        for stage, values in sums.items():
            parts.append(_bars(f"{title}: {stage}" if len(sums) > 1 else title, note, values))
    parts.append(_labels(about))
    parts.append(_scores(prepared.facts))
    parts.append(_seconds(prepared.seconds))
    body = "\n".join(part for part in parts if part)
    return html_page(f"{prepared.folder.name}: how it was made", body, style=_STYLE)


def _steps(counts: Sequence[Counts]) -> str:
    largest = max((row.documents_in for row in counts), default=0) or 1
    rows = []
    for row in counts:
        share = f"{row.documents_out / row.documents_in:.1%}" if row.documents_in else ""
        numbers = (f"{row.documents_in:,}", f"{row.documents_out:,}", share, f"{row.bytes_out / 1e6:,.1f}")
        rows.append(_row(row.step, numbers, row.documents_out / largest))
    head = ("step", "documents in", "out", "kept", "MB out", "")
    note = "In = out + dropped holds at every step. Bars: documents that stay."
    return _table("Documents by step", note, head, rows)


def _reasons(counts: Sequence[Counts]) -> str:
    found = [(n, row.step, reason) for row in counts for reason, n in row.dropped.items()]
    found.sort(key=lambda item: (-item[0], item[1:]))
    rows = [_row(f"{step}: {reason}", (f"{n:,}",), n / found[0][0], colour="s1") for n, step, reason in found[:40]]
    return _table("Dropped, by reason", "The most frequent come first.", ("step: reason", "documents", ""), rows)


def _examples(dropped: Sequence[DropExample]) -> str:
    """Show the beginnings of some dropped documents, by step and reason."""
    if not dropped:
        return ""
    by_reason: dict[str, list[DropExample]] = {}
    for example in dropped:
        by_reason.setdefault(f"{example.drop.step}: {example.drop.reason}", []).append(example)
    rows = []
    for reason, examples in by_reason.items():
        for i, example in enumerate(examples):
            detail = f" ({example.drop.detail})" if example.drop.detail else ""
            text = (example.text or "its text is not kept") + detail
            rows.append(f"<tr><td class=word>{'' if i else escape(reason)}</td><td class=text>{escape(text)}</td></tr>")
    note = (
        "The beginnings of some dropped documents, and in parentheses what the rule measured. "
        "`triaxial prepare RECIPE --dropped` prints them with their ids."
    )
    head = "<tr><th class=word>step: reason</th><th class=word>text</th></tr>"
    table = f"<div class=scroll><table>{head}{''.join(rows)}</table></div>"
    return f"<h2>Examples of what was dropped</h2><p class=note>{escape(note)}</p>{table}"


def _losses(losses: Sequence[FileLoss]) -> str:
    if not losses:
        return ""
    losses = sorted(losses, key=lambda loss: (-loss.unread_bytes, loss.path))[:40]
    rows = []
    for loss in losses:
        records = "unknown" if loss.records is None else f"{loss.records:,}"
        numbers = (f"{loss.unread_bytes / 1e6:,.1f}", f"{loss.file_bytes / 1e6:,.1f}", records)
        rows.append(_row(f"{loss.path}: {loss.reason}", numbers, loss.unread_bytes / max(loss.file_bytes, 1)))
    note = "Damaged input files; the records are estimated from the mean size of those that were read."
    return _table("Not read", note, ("file: reason", "MB not read", "MB", "records", ""), rows)


def _lengths(counts: Sequence[Counts]) -> str:
    """Plot two histograms in one: lengths of the texts after extraction, and in the corpus."""
    measured = [row for row in counts if row.sizes and row.step not in _NO_DOCUMENTS]
    if not measured:
        return ""
    first, last = measured[0], measured[-1]
    bits = [int(b) for row in (first, last) for b in row.sizes]
    pairs = {
        _size(2 ** max(b - 1, 0)): (first.sizes.get(str(b), 0), last.sizes.get(str(b), 0))
        for b in range(min(bits), max(bits) + 1)
    }
    note = "UTF-8 bytes, each column twice as long as the one before."
    return _columns("Lengths of documents", note, pairs, names=(f"after {first.step}", "in the corpus"))


def _scores(facts: Facts) -> str:
    """Plot the quality classifier's scores of all documents and of the kept ones."""
    found = list(zip(_sums(facts, "scores").values(), _sums(facts, "scores_kept").values(), strict=True))
    if not found:
        return ""
    before, after = found[0]
    pairs = {score: (n, after.get(score, 0)) for score, n in before.items()}
    return _columns("Quality scores", "Documents by score, 0 to 1.", pairs, names=("all", "kept"))


def _columns(title: str, note: str, pairs: Mapping[str, tuple[int, int]], *, names: tuple[str, str]) -> str:
    """Plot two histograms side by side; `pairs` maps a label to both numbers."""
    largest = max(max(pair) for pair in pairs.values()) or 1
    columns = []
    for label, pair in pairs.items():
        bars = "".join(
            f'<i class={colour} style="height:{100 * n / largest:.2f}%"></i>'
            for colour, n in zip(_PAIR, pair, strict=True)
        )
        what = f"from {label}: {pair[0]:,} {names[0]}, {pair[1]:,} {names[1]}"
        columns.append(f'<div title="{escape(what)}">{bars}</div>')
    labels = "".join(f"<span>{escape(label)}</span>" for label in pairs)
    named = zip(_PAIR, names, strict=True)
    key = "".join(f"<span class=key><i class={colour}></i>{escape(name)}</span>" for colour, name in named)
    head = f"<h2>{escape(title)}</h2><p class=note>{escape(note)} {key}</p>"
    return f"{head}<div class=columns>{''.join(columns)}</div><div class=labels>{labels}</div>"


def _sums(facts: Facts, name: str) -> dict[str, dict[str, int]]:
    """By stage, the sum of the fact of that name, a table of numbers, over the stage's tasks."""
    found = {}
    for stage, of_tasks in facts.items():
        sums: Counter[str] = Counter()
        for table in (task[name] for task in of_tasks if name in task):
            sums.update(table)
        if sums:
            found[stage] = dict(sums)
    return found


def _bars(title: str, note: str, values: Mapping[str, int]) -> str:
    largest = max(values.values()) or 1
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))[:40]
    return _table(title, note, ("", "", ""), [_row(key, (f"{n:,}",), n / largest) for key, n in ordered])


def _labels(about: Mapping[str, Any]) -> str:
    """Show the positive texts of each category, of a corpus of labelled texts."""
    if "labels" not in about:
        return ""
    splits = [split["labels"] for split in about["splits"].values()]
    positive = {name: sum(split[name]["positive"] for split in splits) for name in about["labels"]["categories"]}
    note = f"Positive texts of both splits by category of {about['labels']['taxonomy']}. A text may have several."
    return _bars("Labels", note, positive)


def _seconds(seconds: Mapping[str, tuple[int, float]]) -> str:
    largest = max((s for _, s in seconds.values()), default=0.0) or 1.0
    rows = [_row(stage, (f"{n:,}", f"{s:,.1f}"), s / largest) for stage, (n, s) in seconds.items()]
    note = "Time of the tasks on their workers, including those of earlier runs."
    return _table("Seconds of work", note, ("stage", "tasks", "seconds", ""), rows)


def _table(title: str, note: str, head: Sequence[str], rows: Sequence[str]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<th{'' if i else ' class=word'}>{escape(name)}</th>" for i, name in enumerate(head))
    note = f"<p class=note>{escape(note)}</p>" if note else ""
    return f"<h2>{escape(title)}</h2>{note}<div class=scroll><table><tr>{cells}</tr>{''.join(rows)}</table></div>"


def _row(name: str, numbers: Sequence[str], share: float, *, colour: str = "s0") -> str:
    cells = "".join(f"<td>{n}</td>" for n in numbers)
    bar = f'<td class=bar><div class={colour} style="width:{100 * share:.2f}%"></div></td>'
    return f"<tr><td class=word>{escape(name)}</td>{cells}{bar}</tr>"


def _size(n: int) -> str:
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)):
        if n >= size:
            return f"{n // size}{unit}"
    return str(n)
