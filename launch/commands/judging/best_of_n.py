"""`triaxial best-of-n`: draw n answers to each prompt, keep the one with the highest reward, and measure every n."""

import argparse
import json
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.inference.cpu_model import packed
from gpt.inference.model import LocalModel
from gpt.inference.sampling import Sampling
from gpt.post_training.analysis.best_of_n import (
    BestOfNPoint,
    ScoredSamples,
    best_of_n_curve,
    curve_record,
    draw_samples,
)
from launch.commands.judging.compare import interval_text
from launch.comparison.prompts import ComparedPrompt, read_conversations
from launch.evaluation.best_of_n import Turns, best_lines, reward_of, sample_lines
from launch.generation.chat import ChatPrompt, ChatSettings, answer_chats
from launch.generation.prompt_file import write_lines
from launch.processes.terminal import table_console
from launch.reports.over_optimisation_plot import BEST_OF_N
from launch.runs.chat_format import chat_encoder
from launch.runs.saved_run import DTYPES, add_device_arguments, add_run_arguments, device_of, load_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="conversations to answer")
    reward = "a reward run, or a function module:name of lists of prompts and answers"
    parser.add_argument("--reward", required=True, metavar="RUN", help=f"{reward}; it chooses the answer")
    parser.add_argument("--gold", metavar="RUN", help=f"{reward}; it only measures")
    parser.add_argument("--n", type=int, default=16, help="answers to each prompt (default: 16)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder for answers and curve")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="the longest answer (default: 100)")
    parser.add_argument("--temperature", type=float, default=1.0, help="above 0 (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers (default: 0)")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
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


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a model."""
    for name, least in (("n", 1), ("max_new_tokens", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is invalid: it must be at least {least}.")
    if args.temperature <= 0:
        raise ConfigError(f"--temperature {args.temperature} is invalid: all answers would be equal. Use 1.")
    if args.output.exists() and not args.output.is_dir():
        raise ConfigError(f"--output {args.output} is invalid: it is a file. Give a folder.")


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
