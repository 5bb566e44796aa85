"""`triaxial evaluate`: validation loss, perplexity and few-shot accuracy of a run's model; never trains."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpt.dataset import CorpusConfig, ValidationData
from gpt.errors import ConfigError, import_extra
from gpt.evaluation.few_shot import FewShotOptions, OpenTasks, TaskScore, few_shot_scores, open_tasks
from gpt.evaluation.gpt3_problems import words_of_file, words_of_python
from gpt.evaluation.perplexity import TokenCounts, Tokens, count_targets, validation_loss
from launch import evaluate_text
from launch.evaluation_tables import print_few_shot, print_texts, print_validation
from launch.loading import LoadedRun, add_device_arguments, add_run_arguments, load_for_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        help="few-shot tasks: gpt3 (the default without --text: all fifteen), gpt3_arithmetic, gpt3_words, one of them "
        "by name, a task of lm-evaluation-harness whose data is on this machine, or none",
    )
    parser.add_argument(
        "--num-fewshot",
        nargs="+",
        type=int,
        default=[0, 1, 5],
        metavar="K",
        help="examples before each question (default: 0 1 5)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="questions per task (default: all)")
    parser.add_argument(
        "--words", type=Path, metavar="FILE", help="text whose words are scrambled (default: Python's help)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for questions and examples (default: 0)")
    evaluate_text.add_arguments(parser)
    parser.add_argument("--max-validation-tokens", type=int, metavar="N", help="of each corpus, from its start")
    parser.add_argument("--batch-tokens", type=int, default=8192, metavar="N", help="tokens per batch (default: 8192)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE too")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    only_text = bool(args.text) and args.tasks is None
    args.tasks = args.tasks or (["none"] if only_text else ["gpt3"])
    tasks = few_shot_tasks(args)
    for name in ("max_validation_tokens", "batch_tokens"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1")
    texts = evaluate_text.open_texts(args)
    if args.json is not None:
        check_writable(args.json)
    loaded = load_for_command(args)
    console = Console()
    for note in loaded.saved.notes:
        console.print(note)
    saved = loaded.saved
    report: dict[str, Any] = {
        "run": str(saved.run_directory),
        "checkpoint": str(saved.checkpoint_path),
        "step": saved.step,
        "tokens_seen": saved.tokens_seen,
        "parameters": saved.model_config.parameters,
    }
    if texts:
        with _progress() as progress:
            report["text"] = evaluate_text.evaluate_texts(loaded, texts, args, progress)
        print_texts(console, report["text"])
    if not only_text:
        report |= evaluate_validation(loaded, max_tokens=args.max_validation_tokens, batch_tokens=args.batch_tokens)
        print_validation(console, report)
    if tasks is not None:
        scores = evaluate_few_shot(loaded, tasks)
        report["few_shot"] = [asdict(score) for score in scores]
        words = tasks.options.words
        report["words"] = {"source": words.source, "count": len(words.words), "sha256": words.sha256}
        print_few_shot(console, scores)
    if args.json is not None:
        partial = args.json.with_name(f".{args.json.name}.partial")
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.replace(args.json)
        console.print(f"written to {args.json}", highlight=False)
    return 0


def few_shot_tasks(args: argparse.Namespace) -> OpenTasks | None:
    """What --tasks and its companions ask for; None when it is `none`. Fails before anything is loaded."""
    if args.tasks == ["none"]:
        return None
    if "none" in args.tasks:
        raise ConfigError(f"--tasks {' '.join(args.tasks)}: 'none' stands alone")
    import_extra("lm_eval", extra="eval")
    options = FewShotOptions(
        tasks=tuple(args.tasks),
        shots=tuple(dict.fromkeys(args.num_fewshot)),
        limit=args.limit,
        words=words_of_python() if args.words is None else words_of_file(args.words),
        seed=args.seed,
        batch_tokens=args.batch_tokens,
    )
    return open_tasks(options)


def evaluate_validation(loaded: LoadedRun, *, max_tokens: int | None, batch_tokens: int) -> dict[str, Any]:
    """Loss, perplexity and unigram entropy of each validation corpus, and of all their tokens together."""
    corpora = [_Windows(loaded, corpus, max_tokens, batch_tokens) for corpus in loaded.saved.data_config.validation]
    results: dict[str, Any] = {}
    n_tokens, total = 0, 0.0
    counts = np.zeros(loaded.model.vocab_size, dtype=np.int64)
    with _progress() as progress:
        for corpus in corpora:
            task = progress.add_task(f"validation loss, {corpus.name}", total=corpus.n_windows)
            frequencies = count_targets(corpus.batches(), loaded.model.vocab_size)
            loss = validation_loss(loaded.model, _advancing(corpus.batches(), progress, task))
            results[corpus.name] = {
                "loss_nats": loss.nats_per_token,
                "perplexity": loss.perplexity,
                "unigram_entropy_nats": frequencies.entropy_nats,
                "tokens": loss.tokens,
            }
            n_tokens, total = n_tokens + loss.tokens, total + loss.nats_per_token * loss.tokens
            counts += frequencies.counts
    if not corpora:
        return {"validation": {}}
    return {
        "validation": results,
        "validation_loss_nats": total / n_tokens,
        "unigram_entropy_nats": TokenCounts(counts).entropy_nats,
        "validation_tokens": n_tokens,
    }


def evaluate_few_shot(loaded: LoadedRun, tasks: OpenTasks) -> list[TaskScore]:
    """Scores of all tasks, with a progress bar over the harness's requests."""
    with _progress() as progress:
        bar = progress.add_task("few-shot tasks", total=None)
        return few_shot_scores(
            loaded.model,
            loaded.saved.tokenizer,
            tasks,
            n_ctx=loaded.saved.model_config.n_ctx,
            progress=lambda finished, total: progress.update(bar, completed=finished, total=total),
        )


def check_writable(path: Path) -> None:
    """ConfigError before the work when its result could not be written after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with open(path, "a"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"--json {path} cannot be written: {error.strerror}") from None


class _Windows:
    """The windows of one validation corpus that are evaluated, in batches."""

    def __init__(self, loaded: LoadedRun, corpus: CorpusConfig, max_tokens: int | None, batch_tokens: int) -> None:
        seq_len = loaded.saved.data_config.seq_len
        self.name = corpus.name
        self.data = ValidationData(corpus, seq_len=seq_len, vocab_size=loaded.model.vocab_size)
        wanted = self.data.n_windows if max_tokens is None else max(1, max_tokens // seq_len)
        self.n_windows = min(self.data.n_windows, wanted)
        self.at_once = max(1, batch_tokens // seq_len)

    def batches(self) -> Iterator[Tokens]:
        """Token ids (n, seq_len + 1)."""
        for start in range(0, self.n_windows, self.at_once):
            yield self.data.batch(start, min(start + self.at_once, self.n_windows))


def _advancing(batches: Iterator[Tokens], progress: Progress, task: Any) -> Iterator[Tokens]:
    for batch in batches:
        yield batch
        progress.advance(task, len(batch))


def _progress() -> Progress:
    """A bar on standard error, so that piped output holds results only."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    console = Console(stderr=True)
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal)
