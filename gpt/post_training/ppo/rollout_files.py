"""Rollouts as files: published whole, named by their episodes, and read back by any layout.

RUN/rollouts/step-000000004/episodes-000001536.safetensors   the tensors of `Episodes`
RUN/rollouts/step-000000004/episodes-000001536.json          written last: the part counts once it is there
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gpt.errors import ConfigError, file_error
from gpt.files.atomic import open_replacement
from gpt.files.json_rules import Fields, Finite, Text, Whole, read_checked_json
from gpt.files.regular import open_regular
from gpt.files.safetensors import TensorSpec, encode_file, read_header, read_tensor
from gpt.post_training.ppo.episodes import COLUMNS, Episodes, join

_RULES = Fields(
    {
        "first": Whole(),
        "episodes": Whole(1),
        "version": Whole(),
        "sampled_by": Text(64),
        "temperature": Finite(0),
        "sha256": Text(64),
    }
)


def step_folder(directory: Path, step: int) -> Path:
    """The folder of the rollouts of an iteration, counted from 1."""
    return directory / f"step-{step:09d}"


def write_part(folder: Path, episodes: Episodes, *, temperature: float, sampled_by: str) -> None:
    """Publish a part: consecutive episodes. `sampled_by`: see PPOSetup. ConfigError: the disk refuses."""
    first = int(episodes.numbers[0])
    path = _part(folder, first)
    specs = {name: TensorSpec(tuple(getattr(episodes, name).shape), dtype) for name, dtype in COLUMNS.items()}
    sha256 = hashlib.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_replacement(path, durable=True) as file:
            for block in encode_file(specs, ((name, getattr(episodes, name)) for name in COLUMNS)):
                sha256.update(block)
                file.write(block)
        record = {
            "first": first,
            "episodes": len(episodes),
            "version": episodes.version,
            "sampled_by": sampled_by,
            "temperature": temperature,
            "sha256": sha256.hexdigest(),
        }
        with open_replacement(path.with_suffix(".json"), durable=True) as file:
            file.write(json.dumps(record).encode() + b"\n")
    except OSError as error:
        raise file_error(error, f"{path} could not be written: {error}") from error


def has_part(folder: Path, first: int, *, n: int, version: int, sampled_by: str) -> bool:
    """Whether a whole part of these n episodes is there, written by weights of this version with the same settings.

    Reads its record alone.
    """
    with suppress(ConfigError, FileNotFoundError):
        record = read_checked_json(_part(folder, first).with_suffix(".json"), _RULES, max_bytes=1 << 16)
        found = (record["first"], record["episodes"], record["version"], record["sampled_by"])
        return found == (first, n, version, sampled_by)
    return False


def read_rollouts(folder: Path, first: int, n: int, *, temperature: float) -> Episodes:
    """Episodes `first` to `first + n` from the parts that hold them. ConfigError: one is missing, damaged or other."""
    found = [
        part.rows(max(0, first - start), first + n - start)
        for start, part in _parts(folder, temperature=temperature, first=first, stop=first + n)
    ]
    numbers = [number for part in found for number in part.numbers.tolist()]
    if numbers != list(range(first, first + n)):
        raise ConfigError(
            f"{folder} holds {len(set(numbers))} of the {n} episodes from {first:,} on. Remove it to sample them again"
        )
    return join(found)


def discard_other_parts(folder: Path, *, n: int, version: int, sampled_by: str) -> None:
    """Delete the rollouts of an iteration unless all are parts of n episodes by these weights and settings.

    One process calls it.
    """
    for path in folder.glob("episodes-*.json"):
        first = int(path.stem.removeprefix("episodes-"))
        if not has_part(folder, first, n=n, version=version, sampled_by=sampled_by):
            shutil.rmtree(folder)
            return


def discard_rollouts(directory: Path, *, before: int | None = None, after: int | None = None) -> None:
    """Delete the rollouts of iterations before or after these. One process calls it."""
    for folder in sorted(directory.glob("step-*")):
        with suppress(ValueError):
            step = int(folder.name.removeprefix("step-"))
            if (before is not None and step < before) or (after is not None and step > after):
                shutil.rmtree(folder, ignore_errors=True)


def _parts(folder: Path, *, temperature: float, first: int, stop: int) -> Iterator[tuple[int, Episodes]]:
    """The parts that overlap these episodes, in order, each with the number of its first one."""
    for path in sorted(folder.glob("episodes-*.json")):
        record = read_checked_json(path, _RULES, max_bytes=1 << 16)
        if record["first"] >= stop or record["first"] + record["episodes"] <= first:
            continue
        if record["temperature"] != temperature:
            raise ConfigError(
                f"objective.temperature = {temperature} is invalid: {path} was sampled at {record['temperature']}, and "
                f"log-probabilities need the same one. Use objective.temperature = {record['temperature']}"
            )
        yield record["first"], _read_part(path.with_suffix(".safetensors"), record)


def _read_part(path: Path, record: dict[str, object]) -> Episodes:
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if digest != record["sha256"]:
        raise ConfigError(f"{path} is damaged: its bytes differ from its checksum. Remove the folder to sample again")
    tensors = {name: read_tensor(location) for name, location in read_header(path).items()}
    if {name: tensor.dtype for name, tensor in tensors.items()} != COLUMNS:
        raise ConfigError(f"{path} holds other tensors than rollouts. Remove the folder to sample again")
    version = record["version"]
    assert isinstance(version, int)
    return Episodes(version=version, **tensors)


def _part(folder: Path, first: int) -> Path:
    return folder / f"episodes-{first:012d}.safetensors"
