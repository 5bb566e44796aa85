"""`triaxial evaluate`: validation loss, perplexity and few-shot accuracy of a run's model."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import ValidationData
from gpt.errors import one_line
from gpt.evaluation.few_shot.scores import TaskScore, few_shot_scores
from gpt.evaluation.few_shot.tasks import OpenTasks
from gpt.evaluation.perplexity import TokenCounts, TokenRows, count_targets, validation_loss
from gpt.inference.cpu_model import packed
from gpt.post_training.sft import LEARNED
from gpt.tokenizer.special_tokens import special_tokens_of
from launch.config.run_arguments import is_first_process, starts_ranks
from launch.evaluation import texts as text_evaluation
from launch.evaluation.few_shot_arguments import few_shot_tasks
from launch.evaluation.sample_logs import check_sample_folder, write_samples
from launch.evaluation.tables import print_clean_subset, print_few_shot, print_texts, print_validation
from launch.evaluation.wandb_record import record_in_wandb
from launch.processes.terminal import SafeConsole, WorkProgress, work_progress
from launch.reports.written import check_destination, json_destination
from launch.runs.imported_run import HUGGING_FACE
from launch.runs.open_model import OpenedModel, opened_model, start_ranks
from launch.runs.saved_run import objective_section


def run(args: argparse.Namespace) -> int:
    only_text = (bool(args.text) or args.truthful_qa is not None) and args.tasks is None
    args.tasks = args.tasks or (["none"] if only_text else ["gpt3"])
    tasks = few_shot_tasks(args)
    texts = text_evaluation.open_texts(args)
    check_destination("--json", args.json)
    if args.log_samples is not None and is_first_process():
        check_sample_folder(args.log_samples)
    if starts_ranks(args):
        return start_ranks(args)
    with json_destination(args.json if is_first_process() else None) as emit, opened_model(args) as opened:
        opened = replace(opened, model=packed(opened.model, rows=args.batch_tokens))
        emit(evaluate_opened(args, opened, tasks=tasks, texts=texts, validation=not only_text))
    return 0


def evaluate_opened(
    args: argparse.Namespace,
    opened: OpenedModel,
    *,
    tasks: OpenTasks | None,
    texts: list[text_evaluation.TextSource],
    validation: bool,
) -> dict[str, Any]:
    """Run all evaluations and return the results. Every rank of a layout must call it; the main rank prints them."""
    saved = opened.saved
    if tasks is not None:
        tasks.check_answers(n_ctx=saved.model_config.n_ctx)
    console = SafeConsole(quiet=not opened.is_main)
    for note in saved.notes:
        console.print(one_line(note), markup=False)
    report: dict[str, Any] = {
        "run": str(saved.run_directory),
        "checkpoint": str(saved.checkpoint.path),
        "step": saved.step,
        "tokens_seen": saved.tokens_seen,
        "parameters": saved.model_config.parameters,
    }
    if texts:
        with work_progress(shows=opened.is_main) as progress:
            report["text"] = text_evaluation.evaluate_texts(opened, texts, args, progress)
        print_texts(console, report["text"])
    if validation:
        report |= evaluate_validation(opened, max_tokens=args.max_validation_tokens, batch_tokens=args.batch_tokens)
        print_validation(console, report)
    scores: list[TaskScore] = []
    if tasks is not None:
        if opened.is_main and args.tasks == ["gpt3"]:
            print("few-shot tasks follow, as no --tasks are named; --tasks none leaves them out", file=sys.stderr)
        tasks, left_out = tasks.that_fit(saved.tokenizer, n_ctx=saved.model_config.n_ctx)
        scores = evaluate_few_shot(opened, tasks, log_samples=args.log_samples)
        report["few_shot"] = [asdict(score) for score in scores]
        report |= tasks.sources()
        print_few_shot(console, scores)
        print_clean_subset(console, scores)
        for note in left_out:
            console.print(note, highlight=False)
    if args.wandb and opened.is_main:
        record_in_wandb(saved, report, scores, warn=lambda text: console.print(text, highlight=False))
    return report


def evaluate_validation(opened: OpenedModel, *, max_tokens: int | None, batch_tokens: int) -> dict[str, Any]:
    """Return loss, perplexity and unigram entropy of each validation corpus, and of all their tokens together."""
    model, data = opened.model, opened.saved.data_config
    objective = objective_section(opened.saved.config).build(z_loss=0.0)
    learned_only = LEARNED in (*objective.streams, *objective.optional_streams)
    corpora = [
        _ValidationSamples(
            corpus, data, model.vocab_size, max_tokens=max_tokens, batch_tokens=batch_tokens, learned_only=learned_only
        )
        for corpus in data.validation
    ]
    results: dict[str, Any] = {}
    n_tokens, total = 0, 0.0
    counts = np.zeros(model.vocab_size, dtype=np.int64)
    with work_progress(shows=opened.is_main) as progress:
        for corpus in corpora:
            progress.start(f"validation loss, {corpus.name}", total=corpus.n_samples)
            frequencies = count_targets(corpus.batches(), model.vocab_size)
            loss = validation_loss(model, _advancing(corpus.batches(), progress))
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


def evaluate_few_shot(opened: OpenedModel, tasks: OpenTasks, *, log_samples: Path | None) -> list[TaskScore]:
    """Score all tasks, with progress over the harness's requests. `log_samples`: a folder for their items."""
    saved = opened.saved
    keep = None if log_samples is None else partial(write_samples, log_samples, writes=opened.is_main)
    with work_progress(shows=opened.is_main) as progress:
        progress.start("few-shot tasks")
        return few_shot_scores(
            opened.model,
            saved.tokenizer,
            tasks,
            n_ctx=saved.model_config.n_ctx,
            progress=lambda finished, total: progress.update(finished, total=total),
            special=special_tokens_of(saved.run_directory / HUGGING_FACE, saved.tokenizer_file, saved.tokenizer),
            keep_samples=keep,
        )


class _ValidationSamples:
    """The samples of one validation corpus that are evaluated, in batches."""

    def __init__(
        self,
        corpus: CorpusConfig,
        config: DataConfig,
        vocab_size: int,
        *,
        max_tokens: int | None,
        batch_tokens: int,
        learned_only: bool,
    ) -> None:
        self.name, self.learned_only = corpus.name, learned_only
        self.data = ValidationData(corpus, config, vocab_size=vocab_size)
        wanted = self.data.n_samples if max_tokens is None else max(1, max_tokens // config.seq_len)
        self.n_samples = min(self.data.n_samples, wanted)
        self.at_once = max(1, batch_tokens // config.seq_len)

    def batches(self) -> Iterator[TokenRows]:
        """Rows of tokens. Documents that training keeps apart come alone, one row each."""
        for start in range(0, self.n_samples, self.at_once):
            samples = self.data.read(range(start, min(start + self.at_once, self.n_samples)))
            counted = (
                samples.stream(LEARNED, default=1) != 0 if self.learned_only else np.ones_like(samples.tokens, bool)
            )
            if samples.segment_ids is None:
                yield TokenRows(samples.tokens, counted[:, 1:])
                continue
            for row, ids, of_row in zip(samples.tokens, samples.segment_ids, counted, strict=True):
                for part in (ids == segment for segment in range(int(ids.max()) + 1)):
                    if part.sum() > 1:
                        yield TokenRows(row[part][None], of_row[part][None, 1:])


def _advancing(batches: Iterator[TokenRows], progress: WorkProgress) -> Iterator[TokenRows]:
    for batch in batches:
        yield batch
        progress.advance(len(batch.tokens))
