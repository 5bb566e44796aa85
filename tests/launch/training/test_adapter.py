"""[adapter] from end to end: train from a base run, resume, evaluate, generate, export, and start a run from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from gpt.model.gpt import GPT
from launch.main import main
from launch.runs.saved_run import load_run
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.load import read_tensors

QUIET = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
ADAPTER = ["--adapter.rank", "4", "--adapter.alpha", "16", "--optimizer.learning_rate", "1e-2"]
ADAPTER += ["--train.validation_tokens", "16384"]  # all of the corpus

STILL = ["--optimizer.learning_rate", "1e-30"]  # so that weights do not change, bit for bit


def train(tiny_corpus: Any, run: Path, *words: object) -> int:
    return main(["train", str(tiny_corpus.recipe), "--run.directory", str(run), *QUIET, *map(str, words)])


@pytest.fixture(scope="module")
def base(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    assert train(tiny_corpus, run, "--train.total_tokens", 1024) == 0
    return run


@pytest.fixture(scope="module")
def adapted(tiny_corpus: Any, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with adapters, from `base`; not to be changed."""
    run = tmp_path_factory.mktemp("adapted") / "run"
    assert train(tiny_corpus, run, *ADAPTER, "--run.start_from", base, "--train.total_tokens", 2048) == 0
    return run


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    checkpoint, _ = find_latest(run / "checkpoints")
    assert checkpoint is not None
    return dict(read_tensors(checkpoint))


