"""`triaxial evaluate --text` on a small model of random weights: its report, its table, its errors."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt.data.config import CorpusConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from gpt.training.config import Retention
from launch.config.run_config import as_dict, read_run_config
from launch.main import main
from parallel.checkpoint.save import save_checkpoint

TEXT = "The parser reads the source,\tthen 42 of its naïve lines; for each it prints a name.\n\nAnd a number.\n"
SIZES = {"vocab_size": 360, "n_ctx": 16, "n_layers": 1, "d_model": 32, "n_heads": 4, "init_std": 0.2}


@dataclasses.dataclass(frozen=True)
class RunWithTexts:
    """A run with one checkpoint, and its model. The folder above has text.txt and a token corpus of the same text."""

    directory: Path
    model: GPT

    @property
    def folder(self) -> Path:
        return self.directory.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunWithTexts:
    folder = tmp_path_factory.mktemp("texts")
    run = folder / "run"
    train_sentencepiece(iter([TEXT] * 2), run / "tokenizer" / "own.model", vocab_size=340)
    tokenizer = load_tokenizer(run / "tokenizer" / "own.model")
    (folder / "text.txt").write_text(TEXT * 3)
    with TokenFileWriter(folder / "corpus", vocab_size=360) as file:
        file.add_document(np.array([*tokenizer.encode(TEXT * 3), tokenizer.end_of_document_id]))
    recipe = read_run_config("demo", [word for key, value in SIZES.items() for word in (f"--model.{key}", str(value))])
    data = dataclasses.replace(
        recipe.data,
        tokenizer="own.model",
        seq_len=16,
        train=(CorpusConfig(path=str(folder / "corpus")),),
        validation=(CorpusConfig(path=str(folder / "corpus")),),
    )
    config = dataclasses.replace(recipe, data=data)
    model = GPT(config.model).requires_grad_(False)
    initialise(model, config.model, seed=3)
    state: dict[str, object] = {"config": as_dict(config), "step": 1, "tokens_seen": 4096}
    tensors = {f"model.{name}": tensor for name, tensor in model.named_parameters()}
    save_checkpoint(run / "checkpoints", step=1, tensors=tensors, state=state, keep=Retention(1))
    return RunWithTexts(run, model)


def test_a_text_and_its_token_corpus_have_the_same_loss(
    run: RunWithTexts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, corpus = run.folder / "text.txt", run.folder / "corpus"
    words = ["--text", str(text), str(corpus), "--stride", "4", "--json", str(tmp_path / "r.json")]
    assert main(["evaluate", str(run.directory), *words]) == 0
    report = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert "validation" not in report
    assert "few_shot" not in report
    found = report["text"]
    assert (found["window"], found["stride"]) == (16, 4)
    one = found["texts"][str(text)]
    tokenizer = load_tokenizer(run.directory / "tokenizer" / "own.model")
    ids = [tokenizer.end_of_document_id, *tokenizer.encode(TEXT * 3)]
    nats = 0.0
    for position in range(1, len(ids)):
        start = max(0, math.ceil((position - 16) / 4)) * 4
        nats -= float(run.model(torch.tensor([ids[start:position]]))[0, -1].log_softmax(-1)[ids[position]])
    assert (one["tokens"], one["words"], one["bytes"]) == (len(ids) - 1, len((TEXT * 3).split()), text.stat().st_size)
    for unit in ("token", "word", "byte"):
        assert one[f"nats_per_{unit}"] == pytest.approx(nats / one[f"{unit}s"], rel=1e-5)
    assert one["bits_per_byte"] == pytest.approx(nats / one["bytes"] / math.log(2), rel=1e-5)
    assert one["token_perplexity"] == pytest.approx(math.exp(one["nats_per_token"]))
    assert one["word_perplexity"] == pytest.approx(math.exp(one["nats_per_word"]))
    assert found["texts"][str(corpus)] == one
    assert found["together"]["tokens"] == 2 * one["tokens"]
    assert found["together"]["nats_per_token"] == pytest.approx(one["nats_per_token"])
    printed = capsys.readouterr().out
    assert "windows of 16 tokens with a stride of 4" in printed
    assert f"{one['nats_per_word']:.4f}" in printed


def test_the_default_stride_is_half_a_window_and_tasks_none_keeps_the_validation(
    run: RunWithTexts, tmp_path: Path
) -> None:
    words = ["--text", str(run.folder / "text.txt"), "--tasks", "none", "--json", str(tmp_path / "r.json")]
    for window, own in ((16, []), (10, ["--window", "10"])):
        assert main(["evaluate", str(run.directory), *words, *own]) == 0
        report = json.loads((tmp_path / "r.json").read_text())
        assert (report["text"]["window"], report["text"]["stride"]) == (window, window // 2)
    assert "together" not in report["text"]
    assert report["validation"]["corpus"]["tokens"] == report["text"]["texts"][words[1]]["tokens"] // 16 * 16


def test_mistakes_are_refused_in_one_line(
    run: RunWithTexts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run.folder / "text.txt"
    (tmp_path / "empty").write_text("")
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    for name in ("alien", "without"):
        with TokenFileWriter(tmp_path / name, vocab_size=360) as file:
            for _ in range(3 if name == "alien" else 0):
                file.add_document(np.array([5, 6]))
    description = {
        "format": "triaxial-corpus",
        "version": 1,
        "tokenizer": {"file": "other.model", "fingerprint": "f" * 64},
        "splits": {"training": {"prefix": "alien"}},
    }
    (tmp_path / "corpus.json").write_text(json.dumps(description))
    for words, message in (
        ([tmp_path / "empty"], "empty is empty: there is nothing to predict"),
        ([text, tmp_path / "latin"], "latin is not UTF-8 text: invalid continuation byte at byte 2"),
        ([tmp_path / "nowhere"], "nowhere: no such text file, and no token corpus"),
        ([tmp_path], "is a folder"),
        ([tmp_path / "alien.bin"], f"without its suffix, {tmp_path}/alien."),
        ([tmp_path / "alien"], "other.model (fingerprint ffffffffffffffff) made this corpus"),
        ([tmp_path / "without"], "the token corpus is empty"),
        ([text, "--stride", 0], "--stride 0 is invalid: it must be at least 1"),
        ([text, "--stride", 17], "--stride 17 is invalid: it would skip tokens, since a window has 16"),
        ([text, "--window", 8, "--stride", 9], "--stride 9 is invalid: it would skip tokens, since a window has 8"),
        ([text, "--window", 17], "--window 17 is invalid: the model's context is n_ctx = 16"),
    ):
        capsys.readouterr()
        arguments = ["--text", *map(str, words), "--json", str(tmp_path / "r.json")]
        assert main(["evaluate", str(run.directory), *arguments]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert said.err.count("\n") == 1
        assert said.out == ""
        assert not (tmp_path / "r.json").exists()
    assert main(["evaluate", str(run.directory), "--stride", "3", "--tasks", "none"]) == 2
    assert "--stride 3 is only valid with --text" in capsys.readouterr().err
