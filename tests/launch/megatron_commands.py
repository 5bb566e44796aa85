"""Flags of a small Megatron-LM command, and the recipe that they give."""

import tomllib

from launch.config.recipe import build
from launch.config.run_config import RunConfig
from launch.engines.from_megatron import recipe_from_megatron

MODEL = "--num-layers 8 --hidden-size 256 --num-attention-heads 8 --max-position-embeddings 512 --seq-length 512"
RUN = "--micro-batch-size 2 --global-batch-size 32 --train-iters 1000 --lr 3e-4 --vocab-size 32000 --tokenizer-model t"
DROPOUT = "--hidden-dropout 0 --attention-dropout 0.0"
PLAIN = f"{MODEL} {RUN} {DROPOUT} --data-path corpus"


def recipe_of(flags: str, *overrides: str) -> tuple[str, RunConfig]:
    """The printed text, and the recipe as `triaxial train` reads it."""
    text = recipe_from_megatron(flags.split(), overrides)
    return text, build(RunConfig, tomllib.loads(text), where="")
