"""Downloaded models: Hugging Face folders, torch_dist checkpoints of Megatron-core, and our plain safetensors.

Each is read as `triaxial convert` reads it. `hf_import` is the whole command, with a trial of the tokenizer and the
comparison with transformers, at two seconds a case; the others read everything, and leave both out.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from fuzzing import Target
from pickle_damage import damage_torch_dist

from gpt.convert.hugging_face.names import from_hugging_face, table
from gpt.convert.hugging_face.peer import refuse_code
from gpt.convert.hugging_face.source import find_tokenizer, open_source
from gpt.convert.megatron.names import from_megatron
from gpt.convert.weights import shapes
from gpt.model.config import ModelConfig, RopeScaling
from gpt.model.gpt import GPT
from gpt.tokenizer.tokenizers import train_sentencepiece
from launch.conversion.hugging_face import export_run as export_hugging_face
from launch.conversion.hugging_face import import_folder
from launch.conversion.megatron import export_run as export_megatron
from launch.conversion.megatron import open_checkpoint
from launch.conversion.plain import export_plain, import_plain
from launch.runs.imported_run import write_run
from launch.runs.saved_run import SavedRun, open_run

GPT3 = ModelConfig(vocab_size=400, n_ctx=16, n_layers=2, d_model=8, n_heads=2, init_std=0.2)
LLAMA = replace(
    GPT3, positions="rope", norm="rmsnorm", activation="swiglu", bias=False, tied=False, d_ff=12, rope_theta=5e5
)
LLAMA_3 = replace(LLAMA, rope_scaling=RopeScaling(factor=8.0))


def random_run(folder: Path, config: ModelConfig) -> SavedRun:
    """A run of random weights."""
    train_sentencepiece(iter(["a text of few words, to train on 0123456789"] * 3), folder / "x.model", vocab_size=300)
    torch.manual_seed(1)
    rows = {name: shape[0] for name, shape in shapes(config).items()}
    weights = {name: p.detach()[: rows[name]] for name, p in GPT(config).named_parameters()}
    order = [name for entry in table(config) for name in entry.names]
    run = folder / "run"
    run.mkdir()
    about: dict[str, object] = {"from": "here", "format": "random", "dtype": "float32"}
    tensors = ((name, weights[name]) for name in order)
    write_run(run, tensors, config=config, tokenizer_file=folder / "x.model", about=about, order=order)
    return open_run(run)


def write(folder: Path, *, kind: str, config: ModelConfig) -> None:
    with tempfile.TemporaryDirectory() as work:
        saved, output = random_run(Path(work), config), folder / "model"
        if kind == "hf":
            export_hugging_face(saved, output, mode="none")
            (output / "triaxial_export.json").unlink()
        elif kind == "megatron":
            export_megatron(saved, output)
        else:
            export_plain(saved, output)


def import_whole(folder: Path) -> None:
    import_folder(folder / "model", folder.parent / "run")


def read_hugging_face(folder: Path) -> None:
    refuse_code(folder / "model")
    source = open_source(folder / "model")
    assert len(list(from_hugging_face(source.config, source.read()))) == len(shapes(source.config))
    find_tokenizer(folder / "model")


def read_megatron(folder: Path) -> None:
    source = open_checkpoint(folder / "model", tokenizer_size=300)
    assert len(list(from_megatron(source.config, source.read()))) == len(shapes(source.config))


def read_plain(folder: Path) -> None:
    import_plain(folder / "model", folder.parent / "run")


PEER = ("transformers", "tokenizers")
TARGETS = (
    Target("hf_import", partial(write, kind="hf", config=LLAMA_3), import_whole, cases=10, needs=PEER),
    Target("hf_llama", partial(write, kind="hf", config=LLAMA_3), read_hugging_face, cases=150, needs=PEER),
    Target("hf_gpt2", partial(write, kind="hf", config=GPT3), read_hugging_face, cases=100, needs=PEER),
    Target(
        "torch_dist",
        partial(write, kind="megatron", config=LLAMA),
        read_megatron,
        cases=200,
        damage=damage_torch_dist,
    ),
    Target("plain_safetensors", partial(write, kind="plain", config=GPT3), read_plain, cases=40),
)
