"""For tests: runs of small random models that Megatron's GPTModel can express, and their exports."""

import re

import torch
from torch.distributed import checkpoint as dcp

from gpt.convert.megatron.names import table
from gpt.convert.weights import shapes
from gpt.model.config import ModelConfig, RopeScaling
from gpt.model.gpt import GPT
from launch.main import main
from launch.runs.imported_run import model_toml, write_run

SIZES = {"vocab_size": 515, "n_ctx": 256, "n_layers": 4, "d_model": 48, "n_heads": 4, "d_ff": 80, "init_std": 0.2}
GPT_LIKE = ModelConfig(**SIZES)
LLAMA_LIKE = ModelConfig(
    **SIZES,
    **{"n_kv_heads": 2, "positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied": False},
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=4.0),
)
PADDED = 520  # vocabulary of a tensor-parallel Megatron
MODELS = {"gpt": GPT_LIKE, "llama": LLAMA_LIKE}


def write_random_run(folder, config, tokenizer, *, dtype=torch.float32):
    """Write a run of random weights, with biases and norms different from 0 and 1."""
    torch.manual_seed(11)
    model = GPT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    rows = {name: shape[0] for name, shape in shapes(config).items()}
    weights = {name: parameter.detach()[: rows[name]].to(dtype) for name, parameter in model.named_parameters()}
    order = [name for entry in table(config) for name in entry.names]
    folder.mkdir()
    about = {"from": "here", "format": "random", "dtype": str(dtype).removeprefix("torch.")}
    tensors = ((name, weights[name]) for name in order)
    write_run(folder, tensors, config=config, tokenizer_file=tokenizer, about=about, order=order)
    return folder


def export_all(folder, tokenizer):
    """Write a run and an export of each model: gpt, gpt-megatron, llama, llama-megatron."""
    for name, config in MODELS.items():
        dtype = torch.float32 if name == "gpt" else torch.bfloat16
        run = write_random_run(folder / name, config, tokenizer, dtype=dtype)
        words = ["convert", str(run), "--to", "megatron", "--output", str(folder / f"{name}-megatron")]
        assert main(words if name == "gpt" else [*words, "--dtype", "float32"]) == 0
    return folder


def write_model(path, config):
    path.write_text(model_toml(config))


def check_weights(folder, model, config):
    """Compare every weight, and the rows of each head, with torch's own reader of the checkpoint."""
    described = dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    saved = {name: torch.empty(d.size) for name, d in described.items() if hasattr(d, "size")}
    dcp.load(saved, checkpoint_id=str(folder))
    weights = dict(model.named_parameters())
    width, queries = config.d_head, config.n_heads // config.kv_heads
    seen = 0
    for layer in range(config.n_layers):
        for kind in ("weight", "bias") if config.bias else ("weight",):
            qkv = saved[f"decoder.layers.self_attention.linear_qkv.{kind}"][layer].split(width)
            attention = {part: weights[f"blocks.{layer}.attention.{part}.{kind}"].split(width) for part in "qkv"}
            for group in range(config.kv_heads):
                rows = qkv[group * (queries + 2) : (group + 1) * (queries + 2)]
                for i in range(queries):
                    assert torch.equal(rows[i], attention["q"][group * queries + i])
                assert torch.equal(rows[queries], attention["k"][group])
                assert torch.equal(rows[queries + 1], attention["v"][group])
                seen += sum(row.numel() for row in rows)
    exact = {
        "embedding.word_embeddings.weight": "embed.tokens.weight",
        "embedding.position_embeddings.weight": "embed.positions.weight",
        "output_layer.weight": "head.weight",
        "decoder.final_layernorm.weight": "norm.weight",
        "decoder.final_layernorm.bias": "norm.bias",
    }
    for name, own in exact.items():
        if name in saved:
            rows = saved[name][: config.vocab_size] if saved[name].size(0) == PADDED else saved[name]
            assert torch.equal(rows, weights[own][: len(rows)]), name
            seen += rows.numel()
    each = {
        "self_attention.linear_proj": "attention.out",
        "mlp.linear_fc2": "mlp.down",
        "self_attention.linear_qkv.layer_norm": "attention_norm",
        "mlp.linear_fc1.layer_norm": "mlp_norm",
    }
    for name, stacked in saved.items():
        if not name.startswith("decoder.layers.") or "linear_qkv.weight" in name or "linear_qkv.bias" in name:
            continue
        module, _, kind = re.sub("layer_norm_", "layer_norm.", name).removeprefix("decoder.layers.").rpartition(".")
        for layer in range(config.n_layers):
            block = f"blocks.{layer}."
            if module == "mlp.linear_fc1" and config.activation == "swiglu":
                parts = [weights[f"{block}mlp.{part}.{kind}"] for part in ("gate", "up")]
                assert torch.equal(stacked[layer], torch.cat(parts)), name
            else:
                own = "mlp.up" if module == "mlp.linear_fc1" else each[module]
                assert torch.equal(stacked[layer], weights[f"{block}{own}.{kind}"]), name
        seen += stacked.numel()
    assert seen == config.parameters
