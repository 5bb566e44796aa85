"""PPO of SmolLM2-135M against a second reward model that it never sees, with baselines, in steps that resume.

    python benchmarks/ppo_smollm2.py run FOLDER --model SMOLLM2 [--iterations 12] [--episodes 32] ... (--help)
    python benchmarks/ppo_smollm2.py report FOLDER [--json FILE]

Needs AlpacaEval's rankings (805 prompts with 9 outputs and a judge's log-odds) and a Hugging Face folder of
SmolLM2-135M-Instruct. 600 prompts train: one half trains the reward model that PPO sees, the other half a second one.
205 prompts are held out. The steps of `run`, of which each leaves a file in FOLDER/done and is not run again:

    base, rankings, prompts, text   convert the model; token files
    proxy, gold                     train two reward models, score the held-out rankings
    ptx, plain, beta0               PPO-ptx, without pre-training data, and without a KL penalty, for each of --seeds
    measure                         the start and each policy: sampled answers to held-out prompts
    best_of_n                       of the start, by both reward models

Each step may be stopped and started again: training resumes from its last checkpoint. `report` prints what is there.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ppo_smollm2_answers
import reward_baselines
import side_by_side

import launch
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer

POLICIES = {
    "ptx": [],
    "plain": ["objective.ptx=[]"],
    "beta0": ["objective.ptx=[]", "objective.beta=0.0"],
}
TEXTS = Path("/work/shared/data/text")
PREPARE = """
[input]
paths = ["{folder}/{name}.jsonl"]
[output]
folder = "{folder}/{name}"
validation_fraction = {validation}
[conversations]
kind = "{kind}"
{settings}
[tokenizer]
path = "{model}"
[dedup_minhash]
enabled = false
"""


def main() -> int:
    args = parse_arguments()
    if args.command == "report":
        return side_by_side.report_result(lambda: report(args.folder), args.json)
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "done").mkdir(exist_ok=True)
    for name, step in steps(args).items():
        done = args.folder / "done" / name
        if done.exists() or (args.only and name not in args.only):
            continue
        print(f"== {name}", flush=True)
        step()
        done.touch()
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, reporting = commands.add_parser("run"), commands.add_parser("report")
    for command in (run, reporting):
        command.add_argument("folder", type=Path)
    reporting.add_argument("--json", type=Path)
    run.add_argument("--model", type=Path, required=True, help="Hugging Face folder of SmolLM2-135M-Instruct")
    run.add_argument("--only", nargs="*", help="steps to run, by name")
    run.add_argument("--seeds", type=int, nargs="*", default=[1])
    run.add_argument("--prompts", type=int, default=600, help="training prompts, half of them for each reward model")
    run.add_argument("--held-out", type=int, default=205)
    run.add_argument(
        "--completions", type=int, default=20, help="outputs of a prompt that train a reward model, at most"
    )
    run.add_argument("--row-tokens", type=int, default=8192, help="of a step of a reward model")
    run.add_argument("--reward-epochs", type=float, default=1.0)
    run.add_argument("--iterations", type=int, default=12)
    run.add_argument("--episodes", type=int, default=32, help="of an iteration")
    run.add_argument("--answers", type=int, default=2, help="of each held-out prompt")
    run.add_argument("--n", type=int, default=8, help="of best-of-n")
    run.add_argument("--best-of-n-prompts", type=int, default=100, help="of the held-out ones")
    run.add_argument("--tokens", type=int, default=256, help="of a prompt with its answer; half of them at most each")
    run.add_argument("--loss-bytes", type=int, default=100_000, help="of WikiText-2's test part")
    run.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    run.add_argument("--settings", nargs="*", default=[], help="for PPO: --settings objective.beta=0.1")
    return parser.parse_args()


def steps(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """The steps by name, in order."""
    found: dict[str, Callable[[], None]] = {
        "base": lambda: triaxial("convert", args.model, "--to", "triaxial", "--output", args.folder / "base"),
        "rankings": lambda: prepare_rankings(args),
        "prompts": lambda: prepare_prompts(args),
        "text": lambda: tokenize_text(args),
    }
    for name in ("proxy", "gold"):
        found[name] = lambda name=name: train_reward(args, name)  # type: ignore[misc]
    runs = [(name, seed) for seed in args.seeds for name in POLICIES]
    for name, seed in runs:
        found[f"{name}_{seed}"] = lambda name=name, seed=seed: train_policy(args, name, seed)  # type: ignore[misc]
    for run in ("base", *(f"{name}_{seed}" for name, seed in runs)):
        found[f"measure_{run}"] = lambda run=run: measure(args, run)  # type: ignore[misc]
    return found | {"best_of_n": lambda: best_of_n(args)}


def prompts_of(args: argparse.Namespace) -> dict[str, list[reward_baselines.Prompt]]:
    """The disjoint sets of prompts, by name."""
    training, held_out = reward_baselines.load()
    half = args.prompts // 2
    return {
        "proxy": training[:half],
        "gold": training[half : args.prompts],
        "train": training[: args.prompts],
        "held_out": held_out[: args.held_out],
    }


def prepare_rankings(args: argparse.Namespace) -> None:
    sets = prompts_of(args)
    reward_baselines.write(args.folder / "held_out.jsonl", sets["held_out"])
    for name in ("proxy", "gold"):
        kept = [reward_baselines.spread(prompt, args.completions) for prompt in sets[name]]
        reward_baselines.write(args.folder / f"{name}_rankings.jsonl", kept)
        settings = f"max_tokens = {2 * args.tokens}\ntie_margin = {reward_baselines.MARGIN_NATS}"
        prepare(args, f"{name}_rankings", "rankings", settings, validation=0.05)


def prepare_prompts(args: argparse.Namespace) -> None:
    lines = [json.dumps({"prompt": prompt.text}) + "\n" for prompt in prompts_of(args)["train"]]
    (args.folder / "policy_prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    prepare(args, "policy_prompts", "prompts", f"max_prompt_tokens = {args.tokens // 2}", validation=0.05)


def prepare(args: argparse.Namespace, name: str, kind: str, settings: str, *, validation: float) -> None:
    recipe = args.folder / f"{name}.toml"
    values = {"folder": args.folder, "name": name, "kind": kind, "settings": settings, "model": args.model}
    recipe.write_text(PREPARE.format(**values, validation=validation))
    triaxial("prepare", recipe)


def tokenize_text(args: argparse.Namespace) -> None:
    """WikiText-2's validation part for the pre-training gradient; a part of its test part measures the loss."""
    tokenizer = load_tokenizer(args.model / "tokenizer.json")
    text = (TEXTS / "wikitext2-valid.txt").read_text(encoding="utf-8")
    with TokenFileWriter(args.folder / "text", vocab_size=tokenizer.vocab_size) as writer:
        for part in text.split("\n = ")[1:]:
            writer.add_document(np.array([*tokenizer.encode(part), tokenizer.end_of_document_id]))
    test = (TEXTS / "wikitext2-test.txt").read_bytes()[: args.loss_bytes]
    (args.folder / "loss.txt").write_text(test.decode(errors="ignore"), encoding="utf-8")


