"""`triaxial score`: the rewards of a reward run on rankings and demonstrations; its calibration."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.conversations.read import describe_left_out
from gpt.errors import ConfigError, one_line
from gpt.files.json_text import without_nan
from gpt.post_training.ranking_accuracy import Floats, RankedPrompt, ranking_report
from launch.processes.terminal import SafeConsole, work_progress
from launch.reports.written import add_json_option, check_destination, json_destination, write_page
from launch.rewards.calibrate import RewardShift, publish_calibrated
from launch.rewards.open_run import OpenedReward, opened_reward
from launch.rewards.report import draw_calibration, report_lines
from launch.rewards.texts import FoundTexts, read_texts
from launch.rewards.token_files import demonstrations, is_token_file, ranked_prompts
from launch.runs.chat_format import chat_encoder
from launch.runs.open_model import add_layout_arguments, is_first_process, start_ranks, starts_ranks
from launch.runs.saved_run import add_device_arguments, add_run_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--rankings",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="rankings to compare the rewards with: JSON lines or Parquet in the shapes that `triaxial prepare` reads, "
        "or token files by their prefix, such as data/rankings/validation",
    )
    parser.add_argument(
        "--demonstrations",
        type=Path,
        metavar="FILE",
        help="demonstrations whose mean reward is measured, in the same forms",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="shift the rewards so that the mean of --demonstrations is 0, and publish the checkpoint again",
    )
    parser.add_argument(
        "--rewards", type=Path, metavar="FILE.jsonl", help="write a line for each ranking with the rewards it got"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a picture of the calibration")
    parser.add_argument("--batch-tokens", type=int, default=8192, metavar="N", help="tokens per batch (default: 8192)")
    add_json_option(parser, "the results")
    add_device_arguments(parser)
    add_layout_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    if starts_ranks(args):
        return start_ranks(args)
    with json_destination(args.json if is_first_process() else None) as emit, opened_reward(args) as opened:
        emit(score(args, opened))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """ConfigError: nothing to score, or files that do not exist."""
    if not args.rankings and args.demonstrations is None:
        raise ConfigError("there is nothing to score. Give --rankings FILE or --demonstrations FILE")
    if args.calibrate and args.demonstrations is None:
        raise ConfigError("--calibrate needs --demonstrations FILE, whose mean reward becomes 0")
    for option, path in (("--plot", args.plot), ("--rewards", args.rewards)):
        if path is not None and not args.rankings:
            raise ConfigError(f"{option} needs --rankings FILE")
    if args.batch_tokens < 1:
        raise ConfigError(f"--batch-tokens {args.batch_tokens} is invalid: must be at least 1")
    for option, paths in (("--rankings", args.rankings), ("--demonstrations", [args.demonstrations])):
        for path in paths:
            if path is not None and not path.is_file() and not is_token_file(path):
                raise ConfigError(f"{option} {path} is invalid: no such file, and no token files {path}.bin and .idx")
    for path in args.rankings:
        if is_token_file(path) and not is_token_file(Path(f"{path}_marks")):
            raise ConfigError(f"--rankings {path} is invalid: it has no stream {path}_marks. Prepare rankings")
    check_destination("--json", args.json)
    if is_first_process():
        check_destination("--plot", args.plot)
        check_destination("--rewards", args.rewards)


def score(args: argparse.Namespace, opened: OpenedReward) -> dict[str, Any]:
    """Score everything that is asked for. Every rank must call it; the main rank prints and writes."""
    console = SafeConsole(quiet=not opened.run.is_main)
    for note in opened.run.notes:
        console.print(one_line(note), markup=False)
    result: dict[str, Any] = {
        "run": str(opened.run.run_directory),
        "checkpoint": str(opened.run.checkpoint.path),
        "step": opened.run.checkpoint.step,
    }
    if args.rankings:
        result["rankings"] = score_rankings(args, opened, console)
    if args.demonstrations is not None:
        result["demonstrations"] = score_demonstrations(args, opened, console)
    return result


def score_rankings(args: argparse.Namespace, opened: OpenedReward, console: SafeConsole) -> dict[str, Any]:
    prompts: list[RankedPrompt] = []
    for path in args.rankings:
        if is_token_file(path):
            prompts += ranked_prompts(
                path, tokenizer=opened.run.tokenizer_file, fingerprint=opened.run.tokenizer.fingerprint
            )
        else:
            with chat_encoder(opened.run) as encoder:
                found = read_texts(path, "rankings", encoder)
            prompts += found.rankings
            _say_left_out(path, found, console)
    sequences = [ids for prompt in prompts for ids in prompt.completions]
    with work_progress(shows=opened.run.is_main) as progress:
        progress.start("rankings", total=len(sequences))
        rewards = opened.scores(sequences, advance=progress.advance)
    cuts = np.cumsum([len(prompt.completions) for prompt in prompts])[:-1]
    by_prompt = np.split(rewards, cuts)
    report = ranking_report(prompts, by_prompt)
    for line in report_lines(report):
        console.print(line, highlight=False, markup=False)
    if args.plot is not None and opened.run.is_main:
        write_page("--plot", args.plot, draw_calibration(report.calibration))
    if args.rewards is not None and opened.run.is_main:
        write_page("--rewards", args.rewards, "".join(map(_line, prompts, by_prompt)))
    return dataclasses.asdict(report)


def _say_left_out(path: Path, found: FoundTexts, console: SafeConsole) -> None:
    if found.left_out:
        console.print(f"{path}: left out {describe_left_out(found.left_out)}", highlight=False, markup=False)


def _line(prompt: RankedPrompt, rewards: Floats) -> str:
    """A ranking as a line of JSON, with null for a reward or score that is not a number."""
    facts = {
        "prompt_id": prompt.prompt_id,
        "labeller": prompt.labeller,
        "levels": prompt.levels.tolist(),
        "scores": prompt.scores.tolist(),
        "tokens": [len(ids) for ids in prompt.completions],
        "rewards": rewards.tolist(),
    }
    return json.dumps(without_nan(facts), ensure_ascii=False) + "\n"


def score_demonstrations(args: argparse.Namespace, opened: OpenedReward, console: SafeConsole) -> dict[str, Any]:
    path = args.demonstrations
    if is_token_file(path):
        sequences = demonstrations(
            path, tokenizer=opened.run.tokenizer_file, fingerprint=opened.run.tokenizer.fingerprint
        )
    else:
        with chat_encoder(opened.run) as encoder:
            found_texts = read_texts(path, "demonstrations", encoder)
        sequences = list(found_texts.demonstrations)
        _say_left_out(path, found_texts, console)
    with work_progress(shows=opened.run.is_main) as progress:
        progress.start("demonstrations", total=len(sequences))
        rewards = opened.scores(sequences, advance=progress.advance)
    found = RewardShift.of(rewards, where=f"--demonstrations {path}")
    left_out = len(rewards) - found.n
    console.print(
        f"demonstrations: mean reward {found.mean:.6f}, standard deviation {found.std:.4f}, {found.n:,} conversations"
        + (
            f"; {left_out:,} longer than the model's context, or without a finite reward, are left out"
            if left_out
            else ""
        ),
        highlight=False,
    )
    result = {**dataclasses.asdict(found), "left_out": left_out}
    if args.calibrate:
        published = publish_calibrated(
            opened.run.run_directory, opened.run.checkpoint, found, source=str(path), is_main=opened.run.is_main
        )
        console.print(f"published {published}: the mean reward of these demonstrations is 0", highlight=False)
        result["calibrated"] = str(published)
    return result
