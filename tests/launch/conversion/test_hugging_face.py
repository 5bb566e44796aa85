"""Hugging Face folders written by transformers become runs with its logits, and go back bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hugging_face_folders import LLAMA_3, TEXT, convert, transformers, write_folder
from safetensors.torch import load_file, save_file

from gpt.convert.hugging_face.source import open_source
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main
from launch.runs.saved_run import load_run

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'hf'")

CASES: list[tuple[str, str, torch.dtype, dict[str, Any]]] = [
    ("llama-grouped-untied", "llama", torch.bfloat16, {"tie_word_embeddings": False}),
    ("llama-3-tied", "llama", torch.float32, {"tie_word_embeddings": True, "rope_parameters": LLAMA_3}),
    (
        "llama-2-half-bias",
        "llama",
        torch.float16,
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-5},
    ),
    ("gpt2", "gpt2", torch.float32, {}),
    (
        "gpt2-narrow-untied",
        "gpt2",
        torch.bfloat16,
        {"n_inner": 80, "tie_word_embeddings": False, "activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.25},
    ),
]


@pytest.mark.parametrize(("kind", "dtype", "settings"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_folder_becomes_a_run_and_comes_back(
    tmp_path: Path,
    tokenizer_json: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    dtype: torch.dtype,
    settings: dict[str, Any],
) -> None:
    folder = write_folder(tmp_path / "folder", tokenizer_json, kind, dtype=dtype, **settings)
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run") == 0
    assert "bit for bit; logits of 3 layers and 515 tokens of vocabulary within" in capsys.readouterr().out
    loaded = load_run(tmp_path / "run")

    hf_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = transformers.AutoTokenizer.from_pretrained(folder)
    ids = text.encode(TEXT[100_000:102_000], add_special_tokens=False)
    assert loaded.saved.tokenizer.encode(TEXT[100_000:102_000]) == ids
    tokens = torch.tensor([ids[:512]])
    with torch.inference_mode():
        ours, logits = loaded.model(tokens), hf_model(tokens).logits
    assert float((ours - logits).abs().max() / logits.abs().max()) < 1e-5
    assert torch.equal(ours.argmax(-1), logits.argmax(-1))

    assert convert(tmp_path / "run", "--to", "hf", "--output", tmp_path / "back") == 0
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == dtype for name in before)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name
    old, new = (transformers.AutoConfig.from_pretrained(path).to_dict() for path in (folder, tmp_path / "back"))
    for key in old.keys() - {"_name_or_path", "n_inner", "head_dim"}:
        assert new[key] == old[key], key


def test_a_sentencepiece_tokenizer_comes_back_too(tmp_path: Path, tokenizer_json: Path) -> None:
    """As for Llama 2: a tokenizer.model that puts a space before a text, and no tokenizer.json."""
    folder = write_folder(tmp_path / "folder", tokenizer_json, "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with open(folder / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT[:100_000].splitlines()),
            model_writer=file,
            model_type="bpe",
            vocab_size=500,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=3,
        )
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run") == 0
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = TEXT[100_000:102_000]
    assert load_run(tmp_path / "run").saved.tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert convert(tmp_path / "run", "--to", "hf", "--output", tmp_path / "back") == 0
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


def test_older_names_and_leftovers_are_read(tmp_path: Path, tokenizer_json: Path) -> None:
    """OpenAI's GPT-2 files have names without 'transformer.' and contain causal masks; some contain a tied head."""
    folder = write_folder(tmp_path / "folder", tokenizer_json, "gpt2")
    stored = load_file(folder / "model.safetensors")
    older = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    older["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    older["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    older["lm_head.weight"] = older["wte.weight"].clone()
    save_file(older, folder / "model.safetensors")
    source = open_source(folder)
    assert set(source.tensors) == set(stored)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in source.read())
    older["lm_head.weight"][0, 0] += 1
    save_file(older, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="differs from the embedding"):
        open_source(folder)


def test_several_files_and_a_full_disk(
    tmp_path: Path, good_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Import a model in several files. On a full disk nothing is left."""
    model = transformers.AutoModelForCausalLM.from_pretrained(good_folder)
    folder = shutil.copytree(good_folder, tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run") == 0
    loaded = load_run(tmp_path / "run")
    assert torch.equal(loaded.model.blocks["1"].mlp.gate.weight, model.model.layers[1].mlp.gate_proj.weight)  # type: ignore[union-attr]

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "other") == 2
    assert "1000 bytes are free there" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "run"]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../run/x.safetensors"}}))
    with pytest.raises(ConfigError, match="not a safetensors file in the same folder"):
        open_source(folder)


def test_an_import_is_evaluated_and_generates(
    tmp_path: Path, good_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert convert(good_folder, "--to", "triaxial", "--output", run, "--logits", "none") == 0
    assert "logits not compared" in capsys.readouterr().out
    assert main(["generate", str(run), "--prompt", "The", "--max-new-tokens", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("The")
    assert main(["evaluate", str(run), "--tasks", "none", "--json", str(tmp_path / "x.json"), "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["parameters"] == load_run(run).saved.model_config.parameters
    assert (
        load_tokenizer(tmp_path / "run" / "tokenizer").fingerprint
        == load_tokenizer(good_folder / "tokenizer.json").fingerprint
    )