def common(args: argparse.Namespace, run: Path, *, seed: int) -> dict[str, object]:
    """Settings of all runs: the model is that of the folder."""
    newest = max((args.folder / "base" / "checkpoints").glob("step-*"))
    model = json.loads((newest / "state.json").read_text())["config"]["model"]
    return {
        **{f"model.{key}": value for key, value in model.items() if value is not None},
        "run.directory": run,
        "run.start_from": args.folder / "base",
        "run.seed": seed,
        "data.tokenizer": args.model / "tokenizer.json",
        "parallel.precision": args.precision,
        "metrics.wandb": "disabled",
    }


def train_reward(args: argparse.Namespace, name: str) -> None:
    """A reward model on one half of the prompts, and its rewards of the held-out rankings."""
    run, row_tokens = args.folder / name, args.row_tokens
    words = common(args, run, seed={"proxy": 1, "gold": 2}[name])
    words |= reward_baselines.reward_words(
        args.folder / f"{name}_rankings", row_tokens=row_tokens, rows=1, epochs=args.reward_epochs
    )
    train("reward_smollm2", words)
    rewards = args.folder / f"{name}_rewards.jsonl"
    rankings = args.folder / "held_out.jsonl"
    triaxial("score", run, "--rankings", rankings, "--rewards", rewards, "--dtype", dtype(args))


