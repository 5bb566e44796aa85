"""`triaxial train` as users run it: one process, local processes, torchrun; resuming, stopping, and their mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpt.telemetry.goodput import read_account
from gpt.token_files.files import TokenFile, TokenFileWriter
from gpt.tokenizer.tokenizers import train_sentencepiece
from launch.main import main

TRIAXIAL = [sys.executable, "-m", "launch.main"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def triaxial(*words, timeout=120, command=TRIAXIAL):
    return subprocess.run(
        [*command, *map(str, words)], capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False
    )


def train_here(*words):
    """Run `triaxial train` in this process, which has already loaded torch; returns its exit status."""
    return main(["train", *map(str, words)])


def metrics(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return {line["step"]: line["loss"] for line in metrics(run) if "loss" in line}


def epochs(run):
    return {line["step"]: line["epochs/train"] for line in metrics(run) if "epochs/train" in line}


@pytest.fixture(scope="module")
def finished(tiny_corpus, tmp_path_factory):
    """A finished run of one process."""
    run = tmp_path_factory.mktemp("runs") / "one"
    done = triaxial("train", tiny_corpus.recipe, "--run.directory", run)
    assert done.returncode == 0, done.stderr
    return run, done


def test_a_run_leaves_all_its_files(finished, tiny_corpus):
    run, done = finished
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000000008", "step-000000012"]
    assert set(losses(run)) == set(range(1, 13))
    assert losses(run)[12] < losses(run)[1] - 0.5, "it learns"
    records = metrics(run)
    keys = {"loss", "gradient_norm", "learning_rate", "tokens_per_s", "mfu", "tokens_seen", "step"}
    assert keys <= records[0].keys()
    assert records[-1]["validation/topics/loss"] < losses(run)[1]
    windows = (TokenFile(tiny_corpus.folder / "train").n_tokens - 1) // 64
    assert epochs(run) == {step: step * 8 / windows for step in range(1, 13)}, "a tenth of 12 steps is each step"
    assert json.loads((run / "train_summary.json").read_text())["epochs"] == {"train": 96 / windows}
    assert "epochs/" not in done.stdout, "the screen leaves it to metrics.jsonl"
    assert ", goodput " in done.stdout
    assert list((run / "wandb").glob("offline-run-*/*.wandb")), "Weights & Biases' own file, ready to sync"
    assert (run / "tokenizer" / "topics.model").exists()
    assert json.loads((run / "config.json").read_text())["model"]["vocab_size"] == 512
    assert "tensor 1 x pipeline 1 x data 1" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ") and "loss" in line]
    assert len(lines) >= 12, "one plain line per logged step in a pipe"
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout


def test_a_finished_run_says_so_and_keeps_its_files(finished, tiny_corpus):
    run, _ = finished
    kept = [run / "train_summary.json", run / "ledger.jsonl"]
    before = [path.read_bytes() for path in kept]
    again = triaxial("train", tiny_corpus.recipe, "--run.directory", run)
    assert again.returncode == 0, again.stderr
    assert "nothing left to train" in again.stdout
    assert [path.read_bytes() for path in kept] == before


def test_the_report_accounts_for_the_time_of_a_run(finished, tmp_path, capsys):
    run, done = finished
    found = read_account(run / "ledger.jsonl")
    (process,) = found.processes
    parts = {"imports", "preparing", "data", "joining", "verifying", "building", "measuring"}
    assert set(process.start_up) == parts, "and no loading"
    assert process.first_step_s > 0
    assert (found.step, found.tokens, found.repeated_steps, found.seconds["repeated"]) == (12, 6144, 0, 0)
    assert all(found.by_name[name] > 0 for name in ("training", "data", "evaluation", "saving", "shutdown"))
    trained = sum(line["step_s"] for line in metrics(run) if "step_s" in line)
    assert trained / 2 < found.by_name["training"] + found.by_name["data"] <= trained + 0.01, "the loop's own clock"
    summary = json.loads((run / "train_summary.json").read_text())
    assert sum(summary["seconds"].values()) == pytest.approx(summary["wall_s"])
    assert f"s in 1 start, goodput {summary['goodput']:.1%}" in done.stdout
    first = metrics(run)[0]
    assert first["peak_memory_bytes"] >= first["memory/resident_bytes"] > 1 << 20
    assert first["memory/machine_used_bytes"] > 1 << 20
    assert [line["step"] for line in metrics(run) if "goodput" in line] == list(range(1, 13))
    assert all("time/training_s" in line for line in metrics(run) if "goodput" in line)
    assert "time/training_s" not in done.stdout
    assert main(["report", str(run), "--html", str(tmp_path / "report.html")]) == 0
    assert f"goodput {found.goodput:.1%}" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "report.html").read_text().count("<svg ") == 9


def test_local_processes_resume_on_another_layout(finished, tiny_corpus, tmp_path):
    """4 processes (tensor 2 x pipeline 2, as a V) to step 8, then 2 under torchrun itself (data 2) to the end."""
    run = tmp_path / "run"
    words = ["train", tiny_corpus.recipe, "--run.directory", run]
    layout = ["--parallel.tensor", 2, "--parallel.pipeline", 2, "--parallel.schedule", "zbv_zero_bubble"]
    first = triaxial(*words, "--nproc", 4, *layout, "--train.total_tokens", 4096)
    assert first.returncode == 0, first.stderr
    assert "schedule zbv_zero_bubble, 2 stages a rank; blocks of stages 0 to 3: 0, 1, 1, 0" in first.stdout
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "launch.main",
    ]
    second = triaxial(*words, "--resume", "--parallel.data", 2, command=torchrun)
    assert second.returncode == 0, second.stderr
    assert "step 8" in second.stdout
    assert "parallel.tensor: 2 -> 1" in second.stdout
    reference = losses(finished[0])
    for step, loss in losses(run).items():
        assert abs(loss / reference[step] - 1) < 1e-4, step
    assert set(losses(run)) == set(reference)
    assert epochs(run) == epochs(finished[0])


def test_a_batch_ramp_is_the_same_on_every_layout_and_when_resumed(tiny_corpus, tmp_path, capfd):
    """4, 5, 6, 7, 8 sequences a step over the first 2,048 tokens; the data's order is the same as with full steps."""
    ramp = ["--batch.ramp_tokens", 2048, "--batch.ramp_initial_tokens", 256, "--batch.ramp_increment_tokens", 64]
    words = [tiny_corpus.recipe, *ramp, "--batch.micro_batch_size", 1, "--metrics.wandb", "disabled"]
    assert train_here(*words, "--run.directory", tmp_path / "one") == 0
    shown = "batch ramp: 256 tokens a step at first, 4 sizes by 64, the full size from step 8 on, after 2,432"
    assert shown in capfd.readouterr().out
    seen = {line["step"]: line["tokens_seen"] for line in metrics(tmp_path / "one") if "loss" in line}
    assert [seen[step] for step in range(1, 9)] == [256, 512, 832, 1152, 1536, 1984, 2432, 2944]
    assert max(seen) == 15, "three steps more than without, for the same tokens"
    windows = (TokenFile(tiny_corpus.folder / "train").n_tokens - 1) // 64
    assert all(share == seen[step] / 64 / windows for step, share in epochs(tmp_path / "one").items())
    other = ["--run.directory", tmp_path / "other"]
    assert train_here(*words, *other, "--nproc", 2, "--parallel.pipeline", 2, "--train.total_tokens", 1000) == 0
    assert train_here(*words, *other, "--resume") == 0
    assert "(step 4)" in capfd.readouterr().out
    reference = losses(tmp_path / "one")
    assert losses(tmp_path / "other").keys() == reference.keys()
    assert all(abs(loss / reference[step] - 1) < 1e-4 for step, loss in losses(tmp_path / "other").items())


