"""Megatron-core checkpoints, without Megatron: exports come back bit for bit, and other names are read.

A wrong checkpoint gives an error of one line and leaves nothing.
"""

import dataclasses
import os
import pickle
import re
import shutil

import pytest
import torch
from torch.distributed import checkpoint as dcp

from gpt.convert.megatron.names import from_megatron, to_megatron
from gpt.convert.megatron.source import open_source
from gpt.convert.round_trip import compare, main_dtype
from gpt.convert.weights import GivenWeights
from gpt.files.safetensors import digest
from launch.main import main
from launch.runs.saved_run import load_run, open_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def convert(*words):
    return main(["convert", *map(str, words)])


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_an_export_has_every_weight_where_megatron_expects_it(exported, megatron_runs, name):
    """A round trip alone would not show a mix-up made in both directions."""
    model = load_run(exported / name).model
    megatron_runs.check_weights(exported / f"{name}-megatron" / "release", model, megatron_runs.MODELS[name])


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_an_export_comes_back_bit_for_bit(exported, tmp_path, capsys, name):
    """Without further arguments. A model imported in bf16 is exported in bf16, and its chat template goes along."""
    source = exported / f"{name}-megatron"
    if name == "llama":
        source = tmp_path / "half"
        run = shutil.copytree(exported / name, tmp_path / "with-template")
        (run / "hugging_face").mkdir()
        (run / "hugging_face" / "chat_template.jinja").write_text("{{ messages }}")
        assert convert(run, "--to", "megatron", "--output", source) == 0
        assert main_dtype(open_source(source / "release")) == torch.bfloat16
    assert convert(source, "--to", "triaxial", "--output", tmp_path / "run") == 0
    assert f"tensors back to {source / 'release'} bit for bit" in capsys.readouterr().out
    assert (tmp_path / "run" / "hugging_face" / "chat_template.jinja").is_file() == (name == "llama")
    before, after = load_run(exported / name), load_run(tmp_path / "run")
    assert after.saved.model_config == before.saved.model_config
    assert after.saved.tokenizer.fingerprint == before.saved.tokenizer.fingerprint
    for (key, old), (_, new) in zip(before.model.named_parameters(), after.model.named_parameters(), strict=True):
        assert torch.equal(old, new), key


def test_verification_finds_a_tensor_that_differs(exported, megatron_runs):
    """For both directions, against a real export."""
    folder, saved = exported / "gpt-megatron" / "release", open_run(exported / "gpt")
    config = megatron_runs.GPT_LIKE
    source, weights = open_source(folder), GivenWeights(config, saved.weights(), torch.float32)

    def imported():
        return ((entry.title, tensor) for entry, tensor in to_megatron(config, saved.weights()))

    def exported_weights():
        return from_megatron(config, source.read())

    cases = [
        (source, imported, "decoder.layers.mlp.linear_fc2.bias, layer 3"),
        (weights, exported_weights, "blocks.3.mlp.down.bias"),
    ]
    for given, read_back, name in cases:
        digests = {key: digest(tensor, tensor.dtype) for key, tensor in given.read()}
        compare(given.specs, digests, read_back())
        with pytest.raises(RuntimeError, match=f"'{name}' did not come back bit for bit"):
            compare(given.specs, {**digests, name: "0" * 64}, read_back())


def test_older_names_and_numbered_layers_are_read(exported, tmp_path):
    """Norms with names of their own, and one tensor per layer, as Megatron saves layers that differ."""
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
    for (name, a), (same, b) in zip(before.read(), after.read(), strict=True):
        assert name == same
        assert torch.equal(a, b), name


