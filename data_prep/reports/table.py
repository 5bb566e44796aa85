"""Print the tables at the end of a run: documents and bytes in, out and dropped by reason, and findings of the
stages."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_prep.conversations.check import length_lines
from data_prep.corpus.split import SplitConfig
from data_prep.decontamination.decontaminate import REPORT
from data_prep.documents.counts import Counts
from data_prep.documents.losses import FileLoss, losses_in, reading_facts, sum_of_losses
from data_prep.documents.quarantine import first_failed
from data_prep.documents.shards import Document, parent_id
from data_prep.execution.files import disk_errors
from data_prep.execution.progress import say
from data_prep.execution.shard_runs import ShardRun
from data_prep.pipeline import PreparedCorpus
from data_prep.readers.readers import NOT_UTF8
from data_prep.reports.conversations_page import PAGE_FILE as CHATS_FILE
from data_prep.reports.conversations_page import conversations_page
from data_prep.reports.dropped import DropExample, DroppedDocuments, dropped_documents
from data_prep.reports.explain import Fate
from data_prep.reports.page import report_page
from gpt.errors import ConfigError, escaped

_SHOWN = 5  # files, or grams
_SHARDS_OF_PAGE = 4  # of each stage, from which the page has examples: a corpus may have drops by the million
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def show(prepared: PreparedCorpus, work: Path, console: Console) -> None:
    """Print the table and the path of the corpus, and write the report page to the `work` folder."""
    page = work / "report.html"
    dropped: list[DropExample] = []
    if "labels" not in prepared.description:  # whose texts are offensive: no page shows them
        with suppress(ConfigError):  # the record of a run is damaged: the page has no examples
            dropped = dropped_documents(work, most_shards=_SHARDS_OF_PAGE).examples
    chats = work / CHATS_FILE
    with disk_errors(page):
        page.write_text(report_page(prepared, dropped), encoding="utf-8")
        if "chat" in prepared.description:
            chats.write_text(conversations_page(prepared.folder, prepared.description), encoding="utf-8")
    console.print(counts_table(prepared.counts))
    show_lost(prepared, console)
    for found in prepared.facts.get(REPORT, []):
        show_decontamination(found, console)
    for kind in dict.fromkeys(kind for facts in prepared.facts.get("pii", []) for kind in facts["masked"]):
        n = sum(facts["masked"][kind] for facts in prepared.facts["pii"])
        say(console, f"pii: {n:,} of kind {kind} masked")
    for line in length_lines(prepared.facts.get("render", [])):
        say(console, line)
    description = prepared.description
    if "labels" in description:
        console.print(labels_table(description))
    for name, split in description["splits"].items():
        first = prepared.folder / split["shards"][0]["name"]
        more = f" and {len(split['shards']) - 1} more" if len(split["shards"]) > 1 else ""
        documents = f"{split['documents']:,} document{'' if split['documents'] == 1 else 's'}"
        say(console, f"{name}: {split['tokens']:,} tokens, {documents} -> {first}.bin, {first}.idx{more}")
    about = description["tokenizer"]
    say(console, f"tokenizer: {about['vocab_size']:,} tokens -> {prepared.folder / about['file']}")
    say(
        console,
        f"entropy of the validation tokens' frequencies: {description['unigram_entropy_nats']:.4f} nats "
        "(the loss of the best model without context)",
    )
    if "chat" in description:
        say(console, f"what the model sees: {chats}")
    say(console, f"report with plots: {page}")


def show_lost(run: PreparedCorpus | ShardRun, console: Console) -> None:
    """Print the unread parts and the quarantined documents of a run, also if it ends with an error."""
    read = reading_facts(run.facts)
    show_losses(losses_in(read), console)
    show_encodings([facts[NOT_UTF8] for facts in read if NOT_UTF8 in facts], console)
    show_quarantine(run.quarantined, console)


def show_losses(losses: Sequence[FileLoss], console: Console) -> None:
    """Print how much of the input could not be read, and the files that lost most."""
    if not losses:
        return
    total = sum_of_losses(losses)
    more = " or more" if any(loss.records is None for loss in losses) else ""
    lines = [
        f"not read: {in_bytes(total['bytes'])} in {total['files']:,} damaged input files, about {total['records']:,} "
        f"records{more}. "
        "Get these files again, and run the same command"
    ]
    for loss in sorted(losses, key=lambda loss: (-loss.unread_bytes, loss.path))[:_SHOWN]:
        records = "an unknown number of" if loss.records is None else f"about {loss.records:,}"
        lines.append(
            f"  {loss.path}: {loss.reason} ({loss.detail}): {in_bytes(loss.unread_bytes)} of "
            f"{in_bytes(loss.file_bytes)} not read, {records} records"
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_encodings(files: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Name the files whose documents were dropped for their encoding."""
    if not files:
        return
    n_documents = sum(about["documents"] for about in files)
    names = ", ".join(about["path"] for about in files[:_SHOWN])
    more = f" and {len(files) - _SHOWN:,} more" if len(files) > _SHOWN else ""
    console.print(
        f"dropped for their encoding: {n_documents:,} documents in {len(files):,} files that are neither UTF-8 "
        f"nor in input.encoding: {names}{more}. Set input.encoding, such as cp1252, or let `triaxial init` find it",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def show_quarantine(quarantined: Mapping[str, Sequence[tuple[Path, int]]], console: Console) -> None:
    """Print the number of documents on which each stage failed, and one of them."""
    for stage, files in quarantined.items():
        entry = first_failed(files[0][0])
        console.print(
            f"{stage} failed on {sum(n for _, n in files):,} documents, set aside in {files[0][0].parent}. "
            f"One of them: {entry['id']}, record {entry['record']} of {entry['shard']}: {entry['exception']}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def show_fates(fates: Sequence[Fate], split: SplitConfig, console: Console) -> None:
    """Print a document's way through the steps: those it passed, and the step that dropped it or the split it is in."""
    for fate in fates:
        lines = [f"{step}: passed" for step in fate.steps]
        if fate.dropped is not None:
            drop = fate.dropped
            detail = f" ({drop.detail})" if drop.detail else ""
            lines.append(f"{drop.step}: dropped, {drop.reason}{detail}; {drop.bytes:,} bytes")
        for document in fate.kept:
            part = "validation" if split.is_validation(parent_id(document.id)) else "training"
            about = ", ".join(f"{key} {value}" for key, value in _described(document).items())
            kept = f"kept as {document.id} in the {part} split" if fate.finished else f"so far kept as {document.id}"
            lines.append(f"{kept}; {document.n_bytes:,} bytes" + (f"; {about}" if about else ""))
        if not fate.finished:
            lines.append("but that run is not complete: later steps may drop it")
        lines.append(f"source: {fate.shard}")
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
        console.print()


def _described(document: Document) -> dict[str, Any]:
    """What to show of a document besides its id: its metadata, or of a conversation, its own id and its answers."""
    if "conversation" not in document.metadata:
        return document.metadata
    values = document.metadata["conversation"]
    about = {"id": values["source_id"], "labeller": values["labeller"], "answers": len(values["answers"])}
    return {key: value for key, value in about.items() if value != ""}


def show_file(fates: Sequence[Fate], split: SplitConfig, console: Console) -> None:
    """Print how the documents of a file fared, in numbers, and the way of the first ones."""
    ways = Counter(f"dropped by {f.dropped.step}, {f.dropped.reason}" if f.dropped else "kept" for f in fates)
    for way, n in ways.most_common():
        console.print(f"{n:,} documents: {way}", highlight=False, markup=False)
    console.print()
    show_fates(fates[:_SHOWN], split, console)


def show_dropped(found: DroppedDocuments, console: Console) -> None:
    """Print the dropped documents by step and reason, each with the beginning of some texts."""
    if not found.counts:
        console.print("the last run dropped no document")
    for (step, reason), n in found.counts.items():
        console.print(f"{step}: {reason}: {n:,} documents", highlight=False, markup=False)
        for example in (e for e in found.examples if (e.drop.step, e.drop.reason) == (step, reason)):
            drop = example.drop
            detail = f" ({drop.detail})" if drop.detail else ""
            line = escaped(f"  {drop.id}: {drop.bytes:,} bytes{detail}")
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            if example.text:
                console.print(escaped(f"    {example.text}"), highlight=False, markup=False, soft_wrap=True)
    for folder in found.folders:
        console.print(f"all of them: {folder}/*.dropped.jsonl.zst", highlight=False, markup=False, soft_wrap=True)


def counts_table(counts: Sequence[Counts]) -> Table:
    """Make a row a step, and below it one for each reason; asserts that the documents of every step add up."""
    table = Table(title="documents by step", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("step, reason", no_wrap=True)
    for name in ("docs in", "dropped", "docs out", "bytes in", "bytes out"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in counts:
        n_dropped = sum(row.dropped.values())
        assert row.documents_in == row.documents_out + n_dropped, row
        numbers = (f"{row.documents_in:,}", f"{n_dropped:,}", f"{row.documents_out:,}")
        table.add_row(row.step, *numbers, in_bytes(row.bytes_in), in_bytes(row.bytes_out), style="bold")
        for reason, n in sorted(row.dropped.items(), key=lambda item: (-item[1], item[0])):
            table.add_row(f"  {reason}", "", f"{n:,}", "", "", "")
    return table


def labels_table(description: Mapping[str, Any]) -> Table:
    """Make a row a category: positive and negative labels of each split."""
    table = Table(title="labels by category", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("category")
    for split in description["splits"]:
        for kind in ("positive", "negative"):
            table.add_column(f"{split} {kind}", justify="right")
    for name in description["labels"]["categories"]:
        cells = [about["labels"][name] for about in description["splits"].values()]
        table.add_row(name, *(f"{cell[kind]:,}" for cell in cells for kind in ("positive", "negative")))
    return table


def in_bytes(n: int) -> str:
    """Format a size in the largest unit of which it has at least one."""
    for unit, size in _UNITS:
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"


def show_decontamination(report: Mapping[str, Any], console: Console) -> None:
    """Print a row a set, and the grams that occurred most often."""
    columns = ("examples", "too short", "hit", "grams", "hit", "too frequent", "documents")
    table = _table("evaluation sets in the corpus", "set", columns)
    for about in report["sets"]:
        keys = ("examples", "too_short", "examples_hit", "grams", "grams_hit", "grams_ignored", "documents_hit")
        table.add_row(about["name"], *(f"{about[key]:,}" for key in keys))
    console.print(table)
    console.print(
        f"documents with text of a set: {report['documents_hit']:,}; cut and kept: {report['documents_cut']:,}, "
        f"which lost {report['characters_cut']:,} characters",
        highlight=False,
        soft_wrap=True,
    )
    for title, key in (("cut out most often", "grams_cut"), ("too frequent, left in", "grams_ignored")):
        _show_grams(title, report[key], console)


def show_overlap(summary: Mapping[str, Any], console: Console) -> None:
    """Print a row a set, the dirtiest first, as in table C.1 of the GPT-3 paper."""
    title = f"evaluation sets against {summary['training_documents']:,} training documents"
    table = _table(title, "set", ("N", "examples", "too short", "dirty", "clean", "clean %"))
    for about in sorted(summary["sets"], key=lambda s: (s["clean_percent"], s["name"])):
        keys = ("n_words", "examples", "too_short", "dirty", "clean")
        table.add_row(about["name"], *(f"{about[key]:,}" for key in keys), f"{about['clean_percent']:.1f}")
    console.print(table)


def _show_grams(title: str, grams: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not grams:
        return
    console.print(f"{title} (documents, gram):", highlight=False)
    for row in grams[:_SHOWN]:
        console.print(f"  {row['documents']:>9,}  {row['gram']}", highlight=False, markup=False, soft_wrap=True)


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
