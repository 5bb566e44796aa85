"""Let several runs answer the same prompts, and show the answers side by side on one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch

from gpt.evaluation.intervals import Interval, bootstrap_interval
from gpt.inference.generation import generate
from gpt.inference.sampling_settings import Sampling
from gpt.tokenizer.tokenizers import Tokenizer
from launch.demos.instructions import MAX_WORDS, MIN_WORDS, marks
from launch.reports.style import run_page
from launch.runs.saved_run import load_run

MAX_NEW_TOKENS = 48
SHOWN = 12
TEMPERATURE = 0.5  # at 1, a model of this size invents words


@dataclass(frozen=True)
class Answered:
    """A model's answers to the prompts, and its mean mark with the 95% interval by prompt."""

    name: str
    answers: tuple[str, ...]
    marks: tuple[float, ...]
    mean: Interval


def answered(
    name: str, run: Path, prompts: Sequence[Sequence[int]], texts: Sequence[str], *, end_ids: Sequence[int], seed: int
) -> Answered:
    """The answers of a run to prompts (token ids, and as texts), sampled at TEMPERATURE."""
    loaded = load_run(run, device=torch.device("cpu"), dtype=torch.float32)
    tokenizer = loaded.saved.tokenizer
    found = generate(
        loaded.model,
        prompts,
        n_ctx=loaded.saved.model_config.n_ctx,
        max_new_tokens=MAX_NEW_TOKENS,
        sampling=Sampling(TEMPERATURE, None, None, 1.0),
        seed=seed,
        stop_ids=end_ids,
        n_ids=tokenizer.vocab_size,
    )
    answers = tuple(_text(tokenizer, one.tokens, end_ids) for one in found)
    given = tuple(marks(texts, answers))
    return Answered(name, answers, given, bootstrap_interval([[mark] for mark in given]))


def _text(tokenizer: Tokenizer, tokens: Sequence[int], end_ids: Sequence[int]) -> str:
    return tokenizer.decode([token for token in tokens if token not in end_ids]).strip()


def page(prompts: Sequence[str], models: Sequence[Answered]) -> str:
    """The page's HTML: the marks of each model, and the answers to the first prompts. All texts are escaped."""
    rule = (
        f"A quarter of the mark each: it begins as asked; it contains the word; it is one whole sentence; it has "
        f"{MIN_WORDS} to {MAX_WORDS} words."
    )
    tiles = "".join(
        f"<div><span>{escape(model.name)}</span><b>{model.mean.estimate:.2f}</b>"
        f"<span>mean mark, 95%: {model.mean.low:.2f} to {model.mean.high:.2f}</span></div>"
        for model in models
    )
    head = "".join(f"<th class=word>{escape(model.name)}</th>" for model in models)
    rows = "".join(
        f"<tr><td class=text>{escape(prompt)}</td>"
        + "".join(
            f'<td class=text data-name="{escape(model.name)}">{escape(model.answers[i])} '
            f"<i>{model.marks[i]:.2f}</i></td>"
            for model in models
        )
        + "</tr>"
        for i, prompt in enumerate(prompts[:SHOWN])
    )
    style = (
        "<style>td i { color: var(--soft); font-style: normal; font-size: .8rem; background: none; width: auto } "
        ".scroll { max-height: none } td.text { min-width: 9rem } "
        "@media (max-width: 40rem) { tr:first-child { display: none } td, tbody { display: block } "
        "tr { display: block; padding: .6rem 0; border-top: 1px solid var(--line) } "
        "td.text:first-child { font-weight: 600 } tr + tr td { border: 0 } "
        "td[data-name]::before { content: attr(data-name) ': '; color: var(--soft) } }</style>"
    )
    body = (
        f"{style}<h1>One model, before and after instruction</h1><p class=note>{rule} {len(prompts)} prompts that no "
        f"training has seen.</p><div class=tiles>{tiles}</div><h2>Answers</h2>"
        f"<div class=scroll><table><tr><th class=word>prompt</th>{head}</tr>{rows}</table></div>"
    )
    return run_page("Before and after instruction", body)
