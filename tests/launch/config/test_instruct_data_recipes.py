"""The shipped recipes for conversations run as they are on a user's folder, and fit the recipes that train on them."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from gpt.token_files.files import TokenFile
from launch.config.recipe import find_recipe
from launch.config.run_config import read_run_config
from launch.main import main

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOPICS = ["rivers", "bread", "the moon", "old maps", "chess", "winter", "bees", "music", "glass", "trains"]


@pytest.fixture(scope="module")
def imported_run(tmp_path_factory):
    """The folders of an imported run that hold its tokenizer and its chat template."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")
    folder = tmp_path_factory.mktemp("run")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TOPICS, trainer)
    for name in ("tokenizer", "hugging_face"):
        (folder / name).mkdir()
    model.save(str(folder / "tokenizer/tokenizer.json"))
    (folder / "hugging_face/chat_template.jinja").write_text(CHATML)
    (folder / "hugging_face/tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


def records(kind):
    for n in range(40):
        prompt = f"What is to be said of {TOPICS[n % 10]} number {n}?"
        if kind == "rankings":
            texts = [f"{TOPICS[n % 10]} {i}" for i in range(4)]
            yield {"prompt": prompt, "completions": [{"text": text, "rank": i} for i, text in enumerate(texts)]}
        else:
            yield {"instruction": prompt, "input": "", "output": f"Much of {n}."}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("instruct_sft_data", "demonstrations"), ("instruct_rankings", "rankings"), ("instruct_prompts", "prompts")],
)
def test_a_recipe_prepares_a_folder(tmp_path, monkeypatch, capsys, imported_run, name, kind):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(imported_run, "runs/smollm2")
    Path("mine").mkdir()
    Path("mine/a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(kind)))
    assert main(["prepare", name, "--input.paths", '["mine"]', "--workers", "1"]) == 0
    folder = Path(tomllib.loads(find_recipe(name).read_text())["output"]["folder"])
    corpus = json.loads((folder / "corpus.json").read_text())
    assert corpus["documents"] > 30
    assert (corpus["chat"]["kind"], corpus["chat"]["format"]) == (kind, "template")
    assert TokenFile(folder / "train").n_documents == corpus["splits"]["training"]["documents"]
    assert main(["prepare", "verify", str(folder)]) == 0
    assert (folder / "work/conversations.html").exists()
    capsys.readouterr()
    for words in (["--status"], ["--dry-run"], ["--dropped"], ["--explain", "mine/a.jsonl"]):
        assert main(["prepare", name, "--input.paths", '["mine"]', *words]) == 0
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("training", "preparing"), [("sft_smollm2", "instruct_sft_data"), ("reward_smollm2", "instruct_rankings")]
)
def test_a_training_recipe_reads_what_such_a_recipe_writes(training, preparing):
    config = read_run_config(training, ["--train.total_tokens", "1_000_000"])
    prepared = tomllib.loads(find_recipe(preparing).read_text())
    folder, limits = prepared["output"]["folder"], prepared["conversations"]
    (corpus,) = config.data.train
    assert corpus.path == f"{folder}/train"
    for stream, path in corpus.streams.items():
        assert path == f"{folder}/train_{stream}"
    assert config.data.tokenizer == prepared["tokenizer"]["path"]
    assert limits.get("max_document_tokens", limits["max_tokens"] - 1) == config.data.seq_len


def test_a_recipe_without_its_tokenizer_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/a.jsonl").write_text(json.dumps(next(records("prompts"))))
    assert main(["prepare", "instruct_sft_data", "--input.paths", '["mine"]']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs/smollm2/tokenizer/tokenizer.json" in line
