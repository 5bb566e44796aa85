"""Find the tensors of a model in a folder of safetensors files, as transformers names them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from gpt.errors import ConfigError
from gpt.files.json_files import read_json_object
from gpt.files.safetensors import INDEX, MAX_HEADER_BYTES, SINGLE, TensorLocation, read_header, read_tensor

_MAX_NAME_BYTES = 255  # of a file


def read_folder(folder: Path) -> dict[str, TensorLocation]:
    """Return the tensors of a folder by name, from model.safetensors or from the files that its index lists.

    ConfigError: the folder has neither (pickles are never read), or a file or tensor listed in the index is missing.
    """
    index = folder / INDEX
    weight_map: Mapping[str, str] = {}
    files = [SINGLE]
    if index.exists():
        weight_map, files = _read_index(index)
    elif not (folder / SINGLE).exists():
        raise ConfigError(_no_weights(folder))
    found: dict[str, TensorLocation] = {}
    for file in files:
        if not (folder / file).exists():
            raise ConfigError(f"{folder / file} is missing, but {INDEX} lists it")
        for name, location in read_header(folder / file).items():
            if name in found:
                raise ConfigError(f"{folder}: '{name}' is in {found[name].file.name} and in {file}")
            found[name] = location
    for name, file in weight_map.items():
        if name not in found:
            raise ConfigError(f"{index} lists '{name}' in {file}, but it is not there")
    return found


def _read_index(index: Path) -> tuple[dict[str, str], list[str]]:
    """Return the index's map from tensor to file, and the files in order."""
    weight_map = read_json_object(index, max_bytes=MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ConfigError(f"{index} is not an index of safetensors files: it has no weight_map from tensors to files")
    files = sorted(set(weight_map.values()))
    for file in files:
        named = len(file.encode(errors="replace")) <= _MAX_NAME_BYTES and file.isprintable()
        if not named or Path(file).name != file or not file.endswith(".safetensors"):
            raise ConfigError(f"{index} lists {file[:200]!r}, which is not a safetensors file in the same folder")
    return weight_map, files


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for ending in ("bin", "pt", "pth") for path in folder.glob(f"*.{ending}"))
    if not pickles:
        return f"{folder} has no weights: it holds neither {SINGLE} nor {INDEX}"
    return (
        f"{folder} holds weights only as {pickles[0]}, a pickle, which can run code and is never loaded. Download the "
        f"model's .safetensors files, or convert the pickle on a machine that you trust: python -c \"from transformers "
        f"import AutoModelForCausalLM as A; A.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\""
    )


def read_model(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Read every tensor of a folder, one at a time."""
    for name, location in read_folder(folder).items():
        yield name, read_tensor(location)
