"""For tests: a run directory as training leaves it, with a small model of random weights."""

import argparse
import dataclasses
import importlib
from contextlib import nullcontext
from pathlib import Path

import torch

from gpt.data.config import CorpusConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from gpt.training.config import Retention
from launch.config.run_config import as_dict, read_run_config
from launch.main import COMMANDS
from parallel.checkpoint.save import save_checkpoint

TEXT = "The parser reads the source, then 42 of the others follow; for each it prints a line of names and of numbers.\n"
SIZES = {"vocab_size": 360, "n_ctx": 64, "n_layers": 2, "d_model": 32, "n_heads": 4, "init_std": 0.2}


@dataclasses.dataclass(frozen=True)
class SavedTraining:
    """The run, its model at each step, and the token ids of one validation document."""

    directory: Path
    models: dict[int, GPT]
    validation: list[int]


def save_training(root: Path) -> SavedTraining:
    """Save checkpoints of steps 10 and 20 with different weights, and make two validation corpora."""
    train_sentencepiece(iter([TEXT] * 2), root / "original.model", vocab_size=350)
    tokenizer = load_tokenizer(root / "original.model")
    words = [*tokenizer.encode(TEXT * 30), tokenizer.end_of_document_id]
    for name in ("train", "first", "second"):
        with TokenFileWriter(root / name, vocab_size=360) as file:
            for _ in range(1 if name == "second" else 2):
                file.add_document(words)
    recipe = read_run_config("demo", [word for key, value in SIZES.items() for word in (f"--model.{key}", str(value))])
    data = dataclasses.replace(
        recipe.data,
        tokenizer=str(root / "original.model"),
        seq_len=32,
        train=(CorpusConfig(path=str(root / "train")),),
        validation=(CorpusConfig(path=str(root / "first")), CorpusConfig(path=str(root / "second"))),
    )
    config = dataclasses.replace(recipe, data=data)
    directory = root / "run"
    (directory / "tokenizer").mkdir(parents=True)
    (root / "original.model").rename(directory / "tokenizer" / "original.model")  # only the run's copy is left
    models = {}
    for step in (10, 20):
        models[step] = GPT(config.model).requires_grad_(False)
        initialise(models[step], config.model, seed=step)
        tensors = {f"model.{name}": tensor for name, tensor in models[step].named_parameters()}
        tensors |= {f"optimizer.exp_avg.{name}": torch.ones_like(t) for name, t in models[step].named_parameters()}
        state: dict[str, object] = {"config": as_dict(config), "step": step, "tokens_seen": step * 4096}
        save_checkpoint(directory / "checkpoints", step=step, tensors=tensors, state=state, keep=Retention(2))
    return SavedTraining(directory, models, words)


def run_command(command: str, *words: object) -> int:
    """Run a subcommand without `triaxial`'s error handling, so that a test sees the ConfigError."""
    module = importlib.import_module(COMMANDS[command][0])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    args = parser.parse_args([str(word) for word in words])
    args.imports = nullcontext
    return int(module.run(args))
