"""`triaxial score`: the rewards of a reward run on rankings and demonstrations; its calibration."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.conversations.read import describe_left_out
from gpt.errors import one_line
from gpt.files.json_text import without_nan
from gpt.post_training.ranking_accuracy import Floats, RankedPrompt, ranking_report
from launch.config.run_arguments import is_first_process, starts_ranks
from launch.processes.terminal import SafeConsole, work_progress
from launch.reports.written import json_destination, write_page
from launch.rewards.calibrate import RewardShift, publish_calibrated
from launch.rewards.open_run import OpenedReward, opened_reward
from launch.rewards.report import draw_calibration, report_lines
from launch.rewards.texts import FoundTexts, read_texts
from launch.rewards.token_files import demonstrations, is_token_file, ranked_prompts
from launch.runs.chat_format import chat_encoder
from launch.runs.open_model import start_ranks


def run(args: argparse.Namespace) -> int:
    if starts_ranks(args):
        return start_ranks(args)
    with json_destination(args.json if is_first_process() else None) as emit, opened_reward(args) as opened:
        emit(score(args, opened))
    return 0


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
