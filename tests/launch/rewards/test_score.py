"""`triaxial score` on rankings and demonstrations, on one process and on layouts, and the calibration of a run."""

import json
import shutil

import numpy as np
import pytest
import torch

from gpt.model.gpt import GPT
from gpt.model.heads import ScalarHead
from gpt.post_training.ranking_accuracy import ranking_report
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main
from launch.rewards.calibrate import BIAS, CALIBRATION
from launch.rewards.report import draw_calibration, report_lines
from launch.rewards.token_files import demonstrations, ranked_prompts
from launch.runs.open_model import config_of_newest
from launch.runs.saved_run import model_section
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors


@pytest.fixture(scope="module")
def plain_model(reward_run):
    """The run's model in plain torch and float64."""
    config = model_section(config_of_newest(reward_run.run, None))
    model = GPT(config, head=ScalarHead(config)).double()
    checkpoint, _ = find_latest(reward_run.run / "checkpoints")
    stored = {name.removeprefix("model."): t for name, t in read_tensors(checkpoint) if name.startswith("model.")}
    model.load_state_dict(stored)
    return model


def read(reward_run, name, function):
    tokenizer = load_tokenizer(reward_run.run / "tokenizer" / "topics.model")
    return function(reward_run.folder / name, tokenizer=reward_run.run / "tokenizer", fingerprint=tokenizer.fingerprint)


@torch.no_grad()
def rewards_of(model, sequences):
    return np.array([model(torch.from_numpy(ids)[None])[0, -1, 0].item() for ids in sequences])


def scored(folder, *words):
    file = folder / "scores.json"
    assert main(["score", *map(str, words), "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_training_has_learned_and_started_from_the_language_model(reward_run):
    lines = [json.loads(line) for line in (reward_run.run / "metrics.jsonl").read_text().splitlines()]
    accuracies = [line["validation/validation/accuracy"] for line in lines if "validation/validation/accuracy" in line]
    assert accuracies[-1] > 0.6
    events = (reward_run.run / "events.jsonl").read_text()
    assert "head.value.weight is initialised from the seed" in events
    assert "embed.tokens.weight is initialised" not in events


@pytest.fixture(scope="module")
def one_process(reward_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    words = ["--rankings", reward_run.folder / "validation", "--demonstrations", reward_run.folder / "demonstrations"]
    files = ["--plot", folder / "plot.svg", "--rewards", folder / "rewards.jsonl"]
    return scored(folder, reward_run.run, *words, *files, "--batch-tokens", 3000), folder


def test_the_report_is_that_of_each_completion_alone(reward_run, plain_model, one_process):
    result, folder = one_process
    prompts = read(reward_run, "validation", ranked_prompts)
    assert [prompt.labeller for prompt in prompts[:3]] == ["person 0", "person 1", "person 0"]
    expected = ranking_report(prompts, [rewards_of(plain_model, prompt.completions) for prompt in prompts])
    for key in ("by_prompt", "loss", "reward_mean", "reward_std", "calibration_error"):
        assert result["rankings"][key] == pytest.approx(getattr(expected, key), abs=1e-5), key
    assert result["rankings"]["overall"]["share"] == expected.overall.share
    assert result["rankings"]["by_labeller"].keys() == {"person 0", "person 1"}
    assert len(result["rankings"]["by_margin"]) == 4
    found = rewards_of(plain_model, read(reward_run, "demonstrations", demonstrations))
    assert result["demonstrations"]["mean"] == pytest.approx(found.mean(), abs=1e-5)
    assert result["demonstrations"]["n"] == len(found)
    lines = [json.loads(line) for line in (folder / "rewards.jsonl").read_text().splitlines()]
    assert [line["levels"] for line in lines] == [prompt.levels.tolist() for prompt in prompts]
    for line, prompt in zip(lines, prompts, strict=True):
        assert line["rewards"] == pytest.approx(rewards_of(plain_model, prompt.completions), abs=1e-5)
    assert (folder / "plot.svg").read_text().count("<circle") == len(expected.calibration)
    assert draw_calibration(expected.calibration).startswith("<svg")
    assert report_lines(expected)[0].startswith("accuracy: 0.")
    lines = [json.loads(line) for line in (reward_run.run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "validation/validation/loss" in line][-1]
    assert trained["validation/validation/loss"] == pytest.approx(expected.loss, abs=1e-5), "training measures the same"
    assert trained["validation/validation/accuracy"] == pytest.approx(expected.by_prompt, abs=1e-6)


@pytest.mark.timeout(600)
def test_calibration_on_ranks_makes_the_mean_reward_0_and_is_published_whole(reward_run, one_process, tmp_path):
    """Tensor 2 x pipeline 2 shifts; one process measures. Everything else in the checkpoint stays, bit for bit."""
    run = tmp_path / "run"
    shutil.copytree(reward_run.run, run)
    before, _ = find_latest(run / "checkpoints")
    old = dict(read_tensors(before))
    words = [run, "--demonstrations", reward_run.folder / "demonstrations"]
    layout = ["--nproc", 4, "--parallel.tensor", 2, "--parallel.pipeline", 2]
    shifted = scored(tmp_path, *words, "--calibrate", *layout)["demonstrations"]
    assert shifted["mean"] == pytest.approx(one_process[0]["demonstrations"]["mean"], abs=1e-5)
    after = scored(tmp_path, *words)["demonstrations"]
    assert after["mean"] == pytest.approx(0.0, abs=1e-6)
    assert after["std"] == pytest.approx(shifted["std"], abs=1e-5)
    published = verify_checkpoint(before.path)
    assert published.step == before.step
    new = dict(read_tensors(published))
    assert new.keys() == old.keys()
    assert [name for name in new if not torch.equal(new[name], old[name])] == [BIAS]
    facts = published.state[CALIBRATION]
    assert facts["shift"] == pytest.approx(-shifted["mean"])
    assert {**published.state, CALIBRATION: None} == {**before.state, CALIBRATION: None}
    event = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert (event["kind"], event["n"], event["shift"]) == ("calibrated", 30, facts["shift"])
    assert [path.name for path in (run / "checkpoints").iterdir()] == [before.path.name], "nothing is left over"
    assert (
        main(["train", str(reward_run.folder / "recipe.toml"), "--run.directory", str(run), "--train.epochs", "2"]) == 0
    )
