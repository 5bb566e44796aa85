"""`triaxial convert` and Megatron-core checkpoints, both ways: Megatron's own GPTModel gives the same logits, weights
go and come bit for bit, and what is wrong ends with one line and leaves nothing."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from torch.distributed import checkpoint as dcp

from gpt.config import ModelConfig, RopeScaling
from gpt.convert.megatron_names import Piece, table
from gpt.convert.megatron_source import open_source
from gpt.convert.names import shapes
from gpt.convert.safetensors_files import digest
from gpt.model import GPT
from gpt.tokenizer import load_tokenizer
from launch import convert_megatron
from launch.converted_run import write_run
from launch.loading import load_run, open_run
from launch.main import main

ROOT, PROGRAM = Path(__file__).parents[2], Path(__file__).parent / "megatron_program.py"
HAVE_MEGATRON = (
    importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("megatron.core") is not None
)
needs_megatron = pytest.mark.skipif(not HAVE_MEGATRON, reason="megatron-core is not installed (the extra 'megatron')")

SIZES = {"vocab_size": 515, "n_ctx": 256, "n_layers": 4, "d_model": 48, "n_heads": 4, "d_ff": 80, "init_std": 0.2}
GPT_LIKE = ModelConfig(**SIZES)
LLAMA_LIKE = ModelConfig(
    **SIZES,
    **{"n_kv_heads": 2, "positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied": False},
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=4.0),
)
MODELS = {"gpt": GPT_LIKE, "llama": LLAMA_LIKE}
PADDED = 520  # as a tensor-parallel Megatron has the vocabulary


def convert(*words):
    return main(["convert", *map(str, words)])


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


def in_words(config):
    return {**dataclasses.asdict(config), "d_ff": config.ff_width}


def relative_error(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_corpus):
    """A folder with a run and its export of each model: gpt, gpt-megatron, llama, llama-megatron."""
    folder = tmp_path_factory.mktemp("exported")
    for name, config in MODELS.items():
        dtype = torch.float32 if name == "gpt" else torch.bfloat16
        run = write_random_run(folder / name, config, tiny_corpus.folder / "topics.model", dtype=dtype)
        words = [] if name == "gpt" else ["--dtype", "float32"]
        assert convert(run, "--to", "megatron", "--output", folder / f"{name}-megatron", *words) == 0
    return folder


@pytest.fixture(scope="module")
def megatron(exported, tmp_path_factory, tiny_corpus):
    """What Megatron makes of the exports, and checkpoints that it saved itself: one launch of two ranks."""
    folder = tmp_path_factory.mktemp("megatron")
    ids = load_tokenizer(tiny_corpus.folder / "topics.model").encode(topics["assignment"])[:256]
    torch.save(torch.tensor([ids[:128], ids[128:]]), folder / "tokens.pt")
    jobs = []
    for name, layout, saved in (("gpt", (2, 1), (1, 2)), ("llama", (1, 2), (2, 1))):
        job = {"model": in_words(MODELS[name]), "padded_vocabulary": PADDED, "tokens": str(folder / "tokens.pt")}
        load = str(exported / f"{name}-megatron" / "release")
        jobs.append({**job, "layout": layout, "load": load, "logits": str(folder / f"{name}-loaded.pt")})
        save = folder / f"{name}-saved"
        save.mkdir()
        arguments = None if name == "llama" else arguments_of_megatron_lm(MODELS[name])
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


def arguments_of_megatron_lm(config):
    """In Megatron-LM's own words, as its parser leaves them; not taken from the code under test."""
    return {
        **{"num_layers": 4, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 4, "kv_channels": 12},
        **{"group_query_attention": False, "num_query_groups": 1, "max_position_embeddings": 256, "seq_length": 128},
        **{"position_embedding_type": "learned_absolute", "add_position_embedding": True, "norm_epsilon": 1e-5},
        **{"use_rotary_position_embeddings": False, "rotary_base": 10000, "rotary_percent": 1.0, "swiglu": False},
        **{"add_bias_linear": True, "bias_gelu_fusion": True, "untie_embeddings_and_output_weights": False},
        **{"normalization": "LayerNorm", "vocab_size": config.vocab_size, "padded_vocab_size": PADDED},
        **{"num_experts": None, "multi_latent_attention": False, "init_method_std": 0.2, "squared_relu": False},
    }


