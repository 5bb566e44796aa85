"""Write a run's checkpoint again, in few files and on request without optimizer moments.

No layout needs this: a checkpoint loads on any layout as it is. Joined files are easier to copy.
"""

from pathlib import Path

from gpt.convert.round_trip import round_trip
from gpt.files.atomic import partial_folder
from gpt.files.regular import copy_file
from launch.conversion.sources import checkpoint_source, copy_folders
from launch.processes.terminal import tensor_progress
from launch.runs.saved_run import SavedRun
from parallel.checkpoint.folders import step_name
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.manifest import read_manifest
from parallel.checkpoint.stream import write_stream


def rewrite(saved: SavedRun, output: Path, *, weights_only: bool = False) -> list[str]:
    """Make a run directory with this one checkpoint in few files; return lines for the user.

    Every tensor is read back and compared bit for bit before `output` gets its name. Memory: about the largest tensor.
    ConfigError: the output exists, or the disk is full.
    """
    before, n_before = saved.checkpoint.manifest, len(saved.checkpoint.index)
    source = checkpoint_source(saved, weights_only=weights_only)
    with partial_folder(output) as partial, tensor_progress("writing tensors", total=len(source.specs)) as advance:
        path = partial / "checkpoints" / step_name(saved.step)
        round_trip(
            source,
            lambda tensors: write_stream(path, tensors, expected=source.specs, state=saved.checkpoint.state),
            lambda: read_tensors(verify_checkpoint(path)),
            progress=advance,
        )
        copy_folders(saved.run_directory, partial)
        for file in ("config.json", "model.toml"):
            if (saved.run_directory / file).is_file():
                copy_file(saved.run_directory / file, partial / file)
        after = read_manifest(path)
    return [
        "a checkpoint loads on any layout as it is; this one is now joined, which only makes it easier to copy",
        f"{output}: step {saved.step:,}, {len(source.specs)} of {n_before} tensors, {before.ranks} files before, "
        f"{after.ranks} now, {after.tensor_bytes:,} bytes",
        f"verified: {len(source.specs)} tensors bit for bit",
    ]
