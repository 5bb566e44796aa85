"""Canaries in the environment and in URLs: no file that a run leaves, and nothing that it says, holds one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from gpt.token_files.files import TokenFile
from launch.main import main
from launch.processes.environment import enter_process
from launch.processes.failures import without_secrets
from parallel.engines.native import NativeEngine
from parallel.engines.native_checkpoints import SharedCheckpoints

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
    "sampling": (NativeEngine, "generate"),
    "saving": (SharedCheckpoints, "save"),
}


@pytest.fixture
def canaries(monkeypatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def told(canaries, capfd, tmp_path, monkeypatch):
    """The words and files of commands since the last call; none may hold a secret."""
    (tmp_path / "checkout").mkdir()  # a folder under git with a token in its remote, which W&B looks at
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


def test_a_run_and_all_that_is_made_of_it(told, tiny_corpus, tmp_path):
    """With W&B's offline folder, report, checkpoint, doctor; and again, resumed."""
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
    """With the secrets in the error's own words, as a library might have them; what torch elastic keeps is read too."""
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
    sys.excepthook(raised.type, raised.value, raised.tb)  # as Python itself does at the end
    dist.destroy_process_group()
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
    """Refused, and not shown: neither as an input, nor as a wrong value, nor in a recipe that is no TOML."""
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


def test_what_is_no_secret_stays():
    environment = {"HF_TOKEN": "short", "SSL_KEY_FILE": "/etc/ssl/private", "TOKENIZERS_PARALLELISM": "false-or-true"}
    environment["HOME"] = "/home/somebody"
    for text in (
        "a short token in /etc/ssl/private, false-or-true, /home/somebody/run: step 3",
        "https://host/a?n=1&key=2 mail@host",
        "--data.train [{ path = 's3://bucket/x' }]; tokens_seen=5",
    ):
        assert without_secrets(text, environment) == text
    shown = without_secrets("ftp://a:b@c@host/x?Sig=1&x=2 and LONGSECRET", {"MY_PASSWORD": "LONGSECRET"})
    assert shown == "ftp://***@host/x?Sig=***&x=2 and <MY_PASSWORD>"
