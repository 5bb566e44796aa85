"""Hugging Face folders written by transformers become runs with its logits, and go back bit for bit.

A wrong folder gives an error of one line and leaves nothing.
"""

import json
import math
import os
import re
import shutil
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from gpt.convert.hugging_face.source import open_source
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main
from launch.runs.saved_run import load_run

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'hf'")

TEXT = "\n".join(topics.values())
LLAMA = {
    "vocab_size": 515,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.2,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT2 = {
    "vocab_size": 515,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 500 tokens, as GPT-2's and SmolLM2's are."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([TEXT[:100_000]], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    model.save(str(path))
    return path


def perturbed(model: Any, *, dtype: torch.dtype) -> Any:
    """Change biases and norms from 0 and 1, at which a mix-up would not show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "ln_" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).eval()


def write_folder(
    folder: Path, tokenizer_json: Path, kind: str, *, dtype: torch.dtype = torch.float32, **settings: Any
) -> Path:
    torch.manual_seed(1)
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **settings}))
    else:
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2, **settings}))
    perturbed(model, dtype=dtype).save_pretrained(folder)
    text = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_json), eos_token="<|im_end|>", bos_token="<|endoftext|>"
    )
    text.chat_template = "{{ messages[0]['content'] }}"
    text.save_pretrained(folder)
    return folder


def convert(*words: object) -> int:
    return main(["convert", *map(str, words)])


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


def _change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def _change_tensors(folder: Path, change: Any) -> None:
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors")


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def _larger_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    table = json.loads(path.read_text())
    table["model"]["vocab"]["zz"] = 600
    path.write_text(json.dumps(table))


def _header(folder: Path, change: Any) -> None:
    """Change the header of the weights, and nothing else."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _overlap(header: dict[str, Any]) -> None:
    """Two tensors of one shape share their bytes."""
    a, b = ("model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight")
    header[a]["data_offsets"] = header[b]["data_offsets"]


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _spoil(folder: Path, name: str, value: float) -> None:
    _change_tensors(folder, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))


# Files that nobody writes by accident: each gave a traceback, no answer, or a line of megabytes.
CRAFTED: list[tuple[Any, str]] = [
    (lambda f: _change_config(f, vocab_size=2**61), "vocab_size = 2305843009213693952 must be a whole number from 1"),
    (lambda f: _change_config(f, num_hidden_layers=10**6), "num_hidden_layers = 1000000 must be a whole number from 1"),
    (lambda f: _change_config(f, num_hidden_layers=9999), "the files hold only .. tensors, and each layer has several"),
    (lambda f: _change_config(f, rope_theta="x" * 10**6), "rope_theta = 'xxx.* must be a finite number"),
    (lambda f: _change_config(f, rms_norm_eps=[1]), r"rms_norm_eps = \[1\] must be a finite number"),
    (lambda f: _change_config(f, rms_norm_eps=10**400), "rms_norm_eps = 1000.* must be a finite number"),
    (lambda f: _change_config(f, rope_scaling="llama3"), "rope_scaling = 'llama3' must be an object"),
    (lambda f: _change_config(f, rope_scaling={"rope_type": [], "factor": 8}), r"rope_type = \[\] is not supported"),
    (lambda f: _change_config(f, rope_scaling={**LLAMA_3, "factor": None}), "the rope scaling lacks factor"),
    (lambda f: _change_config(f, rope_scaling={**LLAMA_3, "low_freq_factor": {}}), "low_freq_factor = {} must be"),
    (
        lambda f: _change_config(f, model_type=["llama"], architectures=7),
        "model_type = ..llama.. ..no architecture",
    ),
    (lambda f: _change_config(f, tie_word_embeddings="false"), "tie_word_embeddings = 'false' must be true or false"),
    (lambda f: _change_config(f, hidden_size="\x1b[2J\n"), r"hidden_size = '\\x1b\[2J\\n' must be"),
    (lambda f: (f / "config.json").write_text("[" * 10**5 + "]" * 10**5), "nested too deeply"),
    (lambda f: _pipe(f / "config.json"), r"config\.json is a named pipe"),
    (lambda f: _pipe(f / "model.safetensors"), r"model\.safetensors is a named pipe"),
    (lambda f: (f / "tokenizer_config.json").write_text("[]"), "transformers cannot load|is not the tokenizer"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1, "b": null}}'), "no weight_map"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 5}'), "has no weight_map"),
    (lambda f: _header(f, _overlap), "overlaps the tensor before it, or leaves a gap"),
    (lambda f: _header(f, lambda h: {"\x1b" * 10**6: h.popitem()[1]}), r"\\x1b.*leaves a gap"),
    (lambda f: _header(f, lambda h: [h]), "is not a safetensors file"),
    (lambda f: _header(f, lambda h: {"x" * 10**7: {"y" * 10**7: 1}}), "is not a safetensors file"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\0\0\0\5\0\0\0\0" + b"[" * 100), "do not hold its header"),
    (lambda f: _spoil(f, "model.norm.weight", math.nan), "'model.norm.weight' contains NaN or infinity"),
    (lambda f: _spoil(f, "model.layers.2.mlp.up_proj.weight", -math.inf), "contains NaN or infinity"),
    (lambda f: _spoil(f, "model.layers.0.mlp.up_proj.weight", 3e38), "logits are NaN or infinite"),
]
BAD: list[tuple[Any, str]] = [
    *CRAFTED,
    (lambda f: _change_config(f, model_type="mamba", architectures=["MambaForCausalLM"]), "MambaForCausalLM"),
    (lambda f: _change_config(f, auto_map={"AutoModel": "evil.Model"}), "remote code, which is never run"),
    (lambda f: _change_config(f, quantization_config={"bits": 4}), "quantised weights"),
    (lambda f: _change_config(f, hidden_act="gelu"), "hidden_act = 'gelu' is not supported"),
    (lambda f: _change_config(f, head_dim=24), "head_dim = 24"),
    (lambda f: _change_config(f, attention_bias=True), "either all linear layers have a bias or none"),
    (lambda f: _change_config(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "'yarn'"),
    (lambda f: _change_config(f, num_hidden_layers=4), "9 tensors of the Llama that config.json describes are missing"),
    (lambda f: _change_config(f, num_hidden_layers=2), "9 tensors are unknown to the Llama"),
    (lambda f: _change_config(f, vocab_size=514), r"is \[515, 48\], but \[514, 48\] in the Llama"),
    (lambda f: _change_tensors(f, lambda t: t.pop("model.norm.weight")), "'model.norm.weight' is the first"),
    (lambda f: _change_tensors(f, lambda t: t.update(x=torch.ones(2))), "1 tensors are unknown .* 'x' is the first"),
    (lambda f: _cut(f), "cut off"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\x05\0"), "not a complete safetensors file"),
    (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "a pickle, which can run code"),
    (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    (lambda f: _larger_tokenizer(f), "601 pieces, but .* a vocabulary of 515: it is another model's tokenizer"),
]


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    return write_folder(tmp_path_factory.mktemp("good") / "folder", tokenizer_json, "llama")


@pytest.mark.parametrize(("spoil", "words"), BAD)
def test_a_wrong_folder_is_an_error_of_one_line_and_nothing_is_written(
    tmp_path: Path, good_folder: Path, capsys: pytest.CaptureFixture[str], spoil: Any, words: str
) -> None:
    folder = shutil.copytree(good_folder, tmp_path / "folder")
    spoil(folder)
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert len(error) < 25_000
    assert "\x1b" not in error
    assert re.search(words, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_head_of_zeros_is_converted(tmp_path: Path, good_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(good_folder, tmp_path / "folder")
    _change_tensors(folder, lambda tensors: tensors["lm_head.weight"].zero_())
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run") == 0
    assert "within 0.0e+00 of transformers" in capsys.readouterr().out


def test_numbers_that_a_dtype_does_not_hold_are_not_exported_as_infinity(
    tmp_path: Path, good_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(good_folder, tmp_path / "folder")
    _spoil(folder, "model.norm.weight", 1e5)
    words = ("--logits", "none")
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run", *words) == 0
    assert convert(tmp_path / "run", "--to", "hf", "--output", tmp_path / "half", "--dtype", "float16", *words) == 2
    assert "'norm.weight' has numbers too large for float16. Use --dtype float32." in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


def test_another_models_tokenizer_is_refused(
    tmp_path: Path, good_folder: Path, tokenizer_json: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = json.loads(tokenizer_json.read_text())
    table["model"]["merges"] = table["model"]["merges"][:20]  # the same vocabulary, but other ids for a text
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(table))
    words = ("--to", "triaxial", "--output", tmp_path / "run", "--tokenizer", other)
    assert convert(good_folder, *words) == 2
    assert "is not the tokenizer that transformers finds in" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


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
