"""Find the newest checkpoint of a directory that is whole, and delete those after a step. For all ranks together."""

from pathlib import Path

from parallel.agreement import Group, rank_in, run_on_all_ranks
from parallel.checkpoint.folders import delete_after, list_checkpoints, list_unusable, published_step
from parallel.checkpoint.handle import Checkpoint, verify_checkpoint
from parallel.errors import CheckpointError, CheckpointFault

_IF_IT_PERSISTS = "If the disk goes on refusing it, move it away; an older one is then used"


def find_latest(
    directory: Path, *, at_most: int | None = None, newer_than: int = -1, group: Group = None
) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """The newest whole checkpoint of a step up to `at_most` and above `newer_than`; newer ones that are damaged, or are
    links or files, each with the reason.

    Collective over `group`: each rank reads a share of every candidate's files, and all ranks get the same answer.
    CheckpointFault on all ranks: the disk cannot read a checkpoint newer than the whole ones; this may pass.
    """
    directory = Path(directory)
    skipped: list[tuple[Path, str]] = []

    def candidates() -> list[tuple[Path, str | None]]:
        unusable = list_unusable(directory, at_most=at_most)
        return [*unusable, *((path, None) for path in list_checkpoints(directory, at_most=at_most))]

    found = run_on_all_ranks(candidates, group, path=directory)
    for path, reason in sorted(found, key=lambda one: published_step(one[0]), reverse=True):
        if published_step(path) <= newer_than:
            break
        if reason is not None:
            skipped.append((path, reason))
            continue
        try:
            return verify_checkpoint(path, group=group), skipped
        except CheckpointFault as fault:  # an older one would lose steps because of a temporary fault
            raise CheckpointFault(path, f"{fault.reason}. {_IF_IT_PERSISTS}") from fault
        except CheckpointError as error:
            skipped.append((path, error.reason))
    return None, skipped


def discard_after(directory: Path, *, step: int, group: Group = None) -> None:
    """Delete the checkpoints of later steps, for a run that resumes from `step`. Collective over `group`."""
    directory = Path(directory)
    run_on_all_ranks(lambda: delete_after(directory, step) if rank_in(group) == 0 else None, group, path=directory)
