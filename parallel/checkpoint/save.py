"""Save a checkpoint: write a hidden folder, then publish it. Background saves take the same steps.

The ranks agree on every step: the next step starts once all ranks have done this one. If one rank fails, all give up
the save. Every file is fsynced; the manifest is written last, then the folder is renamed. Only one run at a time may
write to a directory.
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
    combine,
    gather_scatter,
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
from parallel.checkpoint.private import make_private
from parallel.errors import CheckpointError, NoRoomForCheckpoints

ShardBytes = Iterator[bytes | memoryview]


@dataclass(frozen=True)
class Save:
    """One save, without the tensors' elements.

    The ranks in `plan.writers` publish one checkpoint. Node-local, each rank is its own only writer, in its own
    directory, which is then made for this user only, below `private_below`; either all ranks publish, or none does.
    """

    final: Path
    plan: WritePlan
    state: bytes
    keep: Retention
    private_below: Path | None = None

    def is_leader(self, group: Group) -> bool:
        """Return whether this rank makes and publishes the folder."""
        return rank_in(group) == self.plan.writers[0]

    @property
    def size_bytes(self) -> int:
        """Exact size of all files together; valid on the leader."""
        sizes = {**self.plan.file_bytes, STATE: len(self.state)}
        files = {name: FileRecord(size, "0" * 64) for name, size in sizes.items()}
        return sum(sizes.values()) + len(encode_manifest(_manifest(self, files)))


def check_save(step: int, state: dict[str, object], keep: Retention) -> bytes:
    """The state as it is written. ConfigError if step, state or retention is invalid."""
    if step < 0 or keep.last < 1:
        raise ConfigError(f"a checkpoint needs step >= 0 and keep_last >= 1, not step {step} and keep_last {keep.last}")
    return encode_state(state)


def write_checkpoint(save: Save, data: Callable[[], ShardBytes], group: Group) -> None:
    """Write and publish a checkpoint, and delete those no longer kept. `data` yields the bytes of this rank's pieces.

    Collective over `group`. CheckpointError on all ranks when any fails: earlier checkpoints are then untouched, and
    the hidden folder is deleted.
    """
    is_leader = save.is_leader(group)
    hidden: Path | None = None

    def begin() -> Path | None:
        nonlocal hidden
        hidden = _begin(save) if is_leader else None
        return hidden

    try:
        shared = run_on_all_ranks(begin, group, path=save.final)
        folder = hidden or shared
        assert folder is not None
        parts = _write_shares(save, functools.partial(_write_share, save, folder, data), group)
        run_on_all_ranks(lambda: _finish(save, folder, parts) if is_leader else None, group, path=save.final)
    except PeerLost as error:
        if is_leader and hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)
        raise save_given_up(save.final, error) from error
    except ConfigError as error:
        _abandon(save, hidden if is_leader else None, error, group)
    if is_leader:
        delete_old(save.final, save.keep)


def save_given_up(final: Path, error: PeerLost) -> CheckpointError:
    """The error of a save in which another rank was lost."""
    return CheckpointError(final, f"the save was given up: {error}; earlier checkpoints are untouched")


def tensor_bytes(pieces: tuple[ShardPiece, ...], read: Callable[[str], torch.Tensor]) -> ShardBytes:
    """The bytes of the pieces. `read` returns this rank's elements of a tensor. One tensor at a time is copied."""
    for piece in pieces:
        tensor = read(piece.name).cpu().contiguous()
        assert tuple(tensor.shape) == piece.shape, f"{piece.name}: {tuple(tensor.shape)}, planned {piece.shape}"
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _begin(save: Save) -> Path:
    """Delete the remains of dead saves, check the free space, and make the hidden folder."""
    if save.private_below is not None:  # at each save: somebody may have emptied the disk
        make_private(save.final.parent, below=save.private_below)
    hidden = make_hidden(save.final)
    try:
        if save.size_bytes > shutil.disk_usage(hidden).free:
            raise NoRoomForCheckpoints(save.final, "there is not enough room")  # `_abandon` adds the numbers
    except (OSError, CheckpointError):
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return hidden


