"""The guide's Python runs as it stands: prepare, train, use, and an objective of one's own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

ROOT = Path(__file__).resolve().parents[3]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/library.md").read_text(), re.DOTALL)
CORPUS = """
[input]
paths = ["texts/*.txt"]
[language]
enabled = false
[quality]
rules = []
[tokenizer]
vocab_size = 512
[output]
folder = "corpus"
validation_fraction = 0.2
"""
MODEL = """
[run]
directory = "run"
device = "cpu"
[model]
vocab_size = 512
n_ctx = 64
n_layers = 1
d_model = 32
n_heads = 2
[data]
tokenizer = "corpus"
seq_len = 64
train = [{ path = "corpus/train" }]
validation = [{ path = "corpus/validation", name = "topics" }]
[batch]
micro_batch_size = 8
global_batch_tokens = 512
[optimizer]
learning_rate = 3e-3
[schedule]
warmup_tokens = 1024
decay_tokens = 8192
[train]
total_tokens = 4096
[metrics]
wandb = "disabled"
"""


def start(folder, code):
    (folder / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the guide's first block has run; and what it printed."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "texts").mkdir()
    for name in list(topics)[:40]:
        (folder / "texts" / f"{len(os.listdir(folder / 'texts'))}.txt").write_text(topics[name])
    (folder / "corpus.toml").write_text(CORPUS)
    (folder / "model.toml").write_text(MODEL)
    process = start(folder, BLOCKS[0])
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return folder, said


@pytest.mark.timeout(300)
def test_the_whole_path_runs_as_the_guide_has_it(folder):
    folder, said = folder
    assert "total_tokens at step 16, validation loss {'topics':" in said
    assert "nats a token" in said
    assert "torch.Size([2, 32])" in said


@pytest.mark.timeout(300)
def test_an_objective_of_ones_own_equals_the_key_of_the_recipe(folder, launched):
    folder, _ = folder
    by_key = """
import triaxial
triaxial.train("model.toml", {"run.directory": "by_key", "train.z_loss": 1e-3})
"""
    for code in (BLOCKS[1], by_key):
        process = start(folder, code)
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
    ours = launched.losses(folder / "penalised")
    assert len(ours) == 8
    assert ours == launched.losses(folder / "by_key")


@pytest.mark.timeout(300)
def test_an_interrupt_saves_and_returns(folder):
    folder, _ = folder
    code = """
import os, signal, threading, time
from pathlib import Path
import triaxial

def interrupt():
    while '"step": 3' not in (text.read_text() if (text := Path("long/metrics.jsonl")).exists() else ""):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
run = triaxial.train("model.toml", {"run.directory": "long", "train.total_tokens": 512 * 100_000})
assert run.ended == "interrupt", run
assert list(Path("long/checkpoints").glob(f"step-{run.step:09}"))
try:
    triaxial.train("model.toml", {"model.n_layer": 2})
except triaxial.ConfigError as error:
    print(error)
"""
    process = start(folder, code)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "model.n_layer: unknown key 'n_layer'; use model.n_layers" in said
