"""One save, from an empty hidden folder to the published checkpoint: the same steps whether training waits or not.

Every step is agreed on by all ranks: the next begins when all have done it, and when one fails all give up together.
"""

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from gpt.errors import ConfigError
from gpt.training.config import Retention
from parallel.agreement import (
    Group,
    PeerLost,
    all_gather_objects,
    rank_in,
    run_on_all_ranks,
)
from parallel.checkpoint.files import FileRecord, write_file
from parallel.checkpoint.folders import delete_old, make_hidden, publish, published_step, step_name
from parallel.checkpoint.manifest import (
    INDEX,
    MANIFEST,
    STATE,
    CheckpointManifest,
    encode_manifest,
    encode_state,
)
from parallel.checkpoint.plan import ShardPiece, WritePlan, local, make_plan, shard_header
from parallel.errors import CheckpointError

ShardBytes = Iterator[bytes | memoryview]


@dataclass(frozen=True)
class Save:
    """What is to be saved, but for the tensors' elements.

    The ranks in `plan.writers` publish one checkpoint. Node-local, that is each rank by itself, in a directory of its
    own; all publish theirs, or none does.
    """

    final: Path
    plan: WritePlan
    state: bytes
    keep: Retention

    def is_leader(self, group: Group) -> bool:
        """Whether this rank makes and publishes the folder."""
        return rank_in(group) == self.plan.writers[0]

    @property
    def size_bytes(self) -> int:
        """Of all files together, to the byte; on the leader."""
        sizes = {**self.plan.file_bytes, STATE: len(self.state)}
        files = {name: FileRecord(size, "0" * 64) for name, size in sizes.items()}
        return sum(sizes.values()) + len(encode_manifest(_manifest(self, files)))


def check_save(step: int, state: dict[str, object], keep: Retention) -> bytes:
    """The state as it is written, when step, state and retention are as they must be; else ConfigError."""
    if step < 0 or keep.last < 1:
        raise ConfigError(f"a checkpoint needs step >= 0 and keep_last >= 1, not step {step} and keep_last {keep.last}")
    return encode_state(state)


def write_checkpoint(save: Save, data: Callable[[], ShardBytes], group: Group) -> None:
    """Write, publish, and delete what is no longer kept. `data`: the bytes of this rank's pieces, in their order.

    Collective over `group`. CheckpointError on all ranks when any fails: what was published before is untouched, and
    the hidden folder is gone.
    """
    leads, writers = save.is_leader(group), save.plan.writers
    hidden: Path | None = None
    try:
        folders = run_on_all_ranks(lambda: _begin(save) if leads else None, group, path=save.final)
        hidden = folders[writers[0]]
        assert hidden is not None
        parts = run_on_all_ranks(functools.partial(_write_share, save, hidden, data), group, path=save.final)
        finish = functools.partial(_finish, save, hidden, [parts[rank] for rank in writers])
        run_on_all_ranks(lambda: finish() if leads else None, group, path=save.final)
    except PeerLost as error:
        if leads and hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)
        raise given_up(save.final, error) from error
    except ConfigError as error:
        _abandon(save, hidden if leads else None, error, group)
    if leads:
        delete_old(save.final, save.keep)


def given_up(final: Path, error: PeerLost) -> CheckpointError:
    """The error of a save in which another rank was lost."""
    return CheckpointError(final, f"the save was given up: {error}; earlier checkpoints are untouched")


def tensor_bytes(pieces: tuple[ShardPiece, ...], read: Callable[[str], torch.Tensor]) -> ShardBytes:
    """The pieces' bytes; `read` gives this rank's elements of a tensor, and one at a time is copied."""
    for piece in pieces:
        tensor = read(piece.name).cpu().contiguous()
        assert tuple(tensor.shape) == piece.shape, f"{piece.name}: {tuple(tensor.shape)}, planned {piece.shape}"
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _begin(save: Save) -> Path:
    """Clear away what dead saves left, see that there is room, and make the hidden folder."""
    hidden = make_hidden(save.final)
    try:
        if save.size_bytes > shutil.disk_usage(hidden).free:
            raise CheckpointError(save.final, "there is not enough room")  # the figures are added where this is caught
    except (OSError, CheckpointError):
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return hidden


