"""PEFT's files onto a base run and back: the same logits as PEFT, and files that PEFT loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_folders import convert, transformers, write_folder
from safetensors.torch import load_file, save_file

from gpt.adapters.config import adapter_of
from launch.runs.saved_run import load_run

peft = pytest.importorskip("peft")
TOKENS = torch.randint(515, (2, 64), generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": (
        "llama",
        {"target_modules": ["q_proj", "o_proj", "down_proj"], "use_rslora": True},
        ["blocks.*.mlp.down"],
    ),
    "llama, one layer": ("llama", {"target_modules": ["layers.1.self_attn.v_proj"]}, ["blocks.1.attention.v"]),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}, ["blocks.*.attention.k"]),
}


def with_adapter(folder: Path, settings: dict[str, Any]) -> Any:
    """PEFT's model on a folder, with A and B of random numbers."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_files_of_peft_become_a_run_and_go_back(
    tmp_path: Path, tokenizer_json: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, settings, some_targets = CASES[case]
    folder = write_folder(tmp_path / "folder", tokenizer_json, kind)
    theirs = with_adapter(folder, settings)
    theirs.save_pretrained(tmp_path / "peft")
    with torch.inference_mode():
        logits, without = theirs(TOKENS).logits, theirs.get_base_model()
        with theirs.disable_adapter():
            without = theirs(TOKENS).logits
    assert relative_error(without, logits) > 1e-2
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "base") == 0
    words = [tmp_path / "peft", "--to", "triaxial", "--output", tmp_path / "run"]
    assert convert(*words, "--base", tmp_path / "base") == 0
    assert "tensors bit for bit" in capsys.readouterr().out
    loaded = load_run(tmp_path / "run")
    adapter = adapter_of(loaded.saved.checkpoint.state)
    assert adapter is not None
    assert set(some_targets) <= set(adapter.targets)
    with torch.inference_mode():
        assert relative_error(loaded.model(TOKENS), logits) < 1e-5

    assert convert(tmp_path / "run", "--to", "peft", "--output", tmp_path / "back") == 0
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "back").eval()
    with torch.inference_mode():
        assert relative_error(again(TOKENS).logits, logits) < 1e-5
    if kind == "llama":
        before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "back"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_mistakes_are_one_line(tmp_path: Path, tokenizer_json: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "folder", tokenizer_json, "llama")
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "base") == 0
    with_adapter(folder, {"target_modules": ["q_proj"]}).save_pretrained(tmp_path / "peft")
    config, weights = tmp_path / "peft" / "adapter_config.json", tmp_path / "peft" / "adapter_model.safetensors"
    good, tensors = config.read_text(), load_file(weights)
    words = [tmp_path / "peft", "--to", "triaxial", "--output", tmp_path / "run"]
    capsys.readouterr()

    def refused(*more: object) -> str:
        assert convert(*words, *more) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "run").exists()
        return error

    base = ("--base", tmp_path / "base")
    assert "holds adapters only. Name the run of their base model: --base RUN" in refused()
    for key, value in (("use_dora", True), ("bias", "all"), ("peft_type", "IA3"), ("rank_pattern", {"q_proj": 8})):
        config.write_text(json.dumps({**json.loads(good), key: value}))
        assert f"adapter_config.json: {key} = {json.dumps(value)} cannot be expressed here" in refused(*base)
    for key, value in (("lora_alpha", 10**400), ("lora_alpha", True), ("lora_alpha", float("nan")), ("r", True)):
        config.write_text(json.dumps({**json.loads(good), key: value}))
        assert "r must be a whole number, and lora_alpha a number above 0" in refused(*base)
    config.write_text(json.dumps({**json.loads(good), "r": 5}))
    assert "but (5, 48) for this base model" in refused(*base)
    config.write_text(good)
    (name, *_) = tensors
    save_file({**tensors, name.replace("q_proj", "q_prog"): torch.zeros(4, 48)}, weights)
    assert "is unknown to the base model's architecture" in refused(*base)
    save_file({key: value for key, value in tensors.items() if key != name}, weights)
    assert "is absent, but" in refused(*base)
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, weights)
    assert f"{weights}: the tensor '{name}' contains NaN or infinity" in refused(*base)
    weights.unlink()
    assert "has no adapter_model.safetensors" in refused(*base)
