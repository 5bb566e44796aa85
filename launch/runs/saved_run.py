"""Open a checkpoint of a training run, whatever layout it was trained on.

runs/demo/checkpoints/step-000000123/   the weights, and in state.json the configuration of the run
runs/demo/tokenizer/                    the run's own copy of its tokenizer
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpt.adapters.config import adapter_of, adapter_shapes, is_adapter
from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.files.json_rules import Fields, Whole, read_checked_json
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.heads import VocabularyHead
from gpt.model.parameter_shapes import check_layer_count, parameter_shapes
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer
from gpt.training.config import ObjectiveConfig
from gpt.training.validation import Best
from launch.config.objectives import DEFAULT, OBJECTIVES
from launch.config.recipe import build, without_none
from launch.config.run_arguments import BEST, DTYPE_NAMES, find_checkpoint_folder
from parallel.adapters.base import with_bases
from parallel.adapters.merge import read_merged
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.folders import list_checkpoints, list_unusable, step_of
from parallel.checkpoint.handle import Checkpoint, verify_checkpoint

T = TypeVar("T")

CHOSEN = "chosen.json"  # in a run directory: the step that `triaxial choose` chose
_MODEL = "model."  # prefix of the names of weights in a checkpoint
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a run, with configuration and tokenizer. The weights stay on disk until `weights` reads them."""

    run_directory: Path
    checkpoint: Checkpoint
    chain: tuple[Checkpoint, ...]  # the checkpoint, and the base model of one that holds adapters alone
    config: dict[str, Any]  # the whole resolved configuration
    model_config: ModelConfig
    data_config: DataConfig
    tokenizer: Tokenizer
    tokenizer_file: Path
    step: int
    tokens_seen: int
    notes: tuple[str, ...]  # for the user, such as newer checkpoints that are damaged

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Read the model's (name, tensor) pairs, one at a time, to the CPU, in the dtype in which they were saved.

        Adapters are merged into the weights, which then come in fp32.
        """
        names = [_MODEL + name for name in parameter_shapes(self.model_config)]
        for name, tensor in read_merged(self.chain, names):
            yield name.removeprefix(_MODEL), tensor
            del tensor


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint's model on one device, ready to use, and its run."""

    model: GPT
    saved: SavedRun


