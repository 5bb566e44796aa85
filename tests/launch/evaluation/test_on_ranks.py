"""Few-shot scores over ranks and during training equal those of one process that loads the checkpoint.

The small model trains on the questions of the tasks, so that some answers are right.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt.evaluation.few_shot.gpt3_problems import make_problems, task_rules, words_of_python
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from launch.main import main
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

pytestmark = pytest.mark.timeout(1800)  # one launch of many ranks, which wait for each other on a busy machine
HERE = Path(__file__).resolve().parents[1]
TASK, LETTERS, LIMIT = "gpt3_two_digit_addition", "gpt3_cycle_letters_in_word", 8
STEP_TOKENS = 1024
RECIPE = """
[run]
directory = "{folder}/run"
device = "cpu"
peak_flops_per_s = 1e12
[model]
vocab_size = 320
n_ctx = 128
n_layers = 2
d_model = 64
n_heads = 4
n_kv_heads = 2
positions = "rope"
[data]
tokenizer = "{folder}/tokenizer.model"
seq_len = 64
train = [{{ path = "{folder}/train" }}]
validation = [{{ path = "{folder}/train", name = "learned" }}]
[batch]
micro_batch_size = 8
global_batch_tokens = 1024
[optimizer]
learning_rate = 1e-2
[schedule]
warmup_tokens = 5120
decay_tokens = 200000
[parallel]
precision = "fp32"
[checkpoint]
every_tokens = 20480
keep_last = 9
[train]
total_tokens = 61440
few_shot_every_tokens = 20480
few_shot_tasks = ["gpt3_two_digit_addition", "gpt3_cycle_letters_in_word"]
few_shot_examples = [0, 2]
few_shot_limit = 8
few_shot_batch_tokens = 1024
[metrics]
wandb = "disabled"
log_every_steps = 20
"""
LAYOUTS = {
    "tensor 2 x pipeline 2": (4, ["--parallel.tensor", "2", "--parallel.pipeline", "2", "--parallel.split", "[1, 1]"]),
    "pipeline 2 x data 2": (4, ["--parallel.pipeline", "2"]),
}
TRAININGS = {
    "data 2, ZeRO 3": (2, ["--parallel.zero_stage", "3"]),
    "tensor 2 x data 2, ZeRO 1": (4, ["--parallel.tensor", "2"]),
}
SHORT_RUN = ["--train.total_tokens", "4096", "--train.few_shot_every_tokens", "2048", "--batch.micro_batch_size", "4"]
EVALUATE = ["--tasks", TASK, LETTERS, "--num-fewshot", "0", "2", "--limit", str(LIMIT), "--batch-tokens", "1024"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the questions with their answers, and a recipe that trains on it."""
    folder = tmp_path_factory.mktemp("learned")
    rules = {rule.name: rule for rule in task_rules()}
    problems = [
        problem
        for name in (TASK, LETTERS)
        for problem in make_problems(rules[name], seed=0, words=words_of_python()).scored[:LIMIT]
    ]
    texts = [f"{problem.question} {problem.answer}\n" for problem in problems]
    train_sentencepiece(iter(texts * 4), folder / "tokenizer.model", vocab_size=320)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    order = np.random.default_rng(5)
    with TokenFileWriter(folder / "train", vocab_size=320) as writer:
        for _ in range(60):
            for number in order.permutation(len(texts)):
                writer.add_document(np.array([*tokenizer.encode(texts[number]), tokenizer.end_of_document_id]))
    (folder / "text.txt").write_text("".join(texts * 3))
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A training run that evaluates the tasks twice on the way and at the end."""
    assert main(["train", str(folder / "recipe.toml")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def ranks(folder: Path, run: Path, evaluation_ranks: Any) -> Path:
    """The results of each layout, in a folder each, all from one program."""
    out = folder / "ranks"
    out.mkdir()
    jobs: list[dict[str, Any]] = []
    for name, (number, words) in LAYOUTS.items():
        report = ["--json", str(out / f"{name}.json"), "--device", "cpu", "--text", str(folder / "text.txt")]
        ask = [str(run), *words]
        recorded = ["--wandb"] if name == "pipeline 2 x data 2" else []
        words = ["evaluate", *ask, *EVALUATE, *report, *recorded]
        jobs.append({"name": name, "ranks": number, "words": words, "ask": ask})
    for name, (number, words) in TRAININGS.items():
        places = ["--run.directory", str(folder / name), "--run.start_from", str(run)]
        train = ["train", str(folder / "recipe.toml"), *places, *SHORT_RUN, *words]
        jobs.append({"name": name, "ranks": number, "words": train})
    evaluation_ranks.run_program(jobs, out)
    return out


def evaluated(run: Path, out: Path, *words: str) -> dict[str, Any]:
    """Evaluate in one process. Returns the report."""
    assert main(["evaluate", str(run), *EVALUATE, "--json", str(out), "--device", "cpu", *words]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def few_shot_scores_of_run(run: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the scores of few_shot.jsonl, by step."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for line in (run / "few_shot.jsonl").read_text().splitlines():
        score = json.loads(line)
        assert score.pop("tokens_seen") == score["step"] * STEP_TOKENS
        by_step.setdefault(score.pop("step"), []).append(score)
    return by_step


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_scores_of_one_process(name: str, run: Path, ranks: Path, tmp_path: Path) -> None:
    ours, alone = (
        json.loads((ranks / f"{name}.json").read_text()),
        evaluated(run, tmp_path / "alone.json", "--text", str(run.parent / "text.txt")),
    )
    assert ours["few_shot"] == alone["few_shot"]
    assert alone["few_shot"][0]["value"] > 0, "if no answer were right, all scores would be equal anyway"
    assert ours["validation"]["learned"]["loss_nats"] == pytest.approx(alone["validation_loss_nats"], rel=1e-5)
    assert ours["validation"]["learned"]["tokens"] == alone["validation_tokens"]
    assert ours["unigram_entropy_nats"] == alone["unigram_entropy_nats"]
    (text,), (text_alone,) = ours["text"]["texts"].values(), alone["text"]["texts"].values()
    assert text == pytest.approx(text_alone, rel=1e-5)
    assert text["tokens"] > 500, "several windows"


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_likelihoods_and_texts_of_one_process(
    name: str, run: Path, ranks: Path, evaluation_ranks: Any
) -> None:
    alone = json.loads(json.dumps(evaluation_ranks.ask(run)))
    for rank in range(LAYOUTS[name][0]):
        ours = json.loads((ranks / name / f"rank{rank}.json").read_text())
        for kind in ("log_likelihoods", "greedy"):
            for (log_prob, greedy), (expected, expected_greedy) in zip(ours[kind], alone[kind], strict=True):
                assert log_prob == pytest.approx(expected, rel=1e-5)
                assert greedy == expected_greedy
        assert ours["rolling"] == pytest.approx(alone["rolling"], rel=1e-5)
        assert ours["texts"] == alone["texts"]
    assert len(set(alone["texts"])) > 5
    assert sum(greedy for _, greedy in alone["greedy"]) > 2


def test_scores_during_training_equal_those_of_the_checkpoint(run: Path, tmp_path: Path) -> None:
    by_step = few_shot_scores_of_run(run)
    assert list(by_step) == [20, 40, 60]
    for step, scores in by_step.items():
        report = evaluated(run, tmp_path / "report.json", "--step", str(step))
        assert scores == report["few_shot"]
    assert max(score["value"] for score in by_step[60]) > 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in logged if row["step"] == 60 and f"few_shot/{TASK}/0" in row]
    assert row[f"few_shot/{TASK}/0"] == by_step[60][0]["value"]
    assert row.keys() == {"step", *(f"few_shot/{task}/{shots}" for task in (TASK, LETTERS) for shots in (0, 2))}
    ledger = json.loads((run / "ledger.jsonl").read_text().splitlines()[-1])
    assert ledger["seconds"]["evaluation"] > 0


def test_scoring_during_training_changes_no_weight(folder: Path, run: Path) -> None:
    words = ["--run.directory", str(folder / "undisturbed"), "--train.few_shot_every_tokens", "1000000"]
    words += ["--train.total_tokens", str(40 * STEP_TOKENS)]
    assert main(["train", str(folder / "recipe.toml"), *words]) == 0
    assert list(few_shot_scores_of_run(folder / "undisturbed")) == [40], "scored only at the end"
    name = "checkpoints/step-000000040"
    with_questions = dict(read_tensors(verify_checkpoint(run / name)))
    without = dict(read_tensors(verify_checkpoint(folder / "undisturbed" / name)))
    assert with_questions.keys() == without.keys()
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_questions.items())


@pytest.mark.parametrize("name", TRAININGS)
def test_scores_during_training_on_ranks_equal_those_of_the_checkpoint(
    name: str, folder: Path, ranks: Path, tmp_path: Path
) -> None:
    by_step = few_shot_scores_of_run(folder / name)
    assert list(by_step) == [2, 4]
    report = evaluated(folder / name, tmp_path / "report.json")
    assert by_step[4] == report["few_shot"]
    assert max(score["value"] for score in by_step[4]) > 0


def test_the_main_rank_records_in_weights_and_biases(run: Path, ranks: Path) -> None:
    """With the real client, offline."""
    report = json.loads((ranks / "pipeline 2 x data 2.json").read_text())
    (recorded,) = run.glob("wandb/offline-run-*")
    (table,) = recorded.glob("files/media/table/*.json")
    found = json.loads(table.read_text())
    assert [dict(zip(found["columns"], row, strict=True)) for row in found["data"]] == report["few_shot"]
    (stored,) = recorded.glob("*.wandb")
    for name in (f"few_shot/{TASK}/0", "validation/learned/loss"):
        assert name.encode() in stored.read_bytes()
    assert not (run / "wandb_run_id").exists(), "the id of the training run is not replaced"


def test_the_launcher_starts_ranks_and_only_the_main_rank_reports(run: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(run), "--nproc", "2", "--parallel.tensor=2", "--device", "cpu", "--tasks", "none"]
    words += ["--max-validation-tokens", "640", "--json", str(tmp_path / "r.json")]
    done = subprocess.run(
        [sys.executable, "-m", "launch.main", *words],
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nats per token") == 1
    assert json.loads((tmp_path / "r.json").read_text())["validation_tokens"] == 640
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"], "the launcher leaves no files"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nproc", "0"], "--nproc 0 is invalid: must be at least 1"),
        (["--nproc", "2", "--parallel.tensor", "3"], "does not divide the 2 processes. Start 3 processes (--nproc"),
        (["--nproc", "3", "--parallel.tensor", "3"], "parallel.tensor = 3 is invalid: must divide model.n_heads = 4"),
        (
            ["--nproc", "5", "--parallel.pipeline", "5"],
            "model.n_layers = 2 is invalid: does not fill 5 pipeline stages",
        ),
        (["--parallel.tensor", "2"], "does not divide the 1 process. Start 2 processes (--nproc"),
        (["--nproc", "2", "--parallel.zero_stage", "3"], "except its layout. Use --parallel.tensor"),
        (["--nproc", "2", "--model.n_heads", "2"], "--model.n_heads is invalid: a trained model cannot be changed"),
        (["--nproc", "2", "--parallel.tensr", "2"], "except its layout. Use --parallel.tensor"),
        (["--nproc", "2", "--step", "3"], "There are: 20, 40, 60"),
        (["--nproc", "2", "--tasks", "none", "gpt3"], "'none' excludes other tasks"),
    ],
)
def test_an_impossible_layout_is_refused_in_one_line(
    words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--tasks", "none", "--device", "cpu", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["few_shot_tasks", "[]"], "train.few_shot_tasks is empty"),
        (
            ["few_shot_examples", "[201]"],
            "train.few_shot_examples 201 is invalid: gpt3_two_digit_addition has 200 problems",
        ),
        (["few_shot_examples", "[-1]"], "train.few_shot_examples = [-1] is invalid: must be numbers of examples"),
        (["few_shot_limit", "0"], "train.few_shot_limit = 0 is invalid: must be at least 1"),
    ],
)
def test_impossible_few_shot_settings_are_refused_before_training(
    words: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override = [f"--train.{words[0]}", words[1]]
    assert main(["train", str(folder / "recipe.toml"), "--run.directory", str(tmp_path / "run"), *override]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
