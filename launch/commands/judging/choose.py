"""`triaxial choose`: let every checkpoint of a run answer prompts, and choose the one with the highest reward."""

import argparse
import json

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.evaluation.intervals import interval_text
from gpt.files.atomic import replace_file
from gpt.inference.sampling_settings import Sampling
from launch.comparison.answers import ComparedSettings, answers_of
from launch.comparison.prompts import ComparedPrompt, read_conversations
from launch.evaluation.best_of_n import Turns, reward_of
from launch.evaluation.checkpoint_choice import ScoredCheckpoint, ranked_checkpoints
from launch.processes.terminal import table_console
from launch.reports.written import json_destination
from launch.runs.saved_run import CHOSEN, DTYPES, device_of
from parallel.checkpoint.folders import list_checkpoints, step_of


def run(args: argparse.Namespace) -> int:
    found = {step_of(path.name): path for path in list_checkpoints(args.run / "checkpoints")}
    checkpoints = sorted((step, path) for step, path in found.items() if step is not None)
    if not checkpoints:
        raise ConfigError(f"{args.run} is invalid: it has no checkpoints. Give a run directory, such as runs/sft")
    prompts, left_out = read_conversations(args.prompts)
    for reason, n in left_out.most_common():
        print(f"note: {n:,} records of {args.prompts} left out: {reason}")
    score = reward_of("--reward", args.reward, device=args.device, dtype=args.dtype)
    settings = ComparedSettings(
        Sampling(args.temperature),
        args.max_new_tokens,
        args.seed,
        stops=(),
        device=device_of(args.device),
        dtype=DTYPES[args.dtype],
    )
    with json_destination(args.json) as emit:
        turns = [turns_of(prompt) for prompt in prompts]
        rewards = [list(score(turns, answers_of(path, prompts, settings))) for _, path in checkpoints]
        ranked = ranked_checkpoints([step for step, _ in checkpoints], rewards)
        table_console().print(choice_table(ranked))
        conclude(args, ranked[0], n=len(prompts))
        emit([{"step": one.step, "reward": one.reward.estimate, "unscored": one.unscored} for one in ranked])
    return 0


def turns_of(prompt: ComparedPrompt) -> Turns:
    assert prompt.chat is not None, "read_conversations makes chats"
    return prompt.chat.turns


def conclude(args: argparse.Namespace, best: ScoredCheckpoint, *, n: int) -> None:
    """Record the choice. ConfigError: no answer had a reward of every checkpoint."""
    if best.reward.estimate != best.reward.estimate:
        raise ConfigError(
            f"--reward {args.reward}: no answer has a finite reward of every checkpoint. Check the reward"
        )
    record = {"step": best.step, "reward": best.reward.estimate, "by": args.reward, "prompts": n}
    replace_file(args.run / CHOSEN, json.dumps(record) + "\n")
    print(f"chosen: step {best.step:,}, which --step best finds now ({args.run / CHOSEN})")


def choice_table(found: list[ScoredCheckpoint]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("step", "reward, 95% by prompt", "minus the best, 95%", "without reward"):
        table.add_column(name, justify="right")
    for one in found:
        numbers = (interval_text(one.reward, percent=False), interval_text(one.behind, percent=False))
        table.add_row(*(Text(text) for text in (f"{one.step:,}", *numbers, f"{one.unscored:,}")))
    return table
