"""Megatron-core's own GPTModel loads our exports and gives our logits; its checkpoints become runs with its logits."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main
from launch.runs.saved_run import load_run

HERE = importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("megatron.core") is not None
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.skipif(not HERE, reason="megatron-core is not installed (the extra 'megatron')"),
]
ROOT, PROGRAM = Path(__file__).parents[3], Path(__file__).parents[1] / "megatron_program.py"
NAMES = ("gpt", "llama")


def in_words(config):
    return {**dataclasses.asdict(config), "d_ff": config.ff_width}


def relative_error(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module")
def megatron(exported, megatron_runs, tmp_path_factory, tiny_corpus):
    """Logits of Megatron for our exports, and checkpoints that it saved: one launch of two ranks."""
    folder = tmp_path_factory.mktemp("megatron")
    ids = load_tokenizer(tiny_corpus.folder / "topics.model").encode(topics["assignment"])[:256]
    torch.save(torch.tensor([ids[:128], ids[128:]]), folder / "tokens.pt")
    jobs = []
    for name, layout, saved in (("gpt", (2, 1), (1, 2)), ("llama", (1, 2), (2, 1))):
        job = {
            "model": in_words(megatron_runs.MODELS[name]),
            "padded_vocabulary": megatron_runs.PADDED,
            "tokens": str(folder / "tokens.pt"),
        }
        load = str(exported / f"{name}-megatron" / "release")
        jobs.append({**job, "layout": layout, "load": load, "logits": str(folder / f"{name}-loaded.pt")})
        save = folder / f"{name}-saved"
        save.mkdir()
        arguments = (
            None if name == "llama" else arguments_of_megatron_lm(megatron_runs.MODELS[name], megatron_runs.PADDED)
        )
        logits = str(folder / f"{name}-saved.pt")
        jobs.append({**job, "layout": saved, "save": str(save), "arguments": arguments, "logits": logits})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    command = [sys.executable, str(PROGRAM), str(folder / "jobs.json")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        try:
            status = process.wait(timeout=280)
        finally:
            with contextlib.suppress(ProcessLookupError):  # Megatron's own helpers outlive a rank that failed
                os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, (folder / "log").read_text()[-4000:]
    return folder


def arguments_of_megatron_lm(config, padded):
    """Return arguments as Megatron-LM's parser gives them, written independently of the code under test."""
    return {
        **{"num_layers": 4, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 4, "kv_channels": 12},
        **{"group_query_attention": False, "num_query_groups": 1, "max_position_embeddings": 256, "seq_length": 128},
        **{"position_embedding_type": "learned_absolute", "add_position_embedding": True, "norm_epsilon": 1e-5},
        **{"use_rotary_position_embeddings": False, "rotary_base": 10000, "rotary_percent": 1.0, "swiglu": False},
        **{"add_bias_linear": True, "bias_gelu_fusion": True, "untie_embeddings_and_output_weights": False},
        **{"normalization": "LayerNorm", "vocab_size": config.vocab_size, "padded_vocab_size": padded},
        **{"num_experts": None, "multi_latent_attention": False, "init_method_std": 0.2, "squared_relu": False},
    }


@pytest.mark.parametrize("name", NAMES)
def test_megatron_loads_an_export_and_gives_our_logits(exported, megatron, name):
    """On tensor 2 or pipeline 2, with padded vocabulary, through its own dist_checkpointing.load."""
    tokens = torch.load(megatron / "tokens.pt")
    with torch.inference_mode():
        ours = load_run(exported / name).model(tokens)
    theirs = torch.load(megatron / f"{name}-loaded.pt")
    assert relative_error(ours, theirs) < 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_megatron_saved_becomes_a_run(megatron, megatron_runs, tiny_corpus, tmp_path, capsys, name):
    """Saved on pipeline 2 with Megatron-LM's arguments, and on tensor 2 without them. The position of every weight is
    checked by code that shares nothing with the table."""
    recipe = tmp_path / "model.toml"
    megatron_runs.write_model(recipe, megatron_runs.LLAMA_LIKE)
    words = ["--tokenizer", tiny_corpus.folder / "topics.model", *(["--model", recipe] if name == "llama" else [])]
    words = [megatron / f"{name}-saved", "--to", "triaxial", "--output", tmp_path / "run", *words]
    assert main(["convert", *map(str, words)]) == 0
    out = capsys.readouterr().out
    assert "5 rows of vocabulary are padding" in out
    assert "bit for bit" in out
    loaded = load_run(tmp_path / "run")
    assert dataclasses.replace(loaded.saved.model_config, init_std=0.2) == megatron_runs.MODELS[name]
    megatron_runs.check_weights(megatron / f"{name}-saved", loaded.model, megatron_runs.MODELS[name])
    with torch.inference_mode():
        ours = loaded.model(torch.load(megatron / "tokens.pt"))
    theirs = torch.load(megatron / f"{name}-saved.pt")
    assert relative_error(ours, theirs) < 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
