"""Write a training recipe with the reason of each choice."""

from pathlib import Path

from launch.config.settings import toml
from launch.start.model_choice import GOOD_EPOCHS, TOKENS_PER_PARAMETER, Training

EVALUATIONS = 10  # in a run
VALIDATION_TOKENS = 1_000_000  # more hardly changes the mean loss


def train_recipe(training: Training, *, name: str, corpus: Path, run: Path, title: str) -> str:
    """Return a recipe for `triaxial train`. `corpus`: the folder of token files and tokenizer. `title`: its comment."""
    lines = [*(f"# {line}".rstrip() for line in title.splitlines()), "", "[run]", f"directory = {toml(run)}"]
    lines += ["seed = 1234", "", *_model(training), "", *_data(training, name, corpus), "", *_steps(training)]
    lines += ["", "[metrics]", 'wandb = "disabled"  # "offline" or "online" for Weights & Biases']
    return "\n".join(lines) + "\n"


def _model(training: Training) -> list[str]:
    model = training.model
    return [
        "[model]  # GPT-3's block; the shape is of gpt/model/gpt3_sizes.py",
        f"vocab_size = {model.vocab_size}  # the tokenizer's",
        f"n_ctx = {model.n_ctx}",
        f"n_layers = {model.n_layers}",
        f"d_model = {model.d_model}",
        f"n_heads = {model.n_heads}",
    ]


def _data(training: Training, name: str, corpus: Path) -> list[str]:
    corpora = "{ path = %s, name = %s }"
    return [
        "[data]",
        f"tokenizer = {toml(corpus)}",
        f"seq_len = {training.seq_len}",
        f"train = [{corpora % (toml(corpus / 'train'), toml(name))}]",
        f"validation = [{corpora % (toml(corpus / 'validation'), toml(name))}]",
    ]


def _steps(training: Training) -> list[str]:
    total = training.total_tokens
    n_steps, ratio = total // training.batch_tokens, total / training.model.parameters
    repeats = f"# The text is read {training.epochs:.1f} times. More text would help more than more tokens."
    return [
        "[batch]",
        f"micro_batch_size = {training.micro_batch_size}  # sequences at a time; halve it if memory runs out",
        f"global_batch_tokens = {training.batch_tokens:_}  # a step",
        "",
        "[optimizer]",
        f"learning_rate = {training.learning_rate:g}  # the rate of GPT-3's table for this size",
        "",
        "# Warm-up and decay follow train.total_tokens by rule; `triaxial config` shows them.",
        "",
        "[parallel]",
        f"precision = {toml(training.precision)}",
        *(["compile = true"] if training.precision == "bf16" else []),
        "",
        "[train]",
        *([repeats] if training.epochs > GOOD_EPOCHS else []),
        f"total_tokens = {total:_}  # {ratio:.1f} a parameter (Chinchilla: {TOKENS_PER_PARAMETER}), {n_steps:,} steps",
        f"evaluate_every_tokens = {_every(training, EVALUATIONS):_}",
        f"validation_tokens = {_validation_tokens(training):_}  # of each evaluation",
        f"sample_every_tokens = {_every(training, 3):_}",
    ]


def _validation_tokens(training: Training) -> int:
    """Whole sequences for each evaluation, so that all together take at most a tenth of the time of training.

    A token costs a third of what it costs in training, whose backward pass is twice the forward pass.
    """
    most = int(0.1 * 3 * training.total_tokens / EVALUATIONS)
    sequences = min(VALIDATION_TOKENS, most) // training.seq_len
    return max(1, sequences) * training.seq_len


def _every(training: Training, times: int) -> int:
    steps = training.total_tokens // training.batch_tokens
    return max(1, steps // times) * training.batch_tokens
