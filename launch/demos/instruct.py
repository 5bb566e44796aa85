"""`triaxial demo --instruct`: InstructGPT's three steps on the demo's model, with the commands of a user.

Demonstrations, rankings and prompts are made by rule from the demo's corpus. At the end, one page shows the answers of
the base model, the fine-tuned one and the one after PPO.
"""

import json
import shutil
import time
from pathlib import Path

from gpt.files.atomic import replace_file
from gpt.telemetry.console import for_terminal
from gpt.token_files.corpus import describe_corpus, open_tokens
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.config.run_config import RunConfig, read_run_config
from launch.demos.commands import read_report, run_command
from launch.demos.instructions import KINDS, write_instructions
from launch.demos.side_by_side import Answered, answered, page

FOLDER = Path("data/demo_instruct")
RECIPES = "launch/recipes/demo_{name}.toml"
TRAINED = ("sft", "reward", "ppo")
PROCESSES = 4
N_PROMPTS = 200


def run_instruct(base: RunConfig, first: list[list[str]]) -> int:
    """Run the `first` commands, which make the base model, and the steps after it. Return the exit status."""
    seconds: dict[str, float] = {}
    runs = {name: read_run_config(RECIPES.format(name=name), []).run.directory for name in TRAINED}
    for run in runs.values():
        shutil.rmtree(run, ignore_errors=True)
    for words in first:
        if status := _timed(words[0] if words[0] != "train" else "base model", words, seconds):
            return status
    (corpus,) = base.data.train
    made = write_instructions(
        FOLDER / "made", open_tokens(Path(corpus.path)), load_tokenizer(Path(base.data.tokenizer))
    )
    print(f"\nmade by rule: {', '.join(f'{n:,} {kind}' for kind, n in made.items())}", flush=True)
    steps = {kind: ["prepare", RECIPES.format(name=kind)] for kind in KINDS}
    steps |= {name: ["train", RECIPES.format(name=name), "--nproc", str(PROCESSES)] for name in TRAINED}
    for name, words in steps.items():
        if status := _timed(name, words, seconds):
            return status
        if name == "reward":
            score = ["score", str(runs["reward"]), "--rankings", str(FOLDER / "rankings" / "validation")]
            if status := _timed("score", [*score, "--json", str(runs["reward"] / "accuracy.json")], seconds):
                return status
    if status := _timed("report", ["report", str(runs["ppo"]), "--html", str(runs["ppo"] / "report.html")], seconds):
        return status
    conclude({"base": base.run.directory, "SFT": runs["sft"], "PPO": runs["ppo"]}, runs, seconds)
    return 0


def conclude(models: dict[str, Path], runs: dict[str, Path], seconds: dict[str, float]) -> None:
    """Let the models answer prompts of the validation split, write the page and summary.json, and print the figures."""
    started_at = time.perf_counter()
    file = open_tokens(FOLDER / "prompts" / "validation")
    n = min(N_PROMPTS, file.n_documents)
    prompts = [file.read(file.document_start(i), file.document_start(i + 1)).tolist() for i in range(n)]
    described = describe_corpus(FOLDER / "prompts" / "validation")
    assert described is not None, "prepare has just made it"
    end_ids = described["chat"]["end_ids"]
    tokenizer = load_tokenizer(FOLDER / "prompts")
    texts = [tokenizer.decode(prompt) for prompt in prompts]
    found = [answered(name, run, prompts, texts, end_ids=end_ids, seed=0) for name, run in models.items()]
    seconds["answers"] = round(time.perf_counter() - started_at, 2)
    accuracy = read_report(runs["reward"] / "accuracy.json")
    html = runs["ppo"] / "side_by_side.html"
    replace_file(html, page(texts, found))
    summary = {
        "prompts": n,
        "marks": {model.name: model.mean.estimate for model in found},
        "intervals": {model.name: [model.mean.low, model.mean.high] for model in found},
        "reward_model": accuracy,
        "seconds_by_step": seconds,
    }
    replace_file(runs["ppo"] / "summary.json", json.dumps(summary, indent=2) + "\n")
    print("\n" + "\n".join(map(for_terminal, _conclusion(found))))
    print()
    print(for_terminal(f"answers side by side: {html}; report: {runs['ppo'] / 'report.html'}"))
    print(for_terminal(f"seconds: {', '.join(f'{name} {value:.0f}' for name, value in seconds.items())}"))


def _conclusion(models: list[Answered]) -> list[str]:
    return [
        f"{model.name:5} mean mark of the rule {model.mean.estimate:.2f} (95%: {model.mean.low:.2f} to "
        f"{model.mean.high:.2f}); for example: {model.answers[0][:80]}"
        for model in models
    ]


def _timed(name: str, words: list[str], seconds: dict[str, float]) -> int:
    started_at = time.perf_counter()
    status = run_command(words)
    seconds[name] = round(time.perf_counter() - started_at, 2)
    return status
