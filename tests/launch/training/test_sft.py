"""Supervised fine-tuning with dropout through the command: layouts, a float64 loop over conversations, resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.model.config import ModelConfig
from gpt.model.dropout import ResidualDropout, position_keys, row_keys
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.token_files.files import TokenFile, TokenFileWriter
from launch.main import main

ROOT = Path(__file__).resolve().parents[3]
VOCAB, SEQ_LEN, SEQUENCES, STEPS = 512, 32, 8, 4
SEED, DROPOUT = 5, 0.2
MODEL = {"vocab_size": VOCAB, "n_ctx": SEQ_LEN, "n_layers": 4, "d_model": 32, "n_heads": 4}
RECIPE = """
[run]
seed = {seed}
device = "cpu"
peak_flops_per_s = 1e12
[model]
{model}
[objective]
kind = "sft"
[data]
tokenizer = "{tokenizer}"
seq_len = {seq_len}
sampling = "packed"
train = [
    {{ path = "{folder}/talk", streams = {{ learned = "{folder}/talk_learned" }}, weight = 0.7 }},
    {{ path = "{folder}/text", weight = 0.3, sampling = "window" }},
]
validation = [
    {{ path = "{folder}/held", streams = {{ learned = "{folder}/held_learned" }} }},
    {{ path = "{folder}/text", sampling = "window" }},
]
[batch]
micro_batch_size = 2
global_batch_tokens = {step_tokens}
[optimizer]
learning_rate = 3e-3
[schedule]
warmup_tokens = 0
shape = "constant"
[parallel]
precision = "fp32"
[checkpoint]
every_steps = {half}
[train]
residual_dropout = {dropout}
total_steps = {steps}
evaluate_every_steps = {steps}
[metrics]
wandb = "disabled"
"""


def write(folder, name, lengths, *, seed, marked):
    """Documents of random ids; of a conversation, about half of the tokens are learned, and of some none."""
    draw = np.random.default_rng(seed)
    with TokenFileWriter(folder / name, vocab_size=VOCAB) as tokens:
        for length in lengths:
            tokens.add_document(draw.integers(0, VOCAB, length))
    if marked:
        with TokenFileWriter(folder / f"{name}_learned", vocab_size=2) as learned:
            for i, length in enumerate(lengths):
                learned.add_document((draw.random(length) < (0.5 if i % 5 else 0)).astype(np.int64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_corpus):
    folder = tmp_path_factory.mktemp("sft")
    draw = np.random.default_rng(0)
    write(folder, "talk", draw.integers(2, 40, 60).tolist(), seed=1, marked=True)
    write(folder, "held", draw.integers(2, 30, 20).tolist(), seed=2, marked=True)
    write(folder, "text", draw.integers(5, 90, 30).tolist(), seed=3, marked=False)
    recipe = RECIPE.format(
        model="\n".join(f"{key} = {json.dumps(value)}" for key, value in MODEL.items()),
        tokenizer=tiny_corpus.folder / "topics.model",
        folder=folder,
        seq_len=SEQ_LEN,
        step_tokens=SEQUENCES * SEQ_LEN,
        steps=STEPS,
        dropout=DROPOUT,
        seed=SEED,
        half=STEPS // 2,
    )
    (folder / "sft.toml").write_text(recipe)
    return folder


def train(folder, name, *words):
    """Train as run `name`. Returns the logged steps and the validation losses."""
    command = [sys.executable, "-m", "launch.main", "train", str(folder / "sft.toml")]
    command += ["--run.directory", str(folder / name), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "loss" in line}
    return steps, {
        key: v for line in lines for key, v in line.items() if key.startswith("validation/") and "loss" in key
    }


@pytest.fixture(scope="module")
def one_process(folder):
    return train(folder, "one")


def parts(folder, name, spans):
    """The parts (document, offset, tokens) of a corpus: ids, and which are learned."""
    file = TokenFile(folder / name)
    marks = TokenFile(folder / f"{name}_learned") if (folder / f"{name}_learned.bin").exists() else None
    for document, offset, n_tokens in spans:
        start = file.document_start(document) + offset
        ids = file.read(start, start + n_tokens).astype(np.int64)
        yield ids, np.ones_like(ids) if marks is None else marks.read(start, start + n_tokens).astype(np.int64)


def textbook_sum(model, ids, learned, dropout=None):
    """The loss of one sequence alone: plain causal attention, no padding, all logits in memory."""
    if len(ids) < 2:
        return torch.zeros((), dtype=torch.float64), 0
    logits = model.head(model.hidden_states(torch.from_numpy(ids[:-1])[None], dropout=dropout))[0, :, :VOCAB]
    losses = functional.cross_entropy(logits, torch.from_numpy(ids[1:]), reduction="none")
    counted = torch.from_numpy(learned[1:]).bool()
    return losses[counted].sum(), int(counted.sum())


def sequences_of_step(folder, data, step):
    """Each conversation alone; a window of text as one sequence, since its documents are not kept apart.

    Dropout's keys are those of the columns that a sequence has in its sample.
    """
    for position in range((step - 1) * SEQUENCES, step * SEQUENCES):
        found = data.locate(position)
        spans = [(part.document, part.offset_tokens, part.n_tokens) for part in found.documents]
        pieces = list(parts(folder, found.corpus, spans))
        if found.corpus == "text":
            pieces = [tuple(np.concatenate(columns) for columns in zip(*pieces, strict=True))]
        row, begin = torch.from_numpy(row_keys(SEED, np.array([position]))), 0
        keys = position_keys(row, length=SEQ_LEN + 1)
        for ids, learned in pieces:
            yield ids, learned, ResidualDropout(keys[:, begin : begin + len(ids) - 1], DROPOUT)
            begin += len(ids)


def test_one_process_learns_what_a_textbook_loop_in_float64_learns(folder, one_process):
    steps, validation = one_process
    config = ModelConfig(**MODEL)
    model = GPT(config)
    initialise(model, config, seed=SEED)
    model.double()
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.dim() > 1]},
        {"params": [p for p in named.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    corpora = (
        CorpusConfig(str(folder / "talk"), weight=0.7),
        CorpusConfig(str(folder / "text"), weight=0.3, sampling="window"),
    )
    data = TrainingData(
        DataConfig(tokenizer="none", train=corpora, seq_len=SEQ_LEN, sampling="packed"), seed=SEED, vocab_size=VOCAB
    )
    assert {data.corpus_of(n) for n in range(STEPS * SEQUENCES)} == {"talk", "text"}
    for step in range(1, STEPS + 1):
        sums = [textbook_sum(model, *sequence) for sequence in sequences_of_step(folder, data, step)]
        loss = sum(total for total, _ in sums) / sum(count for _, count in sums)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        assert steps[step]["loss"] == pytest.approx(loss.item(), rel=2e-5)
        assert steps[step]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        held = TokenFile(folder / "held")
        lengths = np.diff(held.document_starts())
        sums = [textbook_sum(model, *one) for one in parts(folder, "held", [(i, 0, n) for i, n in enumerate(lengths)])]
    expected = sum(total.item() for total, _ in sums) / sum(count for _, count in sums)
    assert validation["validation/held/loss"] == pytest.approx(expected, rel=1e-4)


def test_evaluate_finds_the_validation_loss_over_learned_tokens(folder, one_process):
    report = folder / "evaluation.json"
    assert main(["evaluate", str(folder / "one"), "--tasks", "none", "--json", str(report)]) == 0
    found = json.loads(report.read_text())["validation"]
    for name in ("held", "text"):
        expected = one_process[1][f"validation/{name}/loss"]
        assert found[name]["loss_nats"] == pytest.approx(expected, rel=1e-5)


KEEP_BEST = ["--checkpoint.keep_best", "validation/held/loss", "--checkpoint.keep_last", "1"]
KEEP_BEST += ["--checkpoint.every_steps", "1", "--train.evaluate_every_steps", "1", "--optimizer.learning_rate", "0.1"]


def test_the_best_checkpoint_is_kept_and_found(folder, capfd):
    """Validation loss rises at so high a learning rate. A resumed run remembers the best of before."""
    words = ["train", folder / "sft.toml", "--run.directory", folder / "best", *KEEP_BEST]
    for steps in (3, 6):
        assert main([*map(str, words), "--train.total_steps", str(steps)]) == 0
    lines = [json.loads(line) for line in (folder / "best" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation/held/loss"] for line in lines if "validation/held/loss" in line}
    best = min(losses, key=losses.__getitem__)
    assert len(losses) == 6
    assert best < 4, "else the newest checkpoints hold it anyway"
    kept = sorted(path.name for path in (folder / "best" / "checkpoints").iterdir() if path.name.startswith("step-"))
    assert kept == [f"step-{best:09d}", "step-000000006"]
    report = folder / "best.json"
    words = ["evaluate", folder / "best", "--step", "best", "--tasks", "none", "--json", report]
    assert main([*map(str, words)]) == 0
    found = json.loads(report.read_text())["validation"]["held"]["loss_nats"]
    assert found == pytest.approx(losses[best], rel=1e-5)
    events = [json.loads(line) for line in (folder / "best" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "best"][-1] == best
    capfd.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--checkpoint.keep_best", "validation/held/los", "--checkpoint.every_steps", str(STEPS)],
            "checkpoint.keep_best = 'validation/held/los' is invalid: evaluations give no such value. Use one of "
            "validation/held/loss, validation/held/perplexity",
        ),
        (
            ["--checkpoint.keep_best", "validation/held/loss", "--checkpoint.every_steps", "3"],
            "a checkpoint must be saved at each evaluation. Use the same number for both",
        ),
    ],
)
def test_a_best_checkpoint_that_cannot_be_is_refused(folder, capfd, words, message):
    assert main(["train", str(folder / "sft.toml"), "--run.directory", str(folder / "no"), *words]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_run_without_a_best_checkpoint_says_so(folder, one_process, capfd):
    assert main(["evaluate", str(folder / "one"), "--step", "best", "--tasks", "none"]) == 2
    assert "is not the directory of a run that evaluated with checkpoint.keep_best" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        pytest.param(4, {"tensor": 2, "pipeline": 2}, id="tensor x pipeline"),
        pytest.param(2, {"zero_stage": 2, "recompute": "full"}, id="data"),
        pytest.param(2, {"engine": "deepspeed", "zero_stage": 2}, id="deepspeed", marks=pytest.mark.rehearse),
    ],
)
def test_layouts_learn_the_same(folder, one_process, ranks, layout):
    if "engine" in layout:
        pytest.importorskip("deepspeed")
    words = [word for key, value in layout.items() for word in (f"--parallel.{key}", value)]
    steps, validation = train(folder, "-".join(map(str, layout.values())), "--nproc", ranks, *words)
    for step, line in one_process[0].items():
        for key in ("loss", "gradient_norm"):
            assert steps[step][key] == pytest.approx(line[key], rel=2e-5), (step, key)
    assert validation == pytest.approx(one_process[1], rel=2e-5)


def test_a_resumed_run_is_the_run_that_was_never_interrupted(folder, one_process):
    train(folder, "parts", "--train.total_steps", STEPS // 2)
    steps, _ = train(folder, "parts")
    assert {n: line["loss"] for n, line in steps.items()} == {n: line["loss"] for n, line in one_process[0].items()}


def test_demonstrations_without_marks_are_refused_in_one_line(folder, capfd):
    corpus = f'[{{ path = "{folder}/talk" }}]'
    words = ["train", folder / "sft.toml", "--run.directory", folder / "no", "--data.train", corpus]
    assert main([*map(str, words)]) == 2
    said = capfd.readouterr().err
    assert "data.train: no corpus has the stream 'learned', but the objective of [objective] needs it" in said
    assert said.count("\n") == 1