def merged_by_hand(run: Path) -> GPT:
    """W + alpha / rank B A with the tensors of the newest checkpoint."""
    tensors = tensors_of(run)
    model = GPT(load_run(run).model.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            projection = f"model.{name.removesuffix('.weight')}.adapter"
            if f"{projection}.a" in tensors:
                parameter += 16 / 4 * tensors[f"{projection}.b"] @ tensors[f"{projection}.a"]
    return model


def metric(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_only_adapters_change_and_have_optimizer_state(base: Path, adapted: Path) -> None:
    before, after = tensors_of(base), tensors_of(adapted)
    weights = {name for name in before if name.startswith("model.")}
    assert all(torch.equal(before[name], after[name]) for name in weights)
    added = {name.removeprefix("model.") for name in after if name.startswith("model.")} - {
        name.removeprefix("model.") for name in weights
    }
    assert len(added) == 2 * 6 * 2  # A and B of 6 projections in 2 blocks
    assert all(".adapter." in name for name in added)
    state = {name for name in after if name.startswith("optimizer.")}
    assert state == {f"optimizer.{key}.{name}" for key in ("exp_avg", "exp_avg_sq") for name in added}
    assert all(float(after[f"model.{name}"].abs().max()) > 0 for name in added)


def test_the_model_of_the_run_is_the_merged_one(base: Path, adapted: Path) -> None:
    tokens = torch.randint(512, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = merged_by_hand(adapted)(tokens), load_run(adapted).model(tokens)
        without = load_run(base).model(tokens)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert float((found - without).abs().max() / without.abs().max()) > 1e-2


def test_evaluation_equals_the_last_one_of_training(adapted: Path, tmp_path: Path) -> None:
    """Training adds B A x to W x; evaluation multiplies x by the merged matrix, in one process and on tensor ranks."""
    (*_, last) = metric(adapted, "validation/topics/loss")
    words = ["evaluate", str(adapted), "--tasks", "none", "--device", "cpu", "--json"]
    assert main([*words, str(tmp_path / "one.json")]) == 0
    assert main([*words, str(tmp_path / "two.json"), "--nproc", "2", "--parallel.tensor", "2"]) == 0
    for name in ("one", "two"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["validation_loss_nats"] == pytest.approx(last, rel=1e-6)


def test_a_resumed_run_equals_one_without_a_break(tiny_corpus: Any, base: Path, adapted: Path, tmp_path: Path) -> None:
    words = [*ADAPTER, "--run.start_from", base, "--train.total_tokens"]
    run = tmp_path / "run"
    assert train(tiny_corpus, run, *words, 1024) == 0
    assert train(tiny_corpus, run, *words, 2048) == 0
    ours, expected = tensors_of(run), tensors_of(adapted)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize("words", [["--adapter.alpha", 8], ["--adapter.targets", '["blocks.*.mlp.*"]'], []])
def test_a_resume_with_another_adapter_is_refused(
    tiny_corpus: Any, adapted: Path, words: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ADAPTER, *words] if words else ["--optimizer.learning_rate", "1e-2"]
    assert train(tiny_corpus, adapted, *words, "--train.total_tokens", 4096) == 2
    error = capsys.readouterr().err.strip()
    assert "was saved with another configuration (adapter." in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter.targets", '["blocks.*.attention.query"]'], "it matches no projection. Projections are: blocks."),
        (["--adapter.rank", 64], "adapter.rank = 64 is invalid: blocks.0.attention.k is 32 x 32"),
        (["--adapter.also_train", '["nrm.*"]'], "adapter.also_train[0] = 'nrm.*' is invalid: it matches no parameter"),
        (["--adapter.alpha", 0], "adapter.alpha = 0.0 is invalid"),
        (["--adapter.targets", "[]"], "adapter.targets = [] is invalid"),
        (["--adapter.rnk", 3], "unknown key 'rnk'"),
        (["--adapter.rank", 4, "--optimizer.frozen", '["*.adapter.*"]'], "it leaves no parameter to train"),
        (
            ["--adapter.rank", 4, "--parallel.engine", "deepspeed"],
            'adapter.kind = "lora" is invalid with parallel.engine = "deepspeed"',
        ),
    ],
)
def test_mistakes_are_one_line(tiny_corpus: Any, tmp_path: Path, words: list[Any], message: str, capsys: Any) -> None:
    assert train(tiny_corpus, tmp_path / "run", *words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_run_starts_from_the_merged_weights_of_one_with_adapters(
    tiny_corpus: Any, adapted: Path, tmp_path: Path
) -> None:
    still = [*STILL, "--run.start_from", adapted, "--train.total_tokens", 512]
    assert train(tiny_corpus, tmp_path / "run", *still) == 0
    expected = dict(merged_by_hand(adapted).named_parameters())
    for name, weight in load_run(tmp_path / "run").model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7)


def test_export_merges_and_plain_files_keep_the_adapters(adapted: Path, tmp_path: Path, triaxial: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
    assert triaxial("convert", adapted, "--to", "hf", "--output", tmp_path / "hf") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    tokens = torch.randint(512, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = merged_by_hand(adapted)(tokens), theirs(tokens).logits
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert triaxial("convert", adapted, "--to", "safetensors", "--output", tmp_path / "plain") == 0
    assert triaxial("convert", tmp_path / "plain", "--to", "triaxial", "--output", tmp_path / "again") == 0
    ours, expected_tensors = tensors_of(tmp_path / "again"), tensors_of(adapted)
    assert ours.keys() == expected_tensors.keys()
    assert all(torch.equal(ours[name], expected_tensors[name]) for name in ours)


def test_checkpoints_of_adapters_alone_train_resume_and_evaluate_as_whole_ones(
    tiny_corpus: Any, base: Path, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ADAPTER, "--adapter.save_base", "false", "--run.start_from", base, "--train.total_tokens"]
    run, whole = tmp_path / "run", tensors_of(adapted)
    assert train(tiny_corpus, run, *words, 1024) == 0
    assert train(tiny_corpus, run, *words, 2048) == 0
    ours = tensors_of(run)
    assert ours.keys() == {name for name in whole if ".adapter." in name}
    assert all(torch.equal(ours[name], whole[name]) for name in ours)
    expected = dict(load_run(adapted).model.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in load_run(run).model.named_parameters())
    assert train(tiny_corpus, tmp_path / "from", *STILL, "--run.start_from", run, "--train.total_tokens", 512) == 0
    for name, weight in load_run(tmp_path / "from").model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7)
    assert main(["convert", str(run), "--to", "safetensors", "--output", str(tmp_path / "plain")]) == 0
    assert main(["convert", str(tmp_path / "plain"), "--to", "triaxial", "--output", str(tmp_path / "again")]) == 0
    assert all(torch.equal(p, expected[name]) for name, p in load_run(tmp_path / "again").model.named_parameters())
    words = ["evaluate", str(run), "--tasks", "none", "--device", "cpu", "--json", str(tmp_path / "found.json")]
    assert main([*words, "--nproc", "2", "--parallel.pipeline", "2"]) == 0
    (*_, last) = metric(adapted, "validation/topics/loss")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["validation_loss_nats"] == pytest.approx(last, rel=1e-6)
    capsys.readouterr()
    assert train(tiny_corpus, tmp_path / "none", "--adapter.save_base", "false") == 2
    assert "adapter.save_base = false is invalid without run.start_from" in capsys.readouterr().err


def test_peft_loads_the_adapters_of_joined_projections(
    base: Path, adapted: Path, tmp_path: Path, triaxial: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2 has q, k and v in one matrix, so their three adapters become one of three times the rank."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    assert triaxial("convert", base, "--to", "hf", "--output", tmp_path / "base") == 0
    words = ["convert", adapted, "--to", "peft", "--output", tmp_path / "peft", "--base", tmp_path / "base"]
    assert triaxial(*words) == 0
    assert "verified: 16 tensors bit for bit" in capsys.readouterr().out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", local_files_only=True)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft")
    tokens = torch.randint(512, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = merged_by_hand(adapted)(tokens), theirs(tokens).logits
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"has no adapters: its recipe has no section \[adapter\]"):
        triaxial("convert", base, "--to", "peft", "--output", tmp_path / "none")
    with pytest.raises(ConfigError, match="exists already"):
        triaxial(*words)
