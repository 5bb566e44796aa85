"""Exports to Hugging Face: transformers itself loads them offline and gives our logits; failures leave nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt.convert.hugging_face.export import export
from gpt.convert.hugging_face.names import family_of
from gpt.convert.hugging_face.source import open_source
from gpt.convert.round_trip import compare
from gpt.convert.weights import GivenWeights, shapes
from gpt.errors import ConfigError
from gpt.files.safetensors import digest
from gpt.inference.generation import generate
from gpt.tokenizer.tokenizers import load_tokenizer

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")


@pytest.mark.parametrize(
    ("family", "settings", "architecture"),
    [
        ("gpt2", {}, "GPT2LMHeadModel"),
        ("gpt2", {"tied": False, "vocab_size": 515, "d_ff": 80}, "GPT2LMHeadModel"),
        ("llama", {"vocab_size": 515}, "LlamaForCausalLM"),
        ("llama", {"tied": True, "bias": True, "n_kv_heads": 1}, "LlamaForCausalLM"),
    ],
    ids=["gpt3", "gpt3-untied", "llama", "llama-tied-bias"],
)
def test_transformers_loads_the_folder_and_gives_equal_logits(
    tmp_path: Path,
    sentencepiece_file: Path,
    small_config: Any,
    random_model: Any,
    family: str,
    settings: dict[str, Any],
    architecture: str,
) -> None:
    config = small_config(family, **settings)
    model, tokenizer = random_model(config), load_tokenizer(sentencepiece_file)
    output = tmp_path / "deep" / "hf"
    written: list[str] = []
    found = export(
        model.named_parameters(),
        config,
        output,
        tokenizer=tokenizer,
        tokenizer_file=sentencepiece_file,
        about={"step": 7},
        progress=written.append,
    )
    assert found.max_relative_logit_error < 1e-5
    assert sorted(written) == sorted(shapes(config))
    assert sorted(path.name for path in output.parent.iterdir()) == ["hf"], "no partial folder left"

    theirs = transformers.AutoModelForCausalLM.from_pretrained(output, local_files_only=True)
    assert type(theirs).__name__ == architecture
    assert theirs.dtype == torch.float32
    tokens = torch.randint(config.vocab_size, (3, 32), generator=torch.Generator().manual_seed(9))
    logits = theirs(tokens).logits.detach()
    assert logits.shape[-1] == config.vocab_size, "no vocabulary padding"
    assert float((model(tokens) - logits).abs().max() / logits.abs().max()) < 1e-5
    assert theirs.num_parameters() == config.parameters
    text = transformers.AutoTokenizer.from_pretrained(output, local_files_only=True)
    assert isinstance(text, transformers.PreTrainedTokenizerFast)
    assert (text.eos_token, text.bos_token, text.eos_token_id) == ("<|endoftext|>", "<|endoftext|>", 1)
    assert theirs.generation_config.eos_token_id == theirs.config.bos_token_id == 1
    report = json.loads((output / "triaxial_export.json").read_text())
    assert report["max_relative_logit_error"] == found.max_relative_logit_error
    assert report["step"] == 7


def test_transformers_generates_our_text_from_an_export(
    tmp_path: Path, sentencepiece_file: Path, small_config: Any, random_model: Any
) -> None:
    config, tokenizer = small_config("gpt2"), load_tokenizer(sentencepiece_file)
    model = random_model(config)
    output = tmp_path / "hf"
    export(model.named_parameters(), config, output, tokenizer=tokenizer, tokenizer_file=sentencepiece_file)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(output, local_files_only=True)
    prompt = tokenizer.encode("The parser reads")
    theirs_tokens = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
    (ours,) = generate(model, [prompt], n_ctx=32, max_new_tokens=12, stop_ids=[tokenizer.end_of_document_id])
    assert [*prompt, *ours.tokens] == theirs_tokens.tolist()


def test_a_bfloat16_export_is_the_rounded_model(
    tmp_path: Path, sentencepiece_file: Path, small_config: Any, random_model: Any
) -> None:
    config = small_config("llama")
    model = random_model(config)
    export(
        model.named_parameters(),
        config,
        tmp_path / "hf",
        tokenizer=load_tokenizer(sentencepiece_file),
        tokenizer_file=sentencepiece_file,
        dtype=torch.bfloat16,
    )
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(stored[name], model.state_dict()["blocks.1.mlp.down.weight"].to(torch.bfloat16))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto", local_files_only=True)
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"positions": "rope"}, ["GPT-2, the nearest", "model.positions = 'rope'"]),
        ({"bias": False}, ["model.bias = false"]),
        ({"n_kv_heads": 2}, ["model.n_kv_heads = 2 below n_heads = 4"]),
        ({"norm": "rmsnorm", "positions": "rope"}, ["Llama, the nearest", "model.activation = 'gelu'"]),
    ],
)
def test_a_model_that_no_family_expresses_is_refused(
    tmp_path: Path,
    sentencepiece_file: Path,
    small_config: Any,
    random_model: Any,
    settings: dict[str, Any],
    words: list[str],
) -> None:
    config = small_config("gpt2", **settings)
    with pytest.raises(ConfigError) as error:
        export(
            random_model(config).named_parameters(),
            config,
            tmp_path / "hf",
            tokenizer=load_tokenizer(sentencepiece_file),
            tokenizer_file=sentencepiece_file,
        )
    assert all(word in str(error.value) for word in words), error.value
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError):
        family_of(config)


def test_a_failed_export_leaves_nothing_and_overwrites_nothing(
    tmp_path: Path, sentencepiece_file: Path, small_config: Any, random_model: Any
) -> None:
    config = small_config("gpt2")
    tokenizer = load_tokenizer(sentencepiece_file)
    pairs = list(random_model(config).named_parameters())

    def broken() -> Iterator[tuple[str, Tensor]]:
        yield from pairs[:5]
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="No space left"):
        export(broken(), config, tmp_path / "hf", tokenizer=tokenizer, tokenizer_file=sentencepiece_file)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "hf").mkdir()
    with pytest.raises(ConfigError, match="hf exists already"):
        export(pairs, config, tmp_path / "hf", tokenizer=tokenizer, tokenizer_file=sentencepiece_file)
    assert list((tmp_path / "hf").iterdir()) == []


def test_verification_finds_a_tensor_that_was_exchanged_on_disk(
    tmp_path: Path, sentencepiece_file: Path, small_config: Any, random_model: Any
) -> None:
    config, tokenizer = small_config("gpt2"), load_tokenizer(sentencepiece_file)
    output, weights = tmp_path / "hf", list(random_model(config).named_parameters())
    export(weights, config, output, tokenizer=tokenizer, tokenizer_file=sentencepiece_file)
    given = GivenWeights(config, weights, torch.float32)
    digests = {name: digest(tensor, torch.float32) for name, tensor in given.read()}
    compare(given.specs, digests, open_source(output).read_weights(digests))
    stored = load_file(output / "model.safetensors")
    stored["transformer.h.1.attn.c_attn.weight"] = stored["transformer.h.0.attn.c_attn.weight"].clone()
    save_file(stored, output / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"'blocks\.1\.attention\.q\.weight' did not come back"):
        compare(given.specs, digests, open_source(output).read_weights(digests))
