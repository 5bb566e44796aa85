"""evaluate, generate and convert on a run directory as training leaves it, with a small model of random weights."""

import argparse
import dataclasses
import importlib
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt.data.config import CorpusConfig
from gpt.errors import ConfigError
from gpt.inference.generation import generate
from gpt.inference.sampling import Sampling
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from gpt.training.config import Retention
from launch.config.run_config import as_dict, read_run_config
from launch.main import main
from launch.runs.saved_run import load_run, open_run
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.save import save_checkpoint

TEXT = "The parser reads the source, then 42 of the others follow; for each it prints a line of names and of numbers.\n"
SIZES = {"vocab_size": 360, "n_ctx": 64, "n_layers": 2, "d_model": 32, "n_heads": 4, "init_std": 0.2}


@dataclasses.dataclass(frozen=True)
class Made:
    """The run, and what was put into it."""

    directory: Path
    models: dict[int, GPT]
    validation: list[int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoints of steps 10 and 20 with different weights, optimizer states beside them, two validation corpora."""
    root = tmp_path_factory.mktemp("run")
    train_sentencepiece(iter([TEXT] * 2), root / "original.model", vocab_size=350)
    tokenizer = load_tokenizer(root / "original.model")
    words = [*tokenizer.encode(TEXT * 30), tokenizer.end_of_document_id]
    for name in ("train", "first", "second"):
        with TokenFileWriter(root / name, vocab_size=360) as file:
            for _ in range(1 if name == "second" else 2):
                file.add_document(words)
    recipe = read_run_config("demo", [word for key, value in SIZES.items() for word in (f"--model.{key}", str(value))])
    data = dataclasses.replace(
        recipe.data,
        tokenizer=str(root / "original.model"),
        seq_len=32,
        train=(CorpusConfig(path=str(root / "train")),),
        validation=(CorpusConfig(path=str(root / "first")), CorpusConfig(path=str(root / "second"))),
    )
    config = dataclasses.replace(recipe, data=data)
    directory = root / "run"
    (directory / "tokenizer").mkdir(parents=True)
    (root / "original.model").rename(directory / "tokenizer" / "original.model")  # only the run's copy is left
    models = {}
    for step in (10, 20):
        models[step] = GPT(config.model).requires_grad_(False)
        initialise(models[step], config.model, seed=step)
        tensors = {f"model.{name}": tensor for name, tensor in models[step].named_parameters()}
        tensors |= {f"optimizer.exp_avg.{name}": torch.ones_like(t) for name, t in models[step].named_parameters()}
        state: dict[str, object] = {"config": as_dict(config), "step": step, "tokens_seen": step * 4096}
        save_checkpoint(directory / "checkpoints", step=step, tensors=tensors, state=state, keep=Retention(2))
    return Made(directory, models, words)


def triaxial(command: str, *words: object) -> int:
    module = importlib.import_module(f"launch.commands.{command}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return int(module.run(parser.parse_args([str(word) for word in words])))


# Loading


def test_newest_step_and_asked_step_are_loaded_bit_for_bit(made: Made) -> None:
    for asked, step in ((None, 20), (10, 10), (20, 20)):
        loaded = load_run(made.directory, step=asked)
        assert loaded.saved.step == step
        assert loaded.saved.checkpoint.path.name == f"step-{step:09d}"
        expected = dict(made.models[step].named_parameters())
        found = dict(loaded.model.named_parameters())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        tokens = torch.arange(40).unsqueeze(0)
        assert torch.equal(loaded.model(tokens), made.models[step](tokens))
    folder = made.directory / "checkpoints" / "step-000000010"
    loaded = load_run(folder)
    assert (loaded.saved.step, loaded.saved.tokens_seen) == (10, 40960)
    assert loaded.saved.tokenizer_file == made.directory.absolute() / "tokenizer" / "original.model"
    assert loaded.model.head is not None
    assert loaded.model.embed is not None
    assert loaded.model.head.weight is loaded.model.embed.tokens.weight


def test_bfloat16_is_the_rounded_model(made: Made) -> None:
    loaded = load_run(made.directory, dtype=torch.bfloat16)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, made.models[20].get_parameter(name).to(torch.bfloat16))


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return shutil.copytree(made.directory, tmp_path / "run")


def rewrite_step(run: Path, change: Any) -> None:
    """Save step 20 of a run again with its tensors and state changed."""
    path = run / "checkpoints" / "step-000000020"
    checkpoint = verify_checkpoint(path)
    tensors, state = dict(read_tensors(checkpoint)), checkpoint.state
    change(tensors, state)
    save_checkpoint(run / "checkpoints", step=20, tensors=tensors, state=state, keep=Retention(2))


def test_a_damaged_checkpoint_is_passed_over_with_a_note(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = copy / "checkpoints" / "step-000000020" / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    assert open_run(copy).step == 10
    triaxial("generate", copy, "--prompt", "The", "--max-new-tokens", 1)
    assert "skipped the checkpoint" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="damaged"):
        load_run(copy, step=20)


def test_what_cannot_be_loaded_is_refused(copy: Path, made: Made, tmp_path: Path) -> None:
    def refused(path: Path, words: str, **settings: Any) -> None:
        with pytest.raises(ConfigError, match=words):
            load_run(path, **settings)

    refused(tmp_path / "nowhere", "nowhere: no such folder; give a run directory")
    refused(tmp_path, "neither a run directory")
    refused(copy, "--step 15: .* there are: 10, 20", step=15)
    refused(copy / "checkpoints" / "step-000000010", "one checkpoint already", step=10)
    rewrite_step(copy, lambda tensors, state: tensors.pop("model.blocks.1.mlp.up.bias"))
    refused(copy, r"'model.blocks.1.mlp.up.bias' is absent, but \[128\].*another model")
    rewrite_step(copy, lambda tensors, state: tensors.update({"model.blocks.1.mlp.up.bias": torch.zeros(7)}))
    refused(copy, r"is \[7\], but \[128\]")
    rewrite_step(copy, lambda tensors, state: state["config"]["model"].update(n_layer=3))
    refused(copy, "model.n_layer: unknown key 'n_layer'; did you mean 'n_layers'")
    rewrite_step(copy, lambda tensors, state: state.pop("config"))
    refused(copy, "holds no configuration")
    shutil.rmtree(copy / "tokenizer")
    refused(copy, r"original.model: no such tokenizer file", step=10)
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    refused(copy, "holds no whole checkpoint")


def test_a_tokenizer_larger_than_the_model_is_refused(copy: Path) -> None:
    words = [f"{a}{b}{c}" for a in "aeiou" for b in "bcdfg" for c in "klmnp"]
    train_sentencepiece(iter([" ".join(words)] * 2), copy / "tokenizer" / "original.model", vocab_size=370)
    with pytest.raises(ConfigError, match=r"has 370 pieces, but the model .* only model.vocab_size = 360"):
        open_run(copy)


# The commands


def test_generate_streams_what_generation_gives(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "The parser", "--temperature", 1.5, "--top-k", 50, "--top-p", 0.9, "--seed", 3]
    assert triaxial("generate", made.directory, *words, "--max-new-tokens", 20, "--num-samples", 2) == 0
    printed = capsys.readouterr()
    saved = open_run(made.directory)
    prompt = saved.tokenizer.encode("The parser")
    texts = []
    for seed in (3, 4):
        (result,) = generate(
            made.models[20],
            [prompt],
            n_ctx=64,
            max_new_tokens=20,
            sampling=Sampling(1.5, 50, 0.9),
            seed=seed,
            stop_ids=[saved.tokenizer.end_of_document_id],
            n_ids=350,
        )
        texts.append(saved.tokenizer.decode([*prompt, *result.tokens]))
    head = "--- sample {} of 2, seed {}\n"
    assert printed.out == head.format(1, 3) + texts[0] + "\n" + head.format(2, 4) + texts[1] + "\n"
    assert texts[0] != texts[1]
    assert printed.err.count("tokens/s") == 2


def test_generate_from_nothing_and_from_standard_input(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    triaxial("generate", made.directory, "--temperature", 0, "--step", 10)
    told = capsys.readouterr().err
    assert "63 tokens" in told or "end of document" in told
    monkeypatch.setattr("sys.stdin", io.StringIO("The source"))
    triaxial("generate", made.directory, "--prompt", "-", "--max-new-tokens", 3)
    assert capsys.readouterr().out.startswith("The source")


def test_generate_refuses_before_it_prints(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--max-new-tokens", 64], "n_ctx = 64"),
        (["--prompt", TEXT * 5], "Shorten the prompt"),
        (["--top-p", 2], "top_p = 2.0"),
        (["--num-samples", 0], "--num-samples 0"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "warp"], "--device warp is no device"),
    ):
        with pytest.raises(ConfigError, match=message):
            triaxial("generate", made.directory, "--prompt", "The", *words)
    assert capsys.readouterr().out == ""


def test_convert_writes_what_transformers_loads(made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
    assert triaxial("convert", made.directory, "--to", "hf", "--output", tmp_path / "hf", "--step", 10) == 0
    printed = capsys.readouterr().out
    assert "GPT-2 architecture" in printed
    assert "bit for bit" in printed
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    tokens = torch.randint(360, (2, 64), generator=torch.Generator().manual_seed(0))
    logits = theirs(tokens).logits.detach()
    assert float((made.models[10](tokens) - logits).abs().max() / logits.abs().max()) < 1e-5
    report = json.loads((tmp_path / "hf" / "triaxial_export.json").read_text())
    assert (report["step"], report["tokens_seen"]) == (10, 40960)
    assert report["max_relative_logit_error"] < 1e-5
    with pytest.raises(ConfigError, match="exists already"):
        triaxial("convert", made.directory, "--to", "hf", "--output", tmp_path / "hf")
    with pytest.raises(ConfigError, match="inside the run's checkpoints folder"):
        triaxial("convert", made.directory, "--to", "hf", "--output", made.directory / "checkpoints" / "hf")


def test_evaluate_reports_loss_entropy_and_scores(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    report_file = tmp_path / "new" / "report.json"
    words = ["--limit", 2, "--num-fewshot", 1, "--tasks", "gpt3_two_digit_addition", "gpt3_reversed_words"]
    assert triaxial("evaluate", made.directory, *words, "--json", report_file) == 0
    printed = capsys.readouterr().out
    report = json.loads(report_file.read_text())
    tokens = {"first": made.validation * 2, "second": made.validation}
    pooled: list[int] = []
    total = 0.0
    for name, ids in tokens.items():
        n = (len(ids) - 1) // 32 * 32
        windows = np.stack([np.array(ids[i : i + 33]) for i in range(0, n, 32)])
        log_probs = made.models[20](torch.from_numpy(windows[:, :-1])).log_softmax(-1)
        loss = -float(log_probs.gather(2, torch.from_numpy(windows[:, 1:, None])).mean())
        found = report["validation"][name]
        assert found["tokens"] == n
        assert found["loss_nats"] == pytest.approx(loss, rel=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)
        total += loss * n
        pooled += ids[1 : n + 1]
    share = np.bincount(pooled) / len(pooled)
    entropy = -float(np.sum(share[share > 0] * np.log(share[share > 0])))
    assert report["validation_tokens"] == len(pooled)
    assert report["validation_loss_nats"] == pytest.approx(total / len(pooled), rel=1e-4)
    assert report["unigram_entropy_nats"] == pytest.approx(entropy)
    assert [(s["label"], s["shots"], s["items"]) for s in report["few_shot"]] == [("2D+", 1, 2), ("RW", 1, 2)]
    assert report["words"]["source"] == "pydoc_data.topics"
    assert (report["step"], report["parameters"]) == (20, made.models[20].vocab_size * 32 + 64 * 32 + 2 * 12704 + 64)
    assert f"{report['validation']['first']['loss_nats']:.4f}" in printed
    assert "gpt3_two_digit_addition" in printed
    assert [path.name for path in report_file.parent.iterdir()] == ["report.json"]


def test_evaluate_without_tasks_on_part_of_the_validation(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--tasks", "none", "--max-validation-tokens", 100, "--json", tmp_path / "r.json"]
    triaxial("evaluate", made.directory, *words)
    report = json.loads((tmp_path / "r.json").read_text())
    assert {name: found["tokens"] for name, found in report["validation"].items()} == {"first": 96, "second": 96}
    assert "few_shot" not in report


def test_evaluate_on_what_prepare_overlap_found_clean(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Published problems, some of which stand in a text; the analysis's file goes into the evaluation as it is."""
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    pytest.importorskip("xxhash", reason="needs the extra 'data'")
    sums = [(a, b) for a in range(10, 14) for b in range(50, 60)]
    rows = [{"context": f"\n\nQ: What is {a} plus {b}?\n\nA:", "completion": f" {a + b}"} for a, b in sums]
    (tmp_path / "two_digit_addition.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    leaked = "and then she asked, Q: What is 11 plus 53? A: 64. Nobody asked q what is 12 plus 50, a 62 he said"
    (tmp_path / "corpus.txt").write_text(leaked + "\n" + TEXT)
    (tmp_path / "overlap.toml").write_text(
        f"""training.paths = ["{tmp_path}/corpus.txt"]
output.folder = "{tmp_path}/overlap"
[[overlap.sets]]
name = "gpt3_two_digit_addition"
paths = ["{tmp_path}/two_digit_addition.jsonl"]
fields = ["context", "completion"]
synthetic = true
"""
    )
    assert main(["prepare", "overlap", str(tmp_path / "overlap.toml"), "--workers", "1"]) == 0
    capsys.readouterr()
    words = ["--tasks", "gpt3_two_digit_addition", "--num-fewshot", "0", "paper", "--gpt3-data", tmp_path]
    words += ["--clean-subset", tmp_path / "overlap" / "examples.jsonl", "--max-validation-tokens", 64]
    words += ["--answers", "likelihood", "--json", tmp_path / "report.json"]
    with pytest.raises(
        ConfigError, match="--num-fewshot 50 is invalid: gpt3_two_digit_addition has 4 problems for examples"
    ):
        triaxial("evaluate", made.directory, *words)
    words.remove("paper")
    assert triaxial("evaluate", made.directory, *words) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    accuracy, likelihood = report["few_shot"]
    assert [accuracy[key] for key in ("metric", "items", "clean_items", "dirty_items")] == ["acc", 36, 34, 2]
    total = likelihood["clean_value"] * 34 + likelihood["dirty_value"] * 2
    assert likelihood["value"] == pytest.approx(total / 36)
    assert likelihood["clean_standard_error"] > 0
    assert report["gpt3_data"] == str(tmp_path)
    assert re.search(r"clean +34 +-\d+\.\d{4} ± \d", printed)
    assert f"{likelihood['dirty_value']:.4f}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "none", "gpt3"], "'none' excludes other tasks"),
        (["--num-fewshot", "one"], "--num-fewshot one is invalid: use whole numbers, or paper"),
        (
            ["--num-fewshot", "201"],
            "--num-fewshot 201 is invalid: gpt3_two_digit_addition has 200 problems for examples",
        ),
        (["--gpt3-data", "/nowhere"], "--gpt3-data /nowhere is not a folder"),
        (["--normalise", "length"], "--normalise length is invalid: the rules are tokens and answer"),
        (["--clean-subset", "/nowhere"], "--clean-subset is invalid for generated problems"),
        (["--batch-tokens", "0"], "--batch-tokens 0"),
        (["--max-validation-tokens", "0"], "--max-validation-tokens 0"),
        (["--json", "/proc/none/report.json"], "--json /proc/none/report.json cannot be written"),
        (["--words", "/nowhere/words"], "--words /nowhere/words cannot be read"),
        (["--step", "3"], "there are: 10, 20"),
    ],
)
def test_evaluate_refuses(made: Made, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=message):
        triaxial("evaluate", made.directory, *words)
    assert capsys.readouterr().out == ""
