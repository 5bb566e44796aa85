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
from typing import Any

from torch import Tensor

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


class DamagedRollouts(ConfigError):
    """Rollouts are missing or differ from what was written."""


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
        folder.parent.mkdir(exist_ok=True)  # not its parent: a deleted run directory stays deleted
        folder.mkdir(exist_ok=True)
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

    Reads the whole part: a damaged one counts as missing.
    """
    path = _part(folder, first)
    record = _record_of(path, n=n, version=version, sampled_by=sampled_by)
    with suppress(ConfigError, FileNotFoundError):
        return record is not None and _digest(path) == record["sha256"]
    return False


def _record_of(path: Path, *, n: int, version: int, sampled_by: str) -> dict[str, Any] | None:
    """The record of a part, if it is one of n episodes by these weights and settings."""
    with suppress(ConfigError, FileNotFoundError):
        record: dict[str, Any] = read_checked_json(path.with_suffix(".json"), _RULES, max_bytes=1 << 16)
        found = (record["episodes"], record["version"], record["sampled_by"])
        if found == (n, version, sampled_by) and _part(path.parent, record["first"]) == path:
            return record
    return None


def read_rollouts(folder: Path, first: int, n: int, *, temperature: float) -> Episodes:
    """Episodes `first` to `first + n` from the parts that hold them.

    ConfigError: one is missing, damaged or from another run.
    """
    try:
        found = [
            part.rows(max(0, first - start), first + n - start)
            for start, part in _parts(folder, temperature=temperature, first=first, stop=first + n)
        ]
    except OSError as error:
        raise file_error(error, f"{folder} cannot be read: {error}") from error
    numbers = [number for part in found for number in part.numbers.tolist()]
    if numbers != list(range(first, first + n)):
        raise DamagedRollouts(
            f"{folder} holds {len(set(numbers))} of the {n} episodes from {first:,} on. Remove it to sample them again"
        )
    return join(found)


def discard_other_parts(folder: Path, *, n: int, version: int, sampled_by: str) -> None:
    """Delete the rollouts of an iteration unless all are parts of n episodes by these weights and settings.

    One process calls it.
    """
    for path in folder.glob("episodes-*.json"):
        if _record_of(path.with_suffix(".safetensors"), n=n, version=version, sampled_by=sampled_by) is None:
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise file_error(error, f"{folder} could not be removed: {error}") from error
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


def _read_part(path: Path, record: dict[str, Any]) -> Episodes:
    if _digest(path) != record["sha256"]:
        raise DamagedRollouts(f"{path} is damaged: its bytes differ from its checksum. A restart samples them again")
    tensors = {name: read_tensor(location) for name, location in read_header(path).items()}
    if not _are_episodes(tensors, n=record["episodes"]):
        raise ConfigError(f"{path} holds other tensors than rollouts. Remove the folder to sample again")
    return Episodes(version=record["version"], **tensors)


def _are_episodes(tensors: dict[str, Tensor], *, n: int) -> bool:
    """Whether tensors are n episodes: types, shapes, and lengths that fit into the rows."""
    if {name: tensor.dtype for name, tensor in tensors.items()} != COLUMNS:
        return False
    rows = tensors["tokens"].shape
    shapes = {name: rows if name in ("tokens", "log_probs") else (n,) for name in COLUMNS}
    if len(rows) != 2 or rows[0] != n or any(tensors[name].shape != shape for name, shape in shapes.items()):
        return False
    prompt, total = tensors["prompt_tokens"], tensors["total_tokens"]
    fits = (prompt >= 1) & (prompt < total) & (total <= rows[1])
    return bool(fits.all()) and bool((tensors["tokens"] >= 0).all())


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _part(folder: Path, first: int) -> Path:
    return folder / f"episodes-{first:012d}.safetensors"