def _write_shares(save: Save, write: Callable[[], dict[str, FileRecord]], group: Group) -> list[dict[str, FileRecord]]:
    """Write this rank's files; on the leader, return the records of all ranks that write into its folder."""
    if len(save.plan.writers) > 1:  # then rank 0 leads
        return gather_scatter(write, lambda parts: [parts, *([] for _ in parts[1:])], group, path=save.final)
    mine: list[dict[str, FileRecord]] = []
    run_on_all_ranks(lambda: mine.append(write()), group, path=save.final)
    return mine


def _write_share(save: Save, hidden: Path, data: Callable[[], ShardBytes]) -> dict[str, FileRecord]:
    """Write this rank's shard, and on the leader the index; return the records of these files."""
    if not hidden.is_dir():
        raise ConfigError(f"{hidden} does not exist on this rank: checkpoints need a directory that all ranks share")
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
    """Write state and manifest, and publish. All ranks have written their files."""
    files = {name: record for records in parts for name, record in records.items()}
    files[STATE] = write_file(hidden / STATE, [save.state])
    write_file(hidden / MANIFEST, [encode_manifest(_manifest(save, files))])
    publish(hidden, save.final)


def _manifest(save: Save, files: dict[str, FileRecord]) -> CheckpointManifest:
    step, ranks = published_step(save.final), len(save.plan.writers)
    return CheckpointManifest(step, ranks, torch.__version__, save.plan.tensor_bytes, files)


def _abandon(save: Save, hidden: Path | None, error: ConfigError, group: Group) -> NoReturn:
    """Delete the hidden folder, as all ranks have stopped writing, and raise the error with needed and free bytes."""
    if hidden is not None:
        shutil.rmtree(hidden, ignore_errors=True)
    figures = ""
    if save.is_leader(group):
        figures = f"it needs {save.plan.tensor_bytes} bytes"
        with contextlib.suppress(OSError):  # the disk may not answer, and the others wait for this rank
            existing = next(folder for folder in save.final.absolute().parents if folder.exists())
            figures += f" and {shutil.disk_usage(existing).free} bytes are free in {save.final.parent}"
    path, reason = (error.path, error.reason) if isinstance(error, CheckpointError) else (save.final, str(error))
    with contextlib.suppress(PeerLost):  # then each rank reports its own numbers
        figures = combine(  # of the rank that failed
            (save.final, figures),
            lambda everyone: next((text for final, text in everyone if final == path), everyone[0][1]),
            group,
        )
    kind = type(error) if isinstance(error, CheckpointError) else CheckpointError
    raise kind(path, f"not saved: {reason}; {figures}; earlier checkpoints are untouched") from error


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: dict[str, object],
    keep: Retention,
    group: Group = None,
) -> Path:
    """Save tensors and state as `directory/step-000000123`, then delete older checkpoints that `keep` does not keep.

    `tensors`: fully qualified name -> DTensor of any placement on any mesh, or plain tensor. A name on several ranks is
    written once. Names may differ by rank (pipeline stages). `state`: a JSON object; rank 0's is written. A checkpoint
    of the same step is replaced; checkpoints of later steps stay. The disk needs space for one checkpoint more than
    are kept.

    Collective over `group` (default: all ranks; one process needs no group): small objects are gathered, tensors are
    not sent. Blocks until the data are on disk. ConfigError on all ranks for tensors or state that cannot be saved;
    CheckpointError when the disk or a rank fails: earlier checkpoints are then untouched.
    """
    final = Path(directory) / step_name(step)

    def check() -> bytes:
        encoded = check_save(step, state, keep)
        return encoded if rank_in(group) == 0 else b""  # every rank checks its own state; only rank 0's is written

    encoded = run_on_all_ranks(check, group, path=final)
    try:
        plan = make_plan(tensors, group, path=final)
    except PeerLost as error:
        raise save_given_up(final, error) from error
    read = functools.partial(_local_of, tensors)
    write_checkpoint(Save(final, plan, encoded, keep), lambda: tensor_bytes(plan.pieces, read), group)
    return final


def _local_of(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return local(tensors[name])