def test_a_signal_saves_and_the_next_run_resumes(finished, tiny_corpus, tmp_path):
    run = tmp_path / "run"
    words = ["train", tiny_corpus.recipe, "--run.directory", run, "--checkpoint.every_tokens", "1000000000"]
    long = [*words, "--train.total_tokens", "50000000", "--schedule.decay_tokens", "20480"]
    began_at = time.monotonic()
    process = subprocess.Popen([*TRIAXIAL, *map(str, long)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    for line in process.stdout:
        if line.lstrip().startswith("step"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 75
    assert "stopped by a signal" in rest
    (saved,) = (run / "checkpoints").iterdir()
    step = json.loads((saved / "state.json").read_text())["step"]
    assert step < 10, "the signal must leave steps to compare after resuming"
    again = triaxial(*words, "--train.total_tokens", (step + 2) * 512)
    assert again.returncode == 0, again.stderr
    assert f"(step {step:,})" in again.stdout
    assert max(losses(run)) == step + 2
    shared = losses(finished[0]).keys() & losses(run).keys()
    assert shared
    assert all(losses(run)[s] == losses(finished[0])[s] for s in shared), "bit for bit on the same layout"
    account = read_account(run / "ledger.jsonl")
    assert [(p.from_step, p.step) for p in account.processes] == [(0, step), (step, step + 2)]
    assert sum(account.seconds.values()) == account.wall_s < time.monotonic() - began_at
    assert account.repeated_steps == 0


def one_line(done, *parts, status=2):
    """Check that the mistake is printed in one line with all the parts, the right exit status and no traceback."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0], (part, lines[0])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["--model.n_layer", "3"], ["model.n_layer", "use model.n_layers"]),
        (
            ["--nproc", "2", "--parallel.tensor", "2", "--model.n_heads", "1"],
            ["model.n_heads = 1", "parallel.tensor = 2"],
        ),
    ],
)
def test_a_mistake_is_one_line_with_and_without_ranks(tiny_corpus, tmp_path, overrides, parts):
    done = triaxial("train", tiny_corpus.recipe, "--run.directory", tmp_path / "run", *overrides)
    one_line(done, *parts)
    assert not (tmp_path / "run").exists()


def test_token_ids_beyond_the_vocabulary(tiny_corpus, tmp_path):
    """A small tokenizer passes, but the corpus was made with a larger one: printed once, although two ranks meet it."""
    train_sentencepiece(iter(["abc " * 400]), tmp_path / "small.model", vocab_size=264)
    with TokenFileWriter(tmp_path / "train", vocab_size=512) as writer:
        writer.add_document(np.full(20_000, 300))
    done = triaxial(
        *("train", tiny_corpus.recipe, "--nproc", 2, "--run.directory", tmp_path / "run"),
        *("--model.vocab_size", 264, "--data.tokenizer", tmp_path / "small.model"),
        f'--data.train=[{{ path = "{tmp_path / "train"}" }}]',
        "--metrics.wandb=disabled",
    )
    one_line(done, "300", "264", str(tmp_path / "train"))


def test_missing_token_files_start_no_rank(tiny_corpus, tmp_path):
    missing = f'--data.train=[{{ path = "{tmp_path / "train"}" }}]'
    words = ["train", tiny_corpus.recipe, "--nproc", 2, "--run.directory", tmp_path / "run", missing]
    program = "import sys; from launch.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).resolve().parents[3])
    one_line(done, f"{tmp_path / 'train'}.idx: no such token file", "`triaxial prepare` makes them", status=0)
    assert done.stdout == "False\n"
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_saving(tiny_corpus, tmp_path, small_disk):
    disk = small_disk(1200 << 10)
    done = triaxial(
        *("train", tiny_corpus.recipe, "--run.directory", disk / "run", "--checkpoint.keep_last", 9),
        *("--metrics.wandb", "disabled"),
    )
    one_line(done, str(disk), status=1)
    saved = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
    assert saved, "the first one fitted"
    assert all(name.startswith("step-") for name in saved), "and nothing half written lies about"
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(disk / "run", elsewhere)
    again = triaxial("train", tiny_corpus.recipe, "--run.directory", elsewhere, "--metrics.wandb", "disabled")
    assert again.returncode == 0, again.stderr
    assert "resumed from" in again.stdout


def test_a_run_that_records_online_without_a_key_starts_no_rank(tiny_corpus, tmp_path):
    alone = {
        "HOME": str(tmp_path),
        "NETRC": "/nonexistent",
        "WANDB_API_KEY": "",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    words = [
        "train",
        tiny_corpus.recipe,
        "--run.directory",
        tmp_path / "run",
        "--metrics.wandb",
        "online",
        "--nproc",
        2,
    ]
    done = subprocess.run(
        [*TRIAXIAL, *map(str, words)], capture_output=True, text=True, timeout=250, env=ENVIRONMENT | alone, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "metrics.wandb = 'online' is invalid" in done.stderr
    assert not (tmp_path / "run").exists()
