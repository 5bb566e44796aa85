"""The base model of checkpoints that hold adapters alone: found by its path, recognised by its digest.

With `adapter.save_base = false`, state.json names the base run's checkpoint and the SHA-256 of its manifest, which has
the digests of all its files.
"""

import os
from pathlib import Path

from gpt.adapters.config import BASE
from gpt.errors import ConfigError
from parallel.checkpoint.handle import Checkpoint, verify_checkpoint
from parallel.checkpoint.manifest import MANIFEST, manifest_digest


def reference_to(base: Checkpoint, run_directory: Path) -> dict[str, str]:
    """What the state of a checkpoint in `run_directory` says of its base: path, path from there, and digest."""
    path = base.path.absolute()
    return {
        "path": str(path),
        "from_run": os.path.relpath(path, run_directory.absolute()),
        "manifest_sha256": manifest_digest(base.manifest),
    }


def with_bases(checkpoint: Checkpoint) -> list[Checkpoint]:
    """The checkpoint, its base if it holds adapters alone, the base's own, and so on, all verified.

    Collective over all ranks. ConfigError: a base is missing or is another one. CheckpointError: it is damaged.
    """
    chain = [checkpoint]
    while (reference := chain[-1].state.get(BASE)) is not None:
        chain.append(_base_of(chain[-1], reference))
    return chain


def _base_of(checkpoint: Checkpoint, reference: dict[str, str]) -> Checkpoint:
    run_directory = checkpoint.path.absolute().parent.parent
    paths = list(
        dict.fromkeys([Path(reference["path"]), Path(os.path.normpath(run_directory / reference["from_run"]))])
    )
    for path in paths:
        if (path / MANIFEST).is_file():
            base = verify_checkpoint(path)
            if manifest_digest(base.manifest) == reference["manifest_sha256"]:
                return base
    raise ConfigError(
        f"{checkpoint.path} holds adapters alone, and their base model is no more at {' or '.join(map(str, paths))}: "
        "put this checkpoint back there"
    )
