"""Secrets in the environment and in URLs appear in no file and no output of a run, even when it crashes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.token_files.files import TokenFile
from launch.main import main
from launch.processes.rank_process import enter_process
from parallel.engines.checkpoints import SharedCheckpoints
from parallel.engines.native import NativeEngine

CANARIES = {
    "WANDB_API_KEY": "0ddba11c0ffee0ddba11c0ffee0ddba11c0ffee0",
    "HF_TOKEN": "hf_canaryCanaryCanaryCanary",
    "HUGGING_FACE_HUB_TOKEN": "hf_secondCanaryCanaryCanary",
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARYCANA",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+secret/canary/aws+secret",
    "AWS_SESSION_TOKEN": "canarySessionTokenCanary==",
    "HTTPS_PROXY": "http://proxyuser:canaryProxyPassword@localhost:1",
    "DATABASE_URL": "postgres://me:canaryDatabasePassword@localhost/x",
}
SECRETS = [*list(CANARIES.values())[:6], "canaryProxyPassword", "canaryDatabasePassword"]
PHASES = {
    "data": (TokenFile, "read"),
    "training": (NativeEngine, "forward_backward"),
    "update": (NativeEngine, "optimizer_step"),
    "evaluation": (NativeEngine, "evaluate"),
    "sampling": (NativeEngine, "as_model"),
    "saving": (SharedCheckpoints, "save"),
}


@pytest.fixture
def canaries(monkeypatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def told(canaries, capfd, tmp_path, monkeypatch):
    """Check that no output since the last call and no file in a folder contains a secret; returns the output."""
    (tmp_path / "checkout").mkdir()  # a git checkout with a token in its remote URL, which W&B reads
    monkeypatch.chdir(tmp_path / "checkout")
    subprocess.run(["git", "init", "-q", "."], check=True)
    subprocess.run(["git", "remote", "add", "origin", "https://canaryGitToken@example.org/x.git"], check=True)

    def check(folder):
        shown = "".join(capfd.readouterr())
        for secret in [*SECRETS, "canaryGitToken"]:
            assert secret not in shown, shown
            for path in Path(folder).rglob("*"):
                if path.is_file() and ".git" not in path.parts:
                    assert secret.encode() not in path.read_bytes(), (path, secret)
        return shown

    return check


def words(tiny_corpus, run, *more):
    common = ["train", str(tiny_corpus.recipe), "--run.directory", str(run), "--run.peak_flops_per_s", "1e12"]
    common += ["--train.sample_every_tokens", "1024", "--train.sample_new_tokens", "2", "--train.total_tokens", "2048"]
    return [*common, *more]


def test_a_run_with_its_report_checkpoint_and_doctor(told, tiny_corpus, tmp_path):
    """With W&B's offline folder, and once more after a resume."""
    run = tmp_path / "run"
    assert main(words(tiny_corpus, run)) == 0
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert main(words(tiny_corpus, run, "--train.total_tokens", "2560")) == 0
    assert main(["report", str(run), "--html", str(run / "report.html"), "--json", str(run / "report.json")]) == 0
    assert main(["doctor"]) in (0, 1)
    assert main(["doctor", "--json"]) in (0, 1)
    shown = told(run)
    assert "resumed from" in shown
    assert {"config.json", "report.html", "events.jsonl"} < {path.name for path in run.iterdir()}


@pytest.mark.parametrize("phase", PHASES)
def test_a_crash_in_each_phase(told, tiny_corpus, tmp_path, monkeypatch, phase):
    """The error message itself contains the secrets, as a library's might; torch elastic's file is checked too."""
    where, method = PHASES[phase]
    original, calls = getattr(where, method), []

    def crash(*args, **kwargs):
        calls.append(1)
        if len(calls) > (6 if phase == "data" else 0):  # some reads pass
            raise RuntimeError(f"cannot go on: {CANARIES}, https://me:canaryProxyPassword@host/x")
        return original(*args, **kwargs)

    wandb = "offline" if phase == "training" else "disabled"
    run, error_file = tmp_path / "run", tmp_path / "error.json"
    monkeypatch.setattr(where, method, crash)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    enter_process()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file))
    with pytest.raises(RuntimeError, match="cannot go on") as raised:
        main(words(tiny_corpus, run, "--train.evaluate_every_tokens", "512", "--metrics.wandb", wandb))
    sys.excepthook(raised.type, raised.value, raised.tb)  # as Python does for an uncaught exception
    shown = told(tmp_path)
    assert "RuntimeError: cannot go on: {'WANDB_API_KEY': '<WANDB_API_KEY>'" in shown
    assert f"in {method}" in shown or "in crash" in shown
    message = json.loads(error_file.read_text())["message"]
    assert "<HF_TOKEN>" in message["message"]
    assert "<AWS_SECRET_ACCESS_KEY>" in message["extraInfo"]["py_callstack"]


@pytest.mark.parametrize(
    "value",
    [
        "https://me:canaryProxyPassword@host/a.jsonl",
        "zip://a.jsonl::https://me:canaryProxyPassword@host/a.zip",
        "s3://AKIACANARYCANARYCANA:canaryProxyPassword@bucket/a.jsonl",
        "https://hf_canaryCanaryCanaryCanary@host/a.jsonl",
        "https://host/a.jsonl?X-Amz-Signature=canaryProxyPassword",
    ],
)
def test_secrets_in_the_urls_of_a_recipe(told, tmp_path, value):
    """The URL is rejected and not printed: as an input, as a value of the wrong type, and as an output folder."""
    recipe = tmp_path / "recipe.toml"
    home = tmp_path / "home"
    (tmp_path / "text.txt").write_text("a text")
    for paths, folder in ((f'["{value}"]', home), (f'"{value}"', home), (f'["{tmp_path}/text.txt"]', value)):
        recipe.write_text(
            f'[input]\npaths = {paths}\n[tokenizer]\nvocab_size = 300\n[output]\nfolder = "{folder}"\nwork = "{home}"\n'
        )
        assert main(["prepare", str(recipe), "--workers", "1"]) == 2
        recipe.unlink()
        shown = told(tmp_path)
        assert shown.count("\n") == 1, shown
        assert shown.startswith("triaxial: error: ")