@needs_megatron
@pytest.mark.parametrize("name", MODELS)
def test_megatron_loads_an_export_and_gives_our_logits(exported, megatron, name):
    """On tensor 2 or pipeline 2, its vocabulary padded, by its own dist_checkpointing.load."""
    tokens = torch.load(megatron / "tokens.pt")
    with torch.inference_mode():
        ours = load_run(exported / name).model(tokens)
    theirs = torch.load(megatron / f"{name}-loaded.pt")
    assert relative_error(ours, theirs) < 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@needs_megatron
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_that_megatron_saved_becomes_a_run(megatron, tiny_corpus, tmp_path, capsys, name):
    """Saved on pipeline 2 with Megatron-LM's arguments, and on tensor 2 without; every weight where it belongs, by an
    account that shares nothing with the table."""
    recipe = tmp_path / "model.toml"
    write_model(recipe, LLAMA_LIKE)
    words = ["--tokenizer", tiny_corpus.folder / "topics.model", *(["--model", recipe] if name == "llama" else [])]
    assert convert(megatron / f"{name}-saved", "--to", "triaxial", "--output", tmp_path / "run", *words) == 0
    out = capsys.readouterr().out
    assert "5 rows of vocabulary are padding" in out
    assert "bit for bit" in out
    loaded = load_run(tmp_path / "run")
    assert dataclasses.replace(loaded.saved.model_config, init_std=0.2) == MODELS[name]
    check_weights(megatron / f"{name}-saved", loaded.model, MODELS[name])
    with torch.inference_mode():
        ours = loaded.model(torch.load(megatron / "tokens.pt"))
    theirs = torch.load(megatron / f"{name}-saved.pt")
    assert relative_error(ours, theirs) < 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def write_model(path, config):
    from launch.converted_run import model_toml

    path.write_text(model_toml(config))