def _write_share(save: Save, hidden: Path, data: Callable[[], ShardBytes]) -> dict[str, FileRecord]:
    """Write this rank's shard, and on rank 0 the index; the records of these files."""
    if not hidden.is_dir():
        raise ConfigError(f"{hidden} is not there: checkpoints need a directory that all ranks share")
    written = {}
    if save.plan.pieces:
        written[save.plan.file] = write_file(hidden / save.plan.file, _whole_shard(save.plan.pieces, data))
    if save.plan.index is not None:
        written[INDEX] = write_file(hidden / INDEX, [save.plan.index])
    return written


def _whole_shard(pieces: tuple[ShardPiece, ...], data: Callable[[], ShardBytes]) -> ShardBytes:
    yield shard_header(pieces)
    yield from data()


def _finish(save: Save, hidden: Path, parts: list[dict[str, FileRecord]]) -> None:
    """Write state and manifest, and publish: when all ranks have written."""
    files = {name: record for records in parts for name, record in records.items()}
    files[STATE] = write_file(hidden / STATE, [save.state])
    write_file(hidden / MANIFEST, [encode_manifest(_manifest(save, files))])
    publish(hidden, save.final)


def _manifest(save: Save, files: dict[str, FileRecord]) -> CheckpointManifest:
    step, ranks = published_step(save.final), len(save.plan.writers)
    return CheckpointManifest(step, ranks, torch.__version__, save.plan.tensor_bytes, files)


def _abandon(save: Save, hidden: Path | None, error: ConfigError, group: Group) -> NoReturn:
    """Remove the hidden folder (all ranks have stopped writing) and raise what went wrong, with the room needed."""
    if hidden is not None:
        shutil.rmtree(hidden, ignore_errors=True)
    figures = ""
    if save.is_leader(group):
        figures = f"it needs {save.plan.tensor_bytes} bytes"
        with contextlib.suppress(OSError):  # a disk that no longer answers; the others wait to hear of this rank
            existing = next(folder for folder in save.final.absolute().parents if folder.exists())
            figures += f" and {shutil.disk_usage(existing).free} bytes are free in {save.final.parent}"
    path, reason = (error.path, error.reason) if isinstance(error, CheckpointError) else (save.final, str(error))
    with contextlib.suppress(PeerLost):  # then each rank tells what it knows
        said = all_gather_objects((save.final, figures), group)
        figures = next((text for final, text in said if final == path), said[0][1])  # of the rank that failed
    raise CheckpointError(path, f"not saved: {reason}; {figures}; earlier checkpoints are untouched") from error


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: dict[str, object],
    keep: Retention,
    group: Group = None,
) -> Path:
    """Save tensors and state as `directory/step-000000123`, then delete older checkpoints that `keep` does not name.

    `tensors`: fully qualified name -> DTensor of any placement on any mesh, or plain tensor; a name that several ranks
    hold is written once, and names may differ by rank (pipeline stages). `state`: JSON object; rank 0's is written.
    A checkpoint of the same step is replaced; checkpoints of later steps are left alone. Room is needed for
    one checkpoint more than are kept.

    Collective over `group` (default: all ranks; one process needs no group): small objects are gathered, tensors are
    not sent. Blocks until the data are on disk. Raises ConfigError on all ranks for tensors or state that cannot be
    saved, CheckpointError when the disk or a rank fails: earlier checkpoints are then untouched.
    """
    final = Path(directory) / step_name(step)

    def check() -> bytes:
        encoded = check_save(step, state, keep)
        return encoded if rank_in(group) == 0 else b""  # every rank's is checked, rank 0's is kept

    encoded = run_on_all_ranks(check, group, path=final)[0]
    try:
        plan = make_plan(tensors, group, path=final)
    except PeerLost as error:
        raise given_up(final, error) from error
    read = functools.partial(_local_of, tensors)
    write_checkpoint(Save(final, plan, encoded, keep), lambda: tensor_bytes(plan.pieces, read), group)
    return final


def _local_of(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return local(tensors[name])
