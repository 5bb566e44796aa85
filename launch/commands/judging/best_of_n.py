"""`triaxial best-of-n`: draw n answers to each prompt, keep the one with the highest reward, and measure every n."""

import argparse
import json
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.evaluation.intervals import interval_text
from gpt.files.atomic import replace_file
from gpt.inference.cpu_model import packed
from gpt.inference.model import LocalModel
from gpt.inference.sampling_settings import Sampling
from gpt.post_training.analysis.best_of_n import (
    BestOfNPoint,
    ScoredSamples,
    best_of_n_curve,
    curve_record,
    draw_samples,
)
from launch.comparison.prompts import ComparedPrompt, read_conversations
from launch.evaluation.best_of_n import Turns, best_lines, reward_of, sample_lines
from launch.generation.chat import ChatPrompt, ChatSettings, answer_chats
from launch.generation.prompt_file import write_lines
from launch.processes.terminal import table_console
from launch.reports.over_optimisation_plot import BEST_OF_N
from launch.runs.chat_format import chat_encoder
from launch.runs.saved_run import DTYPES, device_of, load_run


def run(args: argparse.Namespace) -> int:
    prompts, left_out = read_conversations(args.prompts)
    for reason, n in left_out.most_common():
        print(f"note: {n:,} records of {args.prompts} left out: {reason}")
    scores = {
        name: reward_of(f"--{name}", value, device=args.device, dtype=args.dtype)
        for name in ("reward", "gold")
        if (value := getattr(args, name)) is not None
    }
    loaded = load_run(args.run, step=args.step, device=device_of(args.device), dtype=DTYPES[args.dtype])
    model = packed(LocalModel(loaded.model), rows=len(prompts))
    how = ChatSettings(Sampling(args.temperature), args.max_new_tokens, shows=True)
    with chat_encoder(loaded.saved) as encoder:

        def generate(turns: list[Turns], seed: int) -> list[str]:
            asked = [ChatPrompt(one, prompt.line.where) for one, prompt in zip(turns, prompts, strict=True)]
            seeds = range(seed, seed + len(asked))
            return answer_chats(model, loaded.saved, encoder, asked, how, seeds=seeds)

        turns = [prompt.chat.turns for prompt in prompts if prompt.chat is not None]
        samples = draw_samples(turns, generate, scores["reward"], n=args.n, gold=scores.get("gold"), seed=args.seed)
    write(args.output, prompts, samples)
    return 0


def write(output: Path, prompts: list[ComparedPrompt], samples: ScoredSamples) -> None:
    """Write the curve, the best answers and all answers; print the curve."""
    points = best_of_n_curve(samples.proxy, samples.gold)
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / BEST_OF_N, json.dumps(curve_record(points), indent=1) + "\n")
    write_lines(output / "best.jsonl", best_lines(prompts, samples))
    write_lines(output / "samples.jsonl", sample_lines(prompts, samples))
    table_console().print(curve_table(points))
    print(f"wrote {output / BEST_OF_N}, best.jsonl and samples.jsonl: {len(prompts):,} prompts")


def curve_table(points: list[BestOfNPoint]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("n", "KL, nats", "reward, 95% by prompt", *(["gold"] if points[0].gold is not None else [])):
        table.add_column(name, justify="right")
    for point in points:
        gold = [] if point.gold is None else [interval_text(point.gold, percent=False)]
        row = (f"{point.n:,}", f"{point.kl:.3f}", interval_text(point.proxy, percent=False), *gold)
        table.add_row(*(Text(text) for text in row))
    return table