def load_run(
    path: Path,
    *,
    step: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedRun:
    """Load the model of a run's newest whole checkpoint, of checkpoint `step`, or of a checkpoint folder. One process.

    Memory: the model, and one more tensor. ConfigError as for `open_run`.
    """
    saved = open_run(path, step=step)
    with torch.device("meta"):
        model = GPT(saved.model_config)
    model.to(dtype).to_empty(device=device)
    model.tie()  # the allocation made two tensors of a tied weight
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in saved.weights():
            parameters[name].copy_(tensor)
    return LoadedRun(model.eval().requires_grad_(False), saved)


def open_run(path: Path, *, step: int | None = None) -> SavedRun:
    """Find and verify a checkpoint, and read everything except its weights. Collective over all ranks.

    ConfigError: there is no checkpoint or no such step, it is damaged, its weights do not match the model in its own
    configuration, or the tokenizer is missing or does not fit.
    """
    run_directory, checkpoint, notes = find_checkpoint(Path(path), step)
    state = checkpoint.state
    config = state.get("config")
    if config is None:
        raise ConfigError(
            f"{checkpoint.path}: its state contains no configuration, so `triaxial train` did not save it"
        )
    model_config = model_section(config)
    data_config = section(DataConfig, config, "data")
    _check_predicts_tokens(run_directory, config)
    chain = with_bases(checkpoint)
    _check_weights(chain, model_config)
    tokenizer_path = tokenizer_file(run_directory, data_config)
    tokenizer = load_tokenizer(tokenizer_path)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise ConfigError(
            f"{tokenizer_path} has {tokenizer.vocab_size} pieces, but the model of {checkpoint.path} only "
            f"model.vocab_size = {model_config.vocab_size}. It was trained with another tokenizer."
        )
    return SavedRun(
        run_directory=run_directory,
        checkpoint=checkpoint,
        chain=tuple(chain),
        config=config,
        model_config=model_config,
        data_config=data_config,
        tokenizer=tokenizer,
        tokenizer_file=tokenizer_path,
        step=state.get("step", 0),
        tokens_seen=state.get("tokens_seen", 0),
        notes=tuple(notes),
    )


def find_checkpoint(path: Path, step: int | None) -> tuple[Path, Checkpoint, list[str]]:
    """The run directory, the verified checkpoint, and notes, for a path to either. Collective over all ranks.

    `step`: None for the newest, BEST for the best by `checkpoint.keep_best`.
    """
    folder, one = find_checkpoint_folder(path)
    if step == BEST:
        step = best_step(path, one)
    if one is not None:
        if step is not None:
            raise ConfigError(f"--step {step}: {path} is itself a checkpoint. Give its run directory, or no --step.")
        return folder.parent if folder.name == "checkpoints" else folder, verify_checkpoint(path), []
    if step is None:
        found, skipped = find_latest(folder)
        notes = [f"skipped the checkpoint {bad}: {reason}" for bad, reason in skipped]
        if found is None:
            raise ConfigError("; ".join([f"{folder} contains no whole checkpoint", *notes]))
        return path, found, notes
    available = list_checkpoints(folder)
    by_step = {step_of(candidate.name): candidate for candidate in reversed(available)}
    if step in by_step:
        return path, verify_checkpoint(by_step[step]), []
    for unusable, reason in list_unusable(folder):
        if step_of(unusable.name) == step:
            raise ConfigError(f"--step {step}: {unusable} cannot be used: {reason}")
    steps = ", ".join(map(str, by_step)) or "none"
    raise ConfigError(f"--step {step}: {folder} has no checkpoint of this step. There are: {steps}")


def best_step(path: Path, one: Path | None) -> int:
    """The step of the best checkpoint of a run: that of CHOSEN, else as its newest one records it. Collective."""
    if one is None and (path / CHOSEN).is_file():
        return int(read_checked_json(path / CHOSEN, Fields({"step": Whole()}), max_bytes=1 << 20)["step"])
    best = find_checkpoint(path, None)[1].state.get("loop", {}).get("best")
    if one is not None or not isinstance(best, dict):
        raise ConfigError(
            f"--step best is invalid: {path} is not the directory of a run that evaluated with checkpoint.keep_best "
            f"or that `triaxial choose` has read. Use --step N"
        )
    return Best.from_json(best).step


def device_of(name: str, *, local_rank: int | None = None) -> torch.device:
    """The device of `--device`. With several processes on a machine, each uses the GPU of its local rank."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name} is not a device. Use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and local_rank is not None:
        if device.index is not None:
            raise ConfigError(
                f"--device {name} is invalid with several processes: each needs its own GPU. Use --device cuda."
            )
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices here"
            + (f", and local rank {local_rank} needs one of its own" if local_rank else "")
            + ". Use --device cpu."
        )
    return device


def model_section(config: dict[str, Any]) -> ModelConfig:
    """The model configuration in a checkpoint's configuration."""
    return section(ModelConfig, config, "model")


def objective_section(config: dict[str, Any]) -> ObjectiveConfig:
    """The [objective] section of a checkpoint's configuration, or that of checkpoints from before there was one."""
    kind = config.get("objective", {}).get("kind", DEFAULT)
    if kind not in OBJECTIVES:
        raise ConfigError(f"objective.kind = '{kind}' in the checkpoint is not one that this version knows")
    found: ObjectiveConfig = section(OBJECTIVES[kind], {"objective": {}, **config}, "objective")
    return found


def section(cls: type[T], config: dict[str, Any], name: str) -> T:
    """One section of a checkpoint's configuration. ConfigError: it is missing or invalid."""
    table = config.get(name)
    if not isinstance(table, dict):
        raise ConfigError(f"the configuration in the checkpoint has no section [{name}]")
    return build(cls, without_none(table), where=name)


def _check_predicts_tokens(run_directory: Path, config: dict[str, Any]) -> None:
    """ConfigError for a run whose model is no language model, such as a reward model."""
    if config.get("objective", {}).get("kind", DEFAULT) not in OBJECTIVES:
        return  # the names of its weights will tell
    objective = objective_section(config)
    with torch.device("meta"):
        if isinstance(objective.build(z_loss=0.0).head(model_section(config)), VocabularyHead):
            return
    raise ConfigError(
        f"{run_directory} is invalid here: its model predicts no tokens (objective.kind = '{objective.kind}'). Give "
        f"the run of a language model"
    )


def _check_weights(chain: list[Checkpoint], config: ModelConfig) -> None:
    """Compare names and shapes with the configuration, before anything large is read."""
    checkpoint, found = chain[0], dict[str, tuple[int, ...]]()
    for each in reversed(chain):
        found = {name: shape for name, shape in found.items() if not is_adapter(name)}  # merged into its own model
        weights = ((name, stored.shape) for name, stored in each.index.items() if name.startswith(_MODEL))
        found |= {name.removeprefix(_MODEL): shape for name, shape in weights}
    check_layer_count(config, len(found), where=f"the configuration in {checkpoint.path}")
    expected = parameter_shapes(config) | adapter_shapes(config, adapter_of(checkpoint.state))
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            shapes = [list(s) if s is not None else "absent" for s in (found.get(name), expected.get(name))]
            raise ConfigError(
                f"{checkpoint.path}: the tensor '{_MODEL}{name}' is {shapes[0]}, but {shapes[1]} in the model of the "
                "checkpoint's own configuration. It is a checkpoint of another model."
            )


def tokenizer_file(run_directory: Path, data: DataConfig) -> Path:
    """A run's tokenizer: its own copy, or the recipe's path, which may be the folder of a corpus."""
    original, copies = Path(data.tokenizer), run_directory / "tokenizer"
    if (copies / original.name).is_file():
        return copies / original.name
    return copies if any(copies.glob("[!.]*")) else original
