"""A DPO run through the command: it starts at log 2, keeps its reference model, and resumes bit-exactly without the run
that it started from."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from gpt.token_files.files import TokenFileWriter
from launch.main import main
from launch.runs.saved_run import load_run
from launch.training.reference import REFERENCE
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.load import read_tensors

QUIET = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--metrics.log_every_steps", "1"]
STEPS, SEQ_LEN, SEQUENCES = 4, 64, 8


def write_rankings(folder, name, n_documents, seed):
    """Prompts with two to four completions; the better ones have more of one token."""
    draw = np.random.default_rng(seed)
    with (
        TokenFileWriter(folder / name, vocab_size=512) as tokens,
        TokenFileWriter(folder / f"{name}_learned", vocab_size=2) as learned,
        TokenFileWriter(folder / f"{name}_marks", vocab_size=16) as marks,
    ):
        for _ in range(n_documents):
            document, learns, ends = [], [], []
            prompt = draw.integers(3, 500, size=4)
            for level in range(int(draw.integers(2, 5))):
                answer = draw.integers(3, 500, size=int(draw.integers(4, 10)))
                answer[: level + 1] = 7
                document += [*prompt, *answer]
                learns += [0] * len(prompt) + [1] * len(answer)
                ends += [0] * (len(prompt) + len(answer) - 1) + [1 + level]
            for writer, values in ((tokens, document), (learned, learns), (marks, ends)):
                writer.add_document(np.array(values))


@pytest.fixture(scope="module")
def words(tiny_corpus, tmp_path_factory):
    """The words of the command, without the run's directory and length; the run to start from is `base` in the folder
    of the rankings."""
    folder = tmp_path_factory.mktemp("dpo")
    write_rankings(folder, "train", 40, 0)
    write_rankings(folder, "held", 10, 1)
    base = ["train", str(tiny_corpus.recipe), *QUIET]
    assert main([*base, "--run.directory", str(folder / "base"), "--train.total_tokens", "1024"]) == 0

    def corpus(name):
        streams = f'{{ learned = "{folder}/{name}_learned", marks = "{folder}/{name}_marks" }}'
        return f'[{{ path = "{folder}/{name}", streams = {streams} }}]'

    settings = {
        "objective.kind": '"dpo"',
        "objective.beta": 0.2,
        "run.start_from": folder / "base",
        "data.train": corpus("train"),
        "data.validation": corpus("held"),
        "data.sampling": '"document"',
        "data.seq_len": SEQ_LEN,
        "batch.global_batch_tokens": SEQUENCES * SEQ_LEN,
        "batch.micro_batch_size": 2,
        "checkpoint.every_tokens": 2 * SEQUENCES * SEQ_LEN,
        "checkpoint.keep_last": 5,
        "train.evaluate_every_tokens": STEPS * SEQUENCES * SEQ_LEN,
    }
    return folder, [*base, *(str(word) for key, value in settings.items() for word in (f"--{key}", value))]


def train(words, run, steps, *more):
    length = ["--train.total_tokens", str(steps * SEQUENCES * SEQ_LEN)]
    return main([*words, "--run.directory", str(run), *length, *map(str, more)])


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def weights(run):
    return dict(load_run(run).model.named_parameters())


def test_it_resumes_bit_exactly_after_the_first_run_has_moved_on_and_gone(words, tiny_corpus, tmp_path):
    folder, words = words
    source = tmp_path / "source"
    shutil.copytree(folder / "base", source)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    from_source = ["--run.start_from", source]
    assert train(words, whole, STEPS, *from_source) == 0
    assert train(words, parts, STEPS // 2, *from_source) == 0
    assert losses(whole)[1] == pytest.approx(math.log(2), abs=1e-6), "policy and reference are equal"
    assert losses(whole)[STEPS] < 0.67, "it learns"

    again = ["train", str(tiny_corpus.recipe), *QUIET, "--run.directory", str(source)]
    assert main([*again, "--train.total_tokens", "2048"]) == 0, "a newer checkpoint that is not the reference"
    shutil.rmtree(source)
    assert train(words, parts, STEPS, *from_source) == 0
    assert losses(parts) == losses(whole)
    ours, expected = weights(parts), weights(whole)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    validation = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()][-1]
    assert 0 <= validation["validation/held/accuracy"] <= 1


def test_without_its_reference_a_run_does_not_resume(words, tmp_path, capsys):
    _, words = words
    run = tmp_path / "run"
    assert train(words, run, 2) == 0
    shutil.rmtree(run / REFERENCE)
    capsys.readouterr()
    assert train(words, run, STEPS) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{run / REFERENCE} has no whole copy of the reference model" in line


def test_adapters_train_relative_to_a_reference_without_any(words, tmp_path):
    _, words = words
    run, parts, adapter = tmp_path / "run", tmp_path / "parts", ["--adapter.rank", 4]
    assert train(words, run, 2, *adapter) == 0
    assert losses(run)[1] == pytest.approx(math.log(2), abs=1e-6), "a new adapter changes nothing"
    assert train(words, parts, 1, *adapter) == 0
    assert train(words, parts, 2, *adapter) == 0
    assert losses(parts) == losses(run)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_adapters_train_relative_to_the_base_and_resume_bit_exactly(words, tmp_path, kind):
    """Their checkpoints hold no base model; a reward model's hold its head, which trains too."""
    _, words = words
    adapter = ["--adapter.rank", 4, "--adapter.save_base", "false", "--optimizer.learning_rate", "1e-2"]
    if kind == "reward":
        i = words.index("--objective.kind")
        words = [*words[:i], "--objective.kind", "reward", *words[i + 4 :]]  # without beta
    assert train(words, tmp_path / "whole", STEPS, *adapter) == 0
    for steps in (STEPS // 2, STEPS):
        assert train(words, tmp_path / "parts", steps, *adapter) == 0
    found = losses(tmp_path / "whole")
    assert losses(tmp_path / "parts") == found
    if kind == "dpo":
        assert found[1] == pytest.approx(math.log(2), abs=1e-6), "policy and reference are equal"
    assert found[STEPS] < found[1], "it learns"
    stored = [dict(read_tensors(find_latest(tmp_path / run / "checkpoints")[0])) for run in ("whole", "parts")]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])
    base = {name for name in stored[0] if name.startswith("model.") and ".adapter." not in name}
    assert base == ({"model.head.value.weight", "model.head.value.bias"} if kind == "reward" else set())