def dtype(args: argparse.Namespace) -> str:
    return "bfloat16" if args.precision == "bf16" else "float32"


def train_policy(args: argparse.Namespace, name: str, seed: int) -> None:
    folder: Path = args.folder
    words = common(args, folder / f"{name}_{seed}", seed=seed) | {
        "data.train": f'[{{ path = "{folder}/policy_prompts/train" }}]',
        "data.seq_len": args.tokens,
        "batch.global_batch_tokens": args.episodes * args.tokens,
        "objective.rewards": f'[{{ run = "{folder}/proxy" }}]',
        "objective.gold": f'[{{ run = "{folder}/gold" }}]',
        "objective.ptx": f'[{{ path = "{folder}/text" }}]',
        "objective.max_response_tokens": args.tokens // 2,
        "objective.minibatch_episodes": min(16, args.episodes),
        "train.total_steps": args.iterations,
    }
    words |= dict(setting.split("=", 1) for setting in (*args.settings, *POLICIES[name]))
    train(str(policy_recipe(folder)), words)


def policy_recipe(folder: Path) -> Path:
    """The shipped recipe without a reward for a missing end token: most answers reach the limit of tokens here, and a
    policy that learns to end early would say nothing about the reward model."""
    shipped = (Path(launch.__file__).parent / "recipes" / "ppo_smollm2.toml").read_text(encoding="utf-8")
    recipe = folder / "ppo.toml"
    kept = [line for line in shipped.splitlines() if not line.startswith("missing_end_reward")]
    recipe.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return recipe


def measure(args: argparse.Namespace, run: str) -> None:
    """Answers to held-out prompts with rewards, KL and length; and the loss on text."""
    prompts = [prompt.text for prompt in prompts_of(args)["held_out"]]
    answers = ppo_smollm2_answers.measured(
        args.folder, run, prompts, n=args.answers, tokens=args.tokens, batch=min(32, len(prompts)), dtype=dtype(args)
    )
    (args.folder / f"answers_{run}.json").write_text(json.dumps(answers))
    loss = args.folder / f"loss_{run}.json"
    words = ["--text", args.folder / "loss.txt", "--window", 1024, "--stride", 1024, "--json", loss]
    triaxial("evaluate", args.folder / run, *words)


def best_of_n(args: argparse.Namespace) -> None:
    prompts = prompts_of(args)["held_out"][: args.best_of_n_prompts]
    lines = [json.dumps({"prompt": prompt.text}) + "\n" for prompt in prompts]
    (args.folder / "held_out_prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    words = ["--prompts", args.folder / "held_out_prompts.jsonl", "--n", args.n, "--max-new-tokens", args.tokens // 2]
    rewards = ["--reward", args.folder / "proxy", "--gold", args.folder / "gold"]
    triaxial(
        "best-of-n",
        args.folder / "base",
        *words,
        *rewards,
        "--dtype",
        dtype(args),
        "--output",
        args.folder / "best_of_n",
    )


def train(recipe: str, words: dict[str, object]) -> None:
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in words.items()}
    triaxial("train", recipe, *(word for key, value in texts.items() for word in (f"--{key}", value)))


def triaxial(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "launch.main", *map(str, words)], check=True)


def report(folder: Path) -> dict[str, Any]:
    """Everything that the steps have measured so far, with 95% intervals by prompt."""
    found: dict[str, Any] = {}
    for name in ("proxy", "gold"):
        if (folder / f"{name}_rewards.jsonl").exists():
            found[f"{name}_accuracy"] = ppo_smollm2_answers.accuracy(folder, name)
    answers = {path.stem.removeprefix("answers_"): path for path in sorted(folder.glob("answers_*.json"))}
    if "base" in answers:
        found["policies"] = {
            run: ppo_smollm2_answers.compared(folder, run, json.loads(answers["base"].read_text())) for run in answers
        }
    if (folder / "best_of_n" / "best_of_n.json").exists():
        found["best_of_n"] = json.loads((folder / "best_of_n" / "best_of_n.json").read_text())
    return found


if __name__ == "__main__":
    sys.exit(main())
