"""Export the adapters of a run as PEFT's files, and make a run of such files and a base run."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from gpt.adapters.config import adapter_of, adapter_shapes
from gpt.convert.hugging_face.peft import CONFIG, WEIGHTS, read_peft, write_peft
from gpt.convert.round_trip import compare
from gpt.errors import ConfigError
from gpt.files.atomic import partial_folder
from gpt.files.safetensors import TensorSpec, digest
from gpt.model.parameter_shapes import parameter_shapes
from launch.conversion.sources import verified_weights
from launch.runs.imported_run import IMPORTED, read_weights, write_run
from launch.runs.saved_run import SavedRun


def export_adapter(saved: SavedRun, output: Path, *, base: str | None) -> list[str]:
    """Write PEFT's two files to `output`; return lines for the user. Memory: all adapters.

    `base`: the base model's name or path for PEFT. ConfigError: the run has no adapters, or trains more than these.
    """
    adapter = adapter_of(saved.checkpoint.state)
    if adapter is None:
        raise ConfigError(f"{saved.checkpoint.path} has no adapters: its recipe has no section [adapter]. Use --to hf")
    if adapter.also_train:
        raise ConfigError(
            f"--to peft is invalid with adapter.also_train = {list(adapter.also_train)}: PEFT's files hold adapters "
            "only. Use --to hf, which merges everything"
        )
    names = list(adapter_shapes(saved.model_config, adapter))
    with partial_folder(output) as folder:
        tensors = dict(read_weights(saved.checkpoint, names))
        count = write_peft(folder, saved.model_config, adapter, tensors, base=base)
    size_bytes = (output / WEIGHTS).stat().st_size
    return [
        f"{output}: {CONFIG} and {WEIGHTS}, {size_bytes:,} bytes, adapters of rank {adapter.rank}, step {saved.step:,}",
        f"verified: {count} tensors bit for bit",
    ]


def import_adapter(folder: Path, base: SavedRun, output: Path) -> list[str]:
    """Make a run directory of a base run's weights and the adapters in `folder`; return lines for the user.

    Adapters of the base run itself are merged into its weights. Memory: about the largest tensor, and all adapters.
    """
    config = base.model_config
    adapter, pairs = read_peft(folder, config)
    found = dict(pairs)
    adapters = {name: found[name] for name in adapter_shapes(config, adapter)}
    about: dict[str, object] = {"from": str(folder), "format": "PEFT", "base": str(base.checkpoint.path)}
    if dtype := base.checkpoint.state.get(IMPORTED, {}).get("dtype"):
        about["dtype"] = dtype
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in adapters.items()}
    digests = {name: digest(tensor, tensor.dtype) for name, tensor in adapters.items()}
    with partial_folder(output) as partial:
        path = write_run(
            partial,
            _tensors(base, adapters),
            config=config,
            tokenizer_file=base.tokenizer_file,
            about=about,
            order=parameter_shapes(config),
            adapter=adapter,
        )
        compare(specs, digests, verified_weights(path, adapters))
    return [
        f"{output}: {base.checkpoint.path} with {len(adapters) // 2} adapters of rank {adapter.rank}",
        f"verified: {len(adapters)} tensors bit for bit",
    ]


def _tensors(base: SavedRun, adapters: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield from base.weights()
    yield from adapters.items()