def test_an_iteration_is_chosen_and_the_tokenizer_gives_the_vocabulary(exported, megatron_runs, tmp_path, capsys):
    """Several iterations as Megatron-LM saves them, without --vocab-size."""
    folder = shutil.copytree(exported / "gpt-megatron", tmp_path / "folder")
    set_arguments(folder / "release", vocab_size=None, padded_vocab_size=515)
    (folder / "release").rename(folder / "iter_0000012")
    shutil.copytree(folder / "iter_0000012", folder / "iter_0000007")
    set_arguments(folder / "iter_0000012", norm_epsilon=0.25)
    (folder / "latest_checkpointed_iteration.txt").write_text("12\n")
    for words, eps in (([], 0.25), (["--step", "7"], 1e-5)):
        assert convert(folder, "--to", "triaxial", "--output", tmp_path / f"run-{eps}", *words) == 0
        assert "3 rows of vocabulary are padding" in capsys.readouterr().out
        loaded = load_run(tmp_path / f"run-{eps}")
        assert loaded.saved.model_config == dataclasses.replace(megatron_runs.GPT_LIKE, vocab_size=512, norm_eps=eps)
        first = dict(load_run(exported / "gpt").model.named_parameters())["embed.tokens.weight"][:512]
        assert torch.equal(loaded.model.embed.tokens.weight, first)


def read_described(folder):
    return dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def change(folder, **renamed):
    """Write the checkpoint again with torch, with tensors renamed, removed (None) or added (a tensor)."""
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
    (lambda f, _: (f / "metadata.json").unlink(), "its save was not completed"),
    (
        lambda f, _: (f / "metadata.json").write_text('{"sharded_backend": "zarr"}'),
        "'zarr' is not supported",
    ),
    (lambda f, c: (f / ".metadata").write_bytes(pickle.dumps(Evil(c))), "names 'posix.system'"),
    (lambda f, c: set_arguments(f, num_layers=Evil(c)), "num_layers = None must be a whole number"),
    (lambda f, _: (f / "common.pt").write_bytes(b"PK\3\4nonsense"), "common.pt is not an archive of torch.save"),
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
    (lambda f, _: set_arguments(f, num_experts=8), "num_experts = 8 is not supported; only no value is"),
    (lambda f, _: set_arguments(f, softmax_scale=0.5), "softmax_scale = 0.5 is not supported"),
    (
        lambda f, _: set_arguments(f, position_embedding_type="yarn"),
        "= 'yarn' is not supported",
    ),
    (lambda f, _: set_arguments(f, bias_gelu_fusion=False), "computes the exact GELU"),
    (
        lambda f, _: set_arguments(f, kv_channels=16),
        "kv_channels = 16 is not supported; only hidden_size",
    ),
    (lambda f, _: set_arguments(f, num_layers=5), r"is \[4, .*\], but \[5, "),
    (
        lambda f, _: set_arguments(f, num_layers=10**9),
        "num_layers = 1000000000 must be .* from 1 to 10,000",
    ),
    (lambda f, _: set_arguments(f, hidden_size=2**62), "hidden_size = .* from 1 to 1,048,576"),
    (lambda f, _: set_arguments(f, norm_epsilon="x"), "norm_epsilon = 'x' must be a finite number"),
    (lambda f, _: set_arguments(f, normalization="x" * 10**5), r"normalization = 'x+\.\.\.x+' is not supported"),
    (
        lambda f, _: [(f / "common.pt").unlink(), change(f, **{FC1: torch.ones(())})],
        "do not contain the number of heads",
    ),
    (
        lambda f, _: (f / "common.pt").unlink(),
        "do not contain the number of heads. .* n_layers = 4, d_model = 48, d_ff = 80",
    ),
    (lambda f, _: shutil.rmtree(f.parent / "tokenizer"), "holds no tokenizer"),
    (lambda f, _: (f.parent / "latest_checkpointed_iteration.txt").write_text("7"), "no checkpoint iter_0000007"),
    (
        lambda f, _: (f.parent / "latest_checkpointed_iteration.txt").write_text("x/../y"),
        "must contain an iteration",
    ),
    (
        lambda f, _: (f.parent / "latest_checkpointed_iteration.txt").write_text("9" * 19),
        "must contain an iteration",
    ),
    (
        lambda f, _: (f.parent / "latest_checkpointed_iteration.txt").write_text("9" * 5000),
        "has more than 4,096 bytes",
    ),
]


@pytest.mark.parametrize(("spoil", "words"), BAD, ids=range(len(BAD)))
def test_a_wrong_checkpoint_is_an_error_of_one_line_and_nothing_is_written(exported, tmp_path, capsys, spoil, words):
    folder, canary = shutil.copytree(exported / "gpt-megatron", tmp_path / "folder"), tmp_path / "canary"
    spoil(folder / "release", canary)
    capsys.readouterr()
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert re.search(words, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
