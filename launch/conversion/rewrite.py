"""A run's checkpoint written anew, in few files and on request without optimizer moments; no layout needs it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from gpt.files.atomic import partial_folder
from gpt.files.safetensors import TensorSpec, digest
from launch.processes.terminal import progress_bar
from launch.runs.imported_run import HUGGING_FACE, MODEL
from launch.runs.saved_run import SavedRun
from parallel.checkpoint import find as checkpoint
from parallel.checkpoint.manifest import read_manifest, step_name
from parallel.checkpoint.stream import write_stream


def rewrite(saved: SavedRun, output: Path, *, weights_only: bool = False) -> list[str]:
    """A run directory with this one checkpoint, its pieces joined; returns what to tell the user.

    Every tensor is read back and compared bit for bit before `output` has its name. Memory: about the largest tensor.
    """
    before = read_manifest(saved.checkpoint_path)
    found = checkpoint.tensor_metadata(saved.checkpoint_path)
    # Widest elements first: pieces then lie aligned in the file.
    names = sorted(found, key=lambda name: (-found[name][1].itemsize, name))
    names = [name for name in names if name.startswith(MODEL) or not weights_only]
    expected = {name: TensorSpec(tuple(found[name][0]), found[name][1]) for name in names}
    digests: dict[str, str] = {}
    with partial_folder(output) as partial, progress_bar("writing tensors", total=len(names)) as advance:

        def noted() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in checkpoint.read_tensors(saved.checkpoint_path, names, verified=saved.verified):
                digests[name] = digest(tensor, tensor.dtype)
                yield name, tensor
                del tensor
                advance(name)

        path = partial / "checkpoints" / step_name(saved.step)
        write_stream(path, noted(), expected=expected, state=checkpoint.read_state(saved.checkpoint_path))
        for folder in ("tokenizer", HUGGING_FACE):
            if (saved.run_directory / folder).is_dir():
                shutil.copytree(saved.run_directory / folder, partial / folder)
        for file in ("config.json", "model.toml"):
            if (saved.run_directory / file).is_file():
                shutil.copyfile(saved.run_directory / file, partial / file)
        for name, tensor in checkpoint.read_tensors(path):
            if digest(tensor, tensor.dtype) != digests[name]:
                raise RuntimeError(f"{path}: '{name}' does not come back as {saved.checkpoint_path} has it")
            del tensor
        after = read_manifest(path)
    return [
        "a checkpoint loads on any layout as it is; this one is now joined, which nothing but its copying needs",
        f"{output}: step {saved.step:,}, {len(names)} of {len(found)} tensors, {before.ranks} files before, "
        f"{after.ranks} now, {after.tensor_bytes:,} bytes",
        f"verified: {len(names)} tensors bit for bit",
    ]
