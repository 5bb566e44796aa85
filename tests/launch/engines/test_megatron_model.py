"""The model of a recipe from Megatron-LM's flags is the one of a checkpoint with the same arguments."""

import tomllib

import pytest
from megatron_commands import PLAIN, recipe_of

from gpt.convert.megatron.config import arguments_of, config_of
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from launch.config.recipe import build
from launch.config.run_config import RunConfig
from launch.engines.from_megatron import recipe_from_megatron
from launch.engines.megatron_model import VOCABULARY


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        ("", {}),
        (
            "--swiglu --normalization RMSNorm --position-embedding-type rope --rotary-base 500000 "
            "--disable-bias-linear "
            "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2 --norm-epsilon 1e-6 "
            "--init-method-std 0.01 --use-rope-scaling --rope-scaling-factor 4",
            {"n_kv_heads": 2, "rope_theta": 500_000.0},
        ),
    ],
)
def test_the_model_is_the_one_of_a_checkpoint_with_these_arguments(flags: str, keys: dict[str, object]) -> None:
    """Conversion of checkpoints reads the same arguments by other code."""
    model = recipe_of(f"{PLAIN} {flags} --ffn-hidden-size 1024")[1].model
    assert {key: getattr(model, key) for key in keys} == keys
    assert config_of(arguments_of(model), where="args") == ModelConfig(**{**vars(model), "vocab_multiple": 128})


def test_the_vocabulary_is_padded_as_megatron_does_and_its_size_may_be_a_gap() -> None:
    assert recipe_of(f"{PLAIN} --tensor-model-parallel-size 2")[1].model.padded_vocab_size == 32000
    gpt2 = PLAIN.replace("--vocab-size 32000", "--tokenizer-type GPT2BPETokenizer")
    assert recipe_of(f"{gpt2} --tensor-model-parallel-size 2")[1].model.padded_vocab_size == 50432
    unknown = PLAIN.replace("--vocab-size 32000 --tokenizer-model t", "--tokenizer-type HuggingFaceTokenizer")
    text = recipe_from_megatron(unknown.split(), [])
    assert "# To fill in: model.vocab_size, data.tokenizer." in text
    with pytest.raises(ConfigError, match=r"model\.vocab_size = 0"):
        build(RunConfig, tomllib.loads(text), where="")
    filled, config = recipe_of(unknown, "--model.vocab_size", "1000", "--data.tokenizer", "here")
    assert (config.model.vocab_size, config.data.tokenizer) == (1000, "here")
    assert "FILL IN" not in filled


def test_corpora_may_have_weights_and_gpt2s_vocabulary_is_known() -> None:
    assert VOCABULARY["GPT2BPETokenizer"] == 50257
    many = recipe_of(PLAIN.replace("--data-path corpus", "--data-path a b c"))[1].data.train
    assert [corpus.path for corpus in many] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="each weight needs a path"):
        recipe_of(PLAIN.replace("--data-path corpus", "--data-path 0.5 a 0.5"))