def check_weights(folder, model, config):
    """Each head's rows, with torch's own reader of the checkpoint."""
    described = dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    theirs = {name: torch.empty(d.size) for name, d in described.items() if hasattr(d, "size")}
    dcp.load(theirs, checkpoint_id=str(folder))
    ours = dict(model.named_parameters())
    width, queries = config.d_head, config.n_heads // config.kv_heads
    seen = 0
    for layer in range(config.n_layers):
        for kind in ("weight", "bias") if config.bias else ("weight",):
            qkv = theirs[f"decoder.layers.self_attention.linear_qkv.{kind}"][layer].split(width)
            attention = {part: ours[f"blocks.{layer}.attention.{part}.{kind}"].split(width) for part in "qkv"}
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
        if name in theirs:
            rows = theirs[name][: config.vocab_size] if theirs[name].size(0) == PADDED else theirs[name]
            assert torch.equal(rows, ours[own][: len(rows)]), name
            seen += rows.numel()
    each = {
        "self_attention.linear_proj": "attention.out",
        "mlp.linear_fc2": "mlp.down",
        "self_attention.linear_qkv.layer_norm": "attention_norm",
        "mlp.linear_fc1.layer_norm": "mlp_norm",
    }
    for name, stacked in theirs.items():
        if not name.startswith("decoder.layers.") or "linear_qkv.weight" in name or "linear_qkv.bias" in name:
            continue
        module, _, kind = re.sub("layer_norm_", "layer_norm.", name).removeprefix("decoder.layers.").rpartition(".")
        for layer in range(config.n_layers):
            block = f"blocks.{layer}."
            if module == "mlp.linear_fc1" and config.activation == "swiglu":
                parts = [ours[f"{block}mlp.{part}.{kind}"] for part in ("gate", "up")]
                assert torch.equal(stacked[layer], torch.cat(parts)), name
            else:
                own = "mlp.up" if module == "mlp.linear_fc1" else each[module]
                assert torch.equal(stacked[layer], ours[f"{block}{own}.{kind}"]), name
        seen += stacked.numel()
    assert seen == config.parameters


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", MODELS)
def test_an_export_has_every_weight_where_megatron_looks_for_it(exported, name):
    """Without megatron-core: the way there and back alone would not show a mix-up that is made in both directions."""
    check_weights(exported / f"{name}-megatron" / "release", load_run(exported / name).model, MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_an_export_comes_back_bit_for_bit(exported, tmp_path, capsys, name):
    """With no more than the checkpoint says of itself; weights that came as bf16 go as bf16."""
    source = exported / f"{name}-megatron"
    if name == "llama":
        source = tmp_path / "half"
        assert convert(exported / name, "--to", "megatron", "--output", source) == 0
        assert open_source(source / "release").dtype == torch.bfloat16
    assert convert(source, "--to", "triaxial", "--output", tmp_path / "run") == 0
    assert f"tensors back to {source / 'release'} bit for bit" in capsys.readouterr().out
    before, after = load_run(exported / name), load_run(tmp_path / "run")
    assert after.saved.model_config == before.saved.model_config
    assert after.saved.tokenizer.fingerprint == before.saved.tokenizer.fingerprint
    for (key, old), (_, new) in zip(before.model.named_parameters(), after.model.named_parameters(), strict=True):
        assert torch.equal(old, new), key


def test_one_byte_that_differs_is_found_by_the_verification_of_both_ways(exported, tmp_path):
    folder, saved = shutil.copytree(exported / "gpt-megatron" / "release", tmp_path / "x"), open_run(exported / "gpt")
    ours = {name: digest(tensor[: shapes(GPT_LIKE)[name][0]], torch.float32) for name, tensor in saved.weights()}
    for changed in (False, True):
        source = open_source(folder)
        if changed:
            (_, bias), *_ = source.slices[
                Piece("decoder.layers.mlp.linear_fc2.bias", 3, ("blocks.3.mlp.down.bias",))
            ].parts
            with open(bias.file, "r+b") as file:
                file.seek(bias.start)
                byte = file.read(1)[0]
                file.seek(bias.start)
                file.write(bytes([byte ^ 1]))
        theirs = {piece: digest(tensor, tensor.dtype) for piece, tensor in source.read()}
        told = pytest.raises(RuntimeError, match="come back as") if changed else contextlib.nullcontext()
        with told:
            convert_megatron._verify_import(source, saved.checkpoint_path, theirs)
        with told:
            convert_megatron._verify_export(folder, GPT_LIKE, ours)


def test_older_names_and_numbered_layers_are_read(exported, tmp_path):
    """Norms under names of their own; each layer a tensor by itself, as Megatron saves layers that differ."""
    folder = shutil.copytree(exported / "gpt-megatron" / "release", tmp_path / "folder")
    state = {name: torch.empty(d.size) for name, d in read_described(folder).items() if hasattr(d, "size")}
    dcp.load(state, checkpoint_id=str(folder))
    numbered = {}
    for name, tensor in state.items():
        name = name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
        name = name.replace("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.")
        if name.startswith("decoder.layers."):
            rest = name.removeprefix("decoder.layers.")
            numbered |= {f"decoder.layers.{i}.{rest}": tensor[i].clone() for i in range(4)}
        else:
            numbered[name] = tensor
    numbered |= {"optimizer.state.exp_avg.decoder.final_layernorm.weight": torch.ones(48)}
    other = tmp_path / "other"
    dcp.save(numbered, checkpoint_id=str(other))
    for name in ("metadata.json", "common.pt"):
        shutil.copyfile(folder / name, other / name)
    before, after = open_source(folder), open_source(other)
    assert after.notes[0].startswith("1 tensors of the optimizer are left out")
    for (piece, a), (same, b) in zip(before.read(), after.read(), strict=True):
        assert piece == same
        assert torch.equal(a, b), piece


def read_described(folder):
    return dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def change(folder, **renamed):
    """The same checkpoint with tensors renamed, removed (None) or added (a tensor); written by torch."""
    state = {name: torch.empty(d.size) for name, d in read_described(folder).items() if hasattr(d, "size")}
    dcp.load(state, checkpoint_id=str(folder))
    for name, new in renamed.items():
        old = state.pop(name, None)
        if isinstance(new, str):
            state[new] = torch.ones(2) if old is None else old
        elif new is not None:
            state[name] = new
    for path in folder.glob("*.distcp"):
        path.unlink()
    (folder / ".metadata").unlink()
    dcp.save(state, checkpoint_id=str(folder))


def set_arguments(folder, **changes):
    arguments = torch.load(folder / "common.pt", weights_only=False)
    for key, value in changes.items():
        setattr(arguments["args"], key, value)
    torch.save(arguments, folder / "common.pt")


FC1, QKV = "decoder.layers.mlp.linear_fc1.weight", "decoder.layers.self_attention.linear_qkv.weight"
BAD = [
    (lambda f, _: (f / ".metadata").unlink(), "holds no .metadata"),
    (lambda f, _: (f / "metadata.json").unlink(), "its save did not come to its end"),
    (lambda f, _: (f / "metadata.json").write_text('{"sharded_backend": "zarr"}'), "the format 'zarr' is not read"),
    (lambda f, c: (f / ".metadata").write_bytes(pickle.dumps(Evil(c))), "names 'posix.system'"),
    (lambda f, c: set_arguments(f, num_layers=Evil(c)), "num_layers = None must be a whole number"),
    (lambda f, _: (f / "common.pt").write_bytes(b"PK\3\4nonsense"), "common.pt: no archive of torch.save"),
    (lambda f, _: os.truncate(f / "__0_0.distcp", 90_000), "cut off"),
    (lambda f, _: (f / "__0_0.distcp").unlink(), "is missing"),
    (lambda f, _: change(f, **{FC1: None}), f"1 tensors of this GPTModel are missing, '{FC1}'"),
    (lambda f, _: change(f, **{"extra.weight": torch.ones(2)}), "1 tensors are unknown to it, 'extra.weight'"),
    (lambda f, _: change(f, **{QKV: torch.ones(4, 143, 48)}), r"is \[4, 143, 48\], but \[4, 144, 48\]"),
    (
        lambda f, _: change(f, **{FC1: "decoder.layers.mlp.experts.linear_fc1.weight"}),
        "belongs to a mixture of experts",
    ),
    (lambda f, _: change(f, **{QKV: "decoder.layers.self_attention.linear_q_down_proj.weight"}), "multi-head latent"),
    (lambda f, _: set_arguments(f, num_experts=8), "num_experts = 8 is not here; only nothing of it is"),
    (lambda f, _: set_arguments(f, softmax_scale=0.5), "softmax_scale = 0.5 is not here"),
    (lambda f, _: set_arguments(f, position_embedding_type="yarn"), "position_embedding_type = 'yarn' is not here"),
    (lambda f, _: set_arguments(f, bias_gelu_fusion=False), "computes GELU exactly"),
    (lambda f, _: set_arguments(f, kv_channels=16), "kv_channels = 16 is not hidden_size / num_attention_heads"),
    (lambda f, _: set_arguments(f, num_layers=5), r"is \[4, .*\], but \[5, "),
    (lambda f, _: set_arguments(f, num_layers=10**9), "num_layers = 1000000000 must be .* at most 10,000"),
    (lambda f, _: set_arguments(f, hidden_size=2**62), "hidden_size = .* at most 10,000,000"),
    (lambda f, _: set_arguments(f, norm_epsilon="x"), "norm_epsilon = 'x' must be a number"),
    (lambda f, _: set_arguments(f, normalization="x" * 10**5), "normalization = 'x{100}' is not here"),
    (lambda f, _: [(f / "common.pt").unlink(), change(f, **{FC1: torch.ones(())})], "do not tell the number of heads"),
    (
        lambda f, _: (f / "common.pt").unlink(),
        "do not tell the number of heads; .* n_layers = 4, d_model = 48, d_ff = 80",
    ),
    (lambda f, _: shutil.rmtree(f.parent / "tokenizer"), "holds no tokenizer"),
    (lambda f, _: (f.parent / "latest_checkpointed_iteration.txt").write_text("7"), "no checkpoint iter_0000007"),
    (lambda f, _: (f.parent / "latest_checkpointed_iteration.txt").write_text("x/../y"), "names no iteration"),
    (lambda f, _: (f.parent / "latest_checkpointed_iteration.txt").write_text("9" * 5000), "names no iteration"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD, ids=range(len(BAD)))
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(exported, tmp_path, capsys, spoil, words):
    folder, canary = shutil.copytree(exported / "gpt-megatron", tmp_path / "folder"), tmp_path / "canary"
    spoil(folder / "release", canary)
    capsys.readouterr()
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert re.search(words, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_wrong_words_are_told_too(exported, tmp_path, capsys, tiny_corpus):
    output = tmp_path / "out"
    other = tmp_path / "other.toml"
    write_model(other, dataclasses.replace(GPT_LIKE, n_heads=8))
    (tmp_path / "old" / "mp_rank_00").mkdir(parents=True)
    large = tmp_path / "large.model"
    cases = [
        ([exported / "gpt-megatron", "--to", "hf"], "is a Megatron checkpoint; import it with --to triaxial"),
        ([exported / "gpt-megatron", "--to", "triaxial", "--model", other], "--model says n_heads = 8, but .* says 4"),
        ([exported / "gpt-megatron", "--to", "triaxial", "--step", "3"], "no checkpoint iter_0000003"),
        ([exported / "gpt-megatron", "--to", "triaxial", "--tokenizer", large], "no such tokenizer file"),
        ([exported / "gpt", "--to", "megatron", "--weights-only"], "--weights-only goes with --to triaxial"),
        ([exported / "gpt", "--to", "megatron", "--logits", "whole"], "--logits whole: Megatron's logits"),
        ([exported / "gpt", "--to", "megatron", "--model", other], "--model .* goes with a Megatron checkpoint"),
        ([tmp_path / "old", "--to", "triaxial"], "older format .mp_rank_00., pickles that are never loaded"),
        ([exported / "gpt", "--to", "triaxial", "--dtype", "float16"], "goes with --to hf or megatron"),
    ]
    for words, told in cases:
        capsys.readouterr()
        assert convert(*words, "--output", output) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1, error
        assert re.search(told, error), error
        assert not output.exists()
    assert convert(exported / "gpt", "--to", "megatron", "--output", exported / "llama") == 2
    assert "exists already" in capsys.readouterr().err
    for settings, told in (
        ({"bias": False}, "its LayerNorm always has a bias"),
        ({"bias": False, "norm": "rmsnorm"}, "only with biases"),
        ({"positions": "rope", "rope_scaling": RopeScaling(8.0, original_n_ctx=64)}, "Llama 3.1's 8192, 1 to 4 alone"),
    ):
        config = dataclasses.replace(GPT_LIKE, **settings)
        run = write_random_run(tmp_path / told[:9], config, tiny_corpus.folder / "topics.model")
        assert convert(run, "--to", "megatron", "--output", output) == 2
        assert told in capsys.readouterr().err
        assert not output.exists()


def test_a_dry_run_reads_sizes_alone(exported, tmp_path, capsys):
    assert convert("gpt3_175b", "--to", "megatron", "--dry-run", "--output", tmp_path / "x") == 0
    out = capsys.readouterr().out
    assert re.search("Megatron's GPTModel architecture, 17[45],", out), out
    assert convert(exported / "llama-megatron", "--to", "triaxial", "--dry-run") == 0
    out = capsys.readouterr().out
    assert f"{LLAMA_LIKE.parameters:,} parameters" in out
    assert "logits not compared" in out
    assert list(tmp_path.iterdir()) == []
