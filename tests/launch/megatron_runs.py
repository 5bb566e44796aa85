"""For tests: runs of small random models that Megatron's GPTModel can be, and their exports."""

import torch

from gpt.config import ModelConfig, RopeScaling
from gpt.convert.megatron_names import table
from gpt.convert.names import shapes
from gpt.model import GPT
from launch.converted_run import model_toml, write_run
from launch.main import main

SIZES = {"vocab_size": 515, "n_ctx": 256, "n_layers": 4, "d_model": 48, "n_heads": 4, "d_ff": 80, "init_std": 0.2}
GPT_LIKE = ModelConfig(**SIZES)
LLAMA_LIKE = ModelConfig(
    **SIZES,
    **{"n_kv_heads": 2, "positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied": False},
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=4.0),
)
MODELS = {"gpt": GPT_LIKE, "llama": LLAMA_LIKE}


def write_random_run(folder, config, tokenizer, *, dtype=torch.float32):
    """A run of random weights, biases and norms away from 0 and 1."""
    torch.manual_seed(11)
    model = GPT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    rows = {name: shape[0] for name, shape in shapes(config).items()}
    weights = {name: parameter.detach()[: rows[name]].to(dtype) for name, parameter in model.named_parameters()}
    order = [name for piece in table(config) for name in piece.ours]
    folder.mkdir()
    about = {"from": "here", "format": "random", "dtype": str(dtype).removeprefix("torch.")}
    tensors = ((name, weights[name]) for name in order)
    write_run(folder, tensors, config=config, tokenizer_file=tokenizer, about=about, order=order)
    return folder


def export_all(folder, tokenizer):
    """A run and its export of each model: gpt, gpt-megatron, llama, llama-megatron."""
    for name, config in MODELS.items():
        dtype = torch.float32 if name == "gpt" else torch.bfloat16
        run = write_random_run(folder / name, config, tokenizer, dtype=dtype)
        words = ["convert", str(run), "--to", "megatron", "--output", str(folder / f"{name}-megatron")]
        assert main(words if name == "gpt" else [*words, "--dtype", "float32"]) == 0
    return folder


def write_model(path, config):
    path.write_text(model_toml(config))
