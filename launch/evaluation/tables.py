"""Print the tables of `triaxial evaluate`."""

import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt.evaluation.few_shot.scores import TaskScore
from gpt.evaluation.perplexity import perplexity


def print_validation(console: Console, report: dict[str, Any]) -> None:
    """Print loss and unigram entropy, one row per corpus."""
    title = f"Validation at step {report['step']:,} ({report['tokens_seen']:,} tokens seen), nats per token"
    if not report["validation"]:
        console.print(f"{title}: the run names no validation corpus", highlight=False)
        return
    table = _table(title)
    table.add_column("corpus")
    for column in ("tokens", "loss", "unigram entropy", "below it by", "perplexity"):
        table.add_column(column, justify="right")
    for name, values in report["validation"].items():
        loss, entropy = values["loss_nats"], values["unigram_entropy_nats"]
        figures = (f"{values['tokens']:,}", f"{loss:.4f}", f"{entropy:.4f}", f"{entropy - loss:+.4f}")
        table.add_row(name, *figures, f"{values['perplexity']:.2f}")
    console.print(table)


def print_texts(console: Console, report: dict[str, Any]) -> None:
    """Print the loss per token, word and byte, three rows per text."""
    table = _table(f"Perplexity, windows of {report['window']:,} tokens with a stride of {report['stride']:,}")
    table.add_column("text", overflow="fold")
    table.add_column("per")
    for column in ("count", "nats", "bits", "perplexity"):
        table.add_column(column, justify="right")
    together = {"all texts": report["together"]} if "together" in report else {}
    for name, values in (report["texts"] | together).items():
        for unit in ("token", "word", "byte"):
            nats = values[f"nats_per_{unit}"]
            bits = None if nats is None else nats / math.log(2)
            figures = (_number(nats, 4), _number(bits, 4), _number(perplexity(nats), 2))
            table.add_row(Text(name if unit == "token" else ""), unit, f"{values[f'{unit}s']:,}", *figures)
    console.print(table)


def print_few_shot(console: Console, scores: list[TaskScore]) -> None:
    """Print one row per task and metric, one column per number of examples; accuracies in percent.

    A metric or a number of questions that all rows share goes into the title, to save width.
    """
    metrics = {score.metric for score in scores}
    items = {score.items for score in scores}
    labelled = any(score.label != score.task for score in scores)
    shots = sorted({score.shots for score in scores})
    title = f"Few-shot {next(iter(metrics)).replace('_', ' ') if len(metrics) == 1 else 'scores'} ± standard error"
    table = _table(title + (f", {next(iter(items)):,} questions per task" if len(items) == 1 else ""))
    headers = ["", "task"] if labelled else ["task"]
    for header in [*headers, *(["metric"] if len(metrics) > 1 else []), *(["items"] if len(items) > 1 else [])]:
        table.add_column(header, justify="right" if header == "items" else "left")
    for k in shots:
        table.add_column(f"{k} example{'' if k == 1 else 's'}", justify="right")
    rows: dict[tuple[str, str], dict[int, TaskScore]] = {}
    for score in scores:
        rows.setdefault((score.task, score.metric), {})[score.shots] = score
    for (task, metric), by_shots in rows.items():
        first = next(iter(by_shots.values()))
        cells = [first.label if first.label != task else "", task] if labelled else [task]
        cells += [metric] if len(metrics) > 1 else []
        cells += [f"{first.items:,}"] if len(items) > 1 else []
        table.add_row(*cells, *(_cell(by_shots[k]) if k in by_shots else "" for k in shots))
    console.print(table)
    cut = [f"{s.label} with {s.shots}: {s.truncated} of {s.items}" for s in scores if s.truncated]
    if cut:
        console.print(f"contexts that were too long and lost their beginning: {'; '.join(cut)}", highlight=False)


def print_clean_subset(console: Console, scores: list[TaskScore]) -> None:
    """Print scores with an overlap analysis: over all items, the clean and the dirty ones."""
    split = [score for score in scores if score.clean_items is not None]
    if not split:
        return
    table = _table("Items that occur in the training text (dirty) and that do not (clean), ± standard error")
    for column in ("task", "metric", "examples", "items", "", "score"):
        table.add_column(column, justify="right" if column in ("examples", "", "score") else "left")
    for s in split:
        parts = (
            ("all", s.items, s.value, s.standard_error),
            ("clean", s.clean_items, s.clean_value, s.clean_standard_error),
            ("dirty", s.dirty_items, s.dirty_value, s.dirty_standard_error),
        )
        for name, items, value, error in parts:
            first = (s.label, s.metric, str(s.shots)) if name == "all" else ("", "", "")
            table.add_row(*first, name, f"{items:,}", _part(s.metric, value, error))
    console.print(table)
    missing = sorted({score.label for score in scores} - {score.label for score in split})
    if missing:
        console.print(f"not in the overlap analysis: {', '.join(missing)}", highlight=False)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}" if value < 1e7 else f"{value:.3g}"


def _cell(score: TaskScore) -> str:
    return _part(score.metric, score.value, score.standard_error)


def _part(metric: str, value: float | None, standard_error: float | None) -> str:
    if value is None:
        return ""
    percent = metric.startswith(("exact_match", "acc"))
    scale, digits = (100, 1) if percent else (1, 4)
    error = "" if standard_error is None else f" ± {standard_error * scale:.{digits}f}"
    return f"{value * scale:.{digits}f}{'%' if percent else ''}{error}"
