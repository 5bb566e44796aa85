"""For tests: small Hugging Face folders, written by transformers, and `triaxial convert` in this process."""

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from launch.main import main

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")

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
