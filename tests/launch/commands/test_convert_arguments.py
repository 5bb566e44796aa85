"""The arguments of `triaxial convert`: what does not fit together is one line, and nothing is written."""

import dataclasses
import re

import pytest

from gpt.model.config import RopeScaling
from launch.main import main


def convert(*words):
    return main(["convert", *map(str, words)])


def test_arguments_that_do_not_fit_are_refused_in_one_line(exported, megatron_runs, tmp_path, capsys):
    output = tmp_path / "out"
    other = tmp_path / "other.toml"
    megatron_runs.write_model(other, dataclasses.replace(megatron_runs.GPT_LIKE, n_heads=8))
    (tmp_path / "old" / "mp_rank_00").mkdir(parents=True)
    missing = tmp_path / "missing.model"
    cases = [
        ([exported / "gpt-megatron", "--to", "hf"], "is a Megatron checkpoint. Import it with --to triaxial"),
        ([exported / "gpt-megatron", "--to", "triaxial", "--model", other], "--model says n_heads = 8, but .* says 4"),
        ([exported / "gpt-megatron", "--to", "triaxial", "--step", "3"], "no checkpoint iter_0000003"),
        ([exported / "gpt-megatron", "--to", "triaxial", "--tokenizer", missing], "no such tokenizer file"),
        ([exported / "gpt", "--to", "megatron", "--weights-only"], "--weights-only is only valid with --to triaxial"),
        ([exported / "gpt", "--to", "megatron", "--logits", "whole"], "--logits whole is invalid: Megatron's logits"),
        (
            [exported / "gpt", "--to", "megatron", "--model", other],
            "--model .* is only valid for a Megatron checkpoint",
        ),
        ([tmp_path / "old", "--to", "triaxial"], "older format .mp_rank_00.: pickles, which are never loaded"),
        ([exported / "gpt", "--to", "triaxial", "--dtype", "float16"], "is only valid with --to hf or megatron"),
    ]
    for words, expected in cases:
        capsys.readouterr()
        assert convert(*words, "--output", output) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1, error
        assert re.search(expected, error), error
        assert not output.exists()


def test_an_output_must_be_named_new_and_outside_the_checkpoints(exported, capsys):
    assert convert(exported / "gpt", "--to", "megatron") == 2
    assert "--output is missing" in capsys.readouterr().err
    assert convert(exported / "gpt", "--to", "megatron", "--output", exported / "llama") == 2
    assert "exists already" in capsys.readouterr().err
    assert convert(exported / "gpt", "--to", "safetensors", "--output", exported / "gpt" / "checkpoints" / "x") == 2
    assert "is inside the run's checkpoints folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bias": False}, "Megatron's LayerNorm always has a bias"),
        ({"bias": False, "norm": "rmsnorm"}, "only with biases"),
        ({"positions": "rope", "rope_scaling": RopeScaling(8.0, original_n_ctx=64)}, "only Llama 3.1's 8192, 1 to 4"),
    ],
)
def test_a_model_that_megatron_cannot_be_is_not_written(megatron_runs, tmp_path, capsys, tiny_corpus, settings, words):
    config = dataclasses.replace(megatron_runs.GPT_LIKE, **settings)
    run = megatron_runs.write_random_run(tmp_path / "run", config, tiny_corpus.folder / "topics.model")
    assert convert(run, "--to", "megatron", "--output", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
