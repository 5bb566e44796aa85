"""What a checkpoint folder holds: names, manifest, tensor index, digests; never talks to other ranks, never unpickles.

step-000000123/
    shard-00000.safetensors   the pieces of tensors that rank 0 wrote
    tensors.json              for each tensor its shape, dtype, and which piece of it lies in which shard
    state.json                the caller's state
    MANIFEST.json             step, sizes and SHA-256 of the files above, and a digest of itself
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gpt.errors import ConfigError
from parallel.errors import CheckpointError

FORMAT = "triaxial checkpoint"


FORMAT_VERSION = 1


MANIFEST = "MANIFEST.json"


INDEX = "tensors.json"


STATE = "state.json"


DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


# The only names a manifest may list: no folder, no `..`, nothing that another program would run or unpickle.
_FILE_NAME = re.compile(r"shard-\d{5,}\.safetensors|tensors\.json|state\.json")


_STEP_NAME = re.compile(r"step-(\d{9,})")


_MANIFEST_LIMIT_BYTES = 64 * 2**20  # a line of about 120 bytes a file: room for 500,000 files


@dataclass(frozen=True)
class FileRecord:
    """Size and digest of one file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """MANIFEST.json: what was saved and how its files must look."""

    step: int
    ranks: int
    torch_version: str
    tensor_bytes: int
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Chunk:
    """One saved box of a tensor: `shape` elements from `offsets` on, stored in `file` under the tensor's name."""

    file: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as saved: global shape, and the chunks that tile it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


def step_name(step: int) -> str:
    """Folder name of a step."""
    return f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """The step that a published folder's name stands for, or None when it is no such name."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> FileRecord:
    """Write a new file from pieces and fsync it; its digest is taken in a second thread while the disk is busy.

    Raises FileExistsError if anything, a symbolic link too, already has that name; OSError when the disk refuses.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    with ThreadPoolExecutor(1) as pool, open(path, "xb") as file:
        for piece in pieces:
            hashed = pool.submit(digest.update, piece)
            size_bytes += file.write(piece)
            hashed.result()
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(size_bytes, digest.hexdigest())


def fsync_folder(path: Path) -> None:
    """Make the entries of a folder (files made, renames) durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def encode_state(state: dict[str, object]) -> bytes:
    """State as JSON text; ConfigError when it holds something JSON cannot (NaN and infinity are let through)."""
    try:
        return json.dumps(state, indent=1).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the state to be saved is not JSON: {error}; keep tensors in `tensors`") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """Manifest as canonical JSON that carries its own digest, so that any changed byte shows."""
    body: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    return _canonical({**body, "digest": hashlib.sha256(_canonical(body)).hexdigest()})


def read_manifest(path: Path) -> Manifest:
    """Read and check a checkpoint's manifest. CheckpointError: missing, changed, of another format or version."""
    try:
        with _open_regular(path, MANIFEST) as file:
            data = file.read(_MANIFEST_LIMIT_BYTES)
    except FileNotFoundError:
        what = f"{MANIFEST} is missing: no whole checkpoint was published here" if path.is_dir() else "no such folder"
        raise CheckpointError(path, what) from None
    except OSError as error:
        raise CheckpointError(path, f"{MANIFEST} cannot be read: {error.strerror}") from error
    body = _parse(path, MANIFEST, data)
    version = body.get("format_version")
    if body.get("format") == FORMAT and version != FORMAT_VERSION:
        raise CheckpointError(path, f"format version {version!r}, but this Triaxial reads version {FORMAT_VERSION}")
    digest = body.pop("digest", None)
    if digest != hashlib.sha256(_canonical(body)).hexdigest() or _canonical({**body, "digest": digest}) != data:
        raise CheckpointError(path, f"{MANIFEST} is damaged: its content does not match its own digest")
    try:
        files = {str(name): FileRecord(**record) for name, record in body["files"].items()}
        manifest = Manifest(body["step"], body["ranks"], body["torch_version"], body["tensor_bytes"], files)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(path, f"{MANIFEST} is not as Triaxial writes it: {error!r}") from error
    _check_manifest(path, manifest)
    return manifest


def check_file(path: Path, name: str, record: FileRecord) -> str | None:
    """Read one file and compare it with its record: None, or what is wrong with it."""
    try:
        with _open_regular(path, name) as file:
            found_bytes = os.fstat(file.fileno()).st_size
            if found_bytes != record.size_bytes:
                return f"{name} has {found_bytes} bytes, the manifest says {record.size_bytes}"
            if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                return f"{name} is damaged: its SHA-256 is not the manifest's"
    except FileNotFoundError:
        return f"{name} is missing"
    except CheckpointError as error:
        return error.reason
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def read_small(path: Path, name: str, manifest: Manifest) -> dict[str, Any]:
    """Read a JSON file of a checkpoint after checking it against the manifest."""
    wrong = check_file(path, name, manifest.files[name])
    if wrong is not None:
        raise CheckpointError(path, wrong)
    with _open_regular(path, name) as file:
        return _parse(path, name, file.read())


def encode_index(index: dict[str, StoredTensor]) -> bytes:
    """The tensor index as JSON, one line a tensor."""
    lines = [
        f"{json.dumps(name)}: {json.dumps({**asdict(stored), 'dtype': DTYPE_NAMES[stored.dtype]})}"
        for name, stored in sorted(index.items())
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_index(path: Path, manifest: Manifest) -> dict[str, StoredTensor]:
    """Read tensors.json and check that its chunks tile every tensor and fit in the files that hold them."""
    index = {}
    used_bytes = dict.fromkeys(manifest.files, 0)
    for name, entry in read_small(path, INDEX, manifest).items():
        try:
            chunks = tuple(Chunk(c["file"], tuple(c["offsets"]), tuple(c["shape"])) for c in entry["chunks"])
            stored = StoredTensor(tuple(entry["shape"]), _DTYPES[entry["dtype"]], chunks)
            if not _tiles(stored):
                raise CheckpointError(path, f"{INDEX}: the pieces of '{name}' do not make up its shape {stored.shape}")
            for chunk in chunks:
                used_bytes[chunk.file] += math.prod(chunk.shape) * stored.dtype.itemsize
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(path, f"{INDEX}: the entry of '{name}' is not as Triaxial writes it") from error
        index[name] = stored
    for file, used in used_bytes.items():
        if used > manifest.files[file].size_bytes:
            raise CheckpointError(path, f"{INDEX} wants {used} bytes of {file}, which has fewer")
    return index


def open_shard(path: Path, name: str, manifest: Manifest) -> Any:
    """Map one shard with the safetensors library, which checks its header; no link is followed, sizes must agree."""
    with _open_regular(path, name) as file:
        if os.fstat(file.fileno()).st_size != manifest.files[name].size_bytes:
            raise CheckpointError(path, f"{name} does not have the size the manifest says")
    try:
        return safe_open(path / name, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(path, f"{name} is no valid safetensors file: {error}") from error


def stored_slice(path: Path, shard: Any, *, name: str, stored: StoredTensor, chunk: Chunk) -> Any:
    """The lazily read slice of a chunk in an open shard, after comparing the shard's header with the index."""
    try:
        found = shard.get_slice(name)
    except SafetensorError as error:
        raise CheckpointError(path, f"{chunk.file} does not hold '{name}': {error}") from error
    if tuple(found.get_shape()) != chunk.shape or found.get_dtype() != DTYPE_NAMES[stored.dtype]:
        raise CheckpointError(path, f"{chunk.file} holds '{name}' in another shape or dtype than {INDEX} says")
    return found


def _open_regular(path: Path, name: str) -> Any:
    try:
        descriptor = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a planted pipe must not block
    except OSError as error:
        if (path / name).is_symlink():
            raise CheckpointError(path, f"{name} is a symbolic link, which is not followed") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(path, f"{name} is no regular file")
    return os.fdopen(descriptor, "rb")


def _parse(path: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"{name} is damaged: no valid JSON") from error
    if not isinstance(body, dict):
        raise CheckpointError(path, f"{name} is damaged: no JSON object")
    return body


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"


def _check_manifest(path: Path, manifest: Manifest) -> None:
    for name, record in manifest.files.items():
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(path, f"{MANIFEST} lists {name!r}, which is no file of a checkpoint")
        if not (_is_count(record.size_bytes) and re.fullmatch(r"[0-9a-f]{64}", str(record.sha256))):
            raise CheckpointError(path, f"{MANIFEST} has no valid size and digest for {name}")
    for name in (INDEX, STATE):
        if name not in manifest.files:
            raise CheckpointError(path, f"{MANIFEST} does not list {name}")
    if not (_is_count(manifest.step) and _is_count(manifest.ranks) and _is_count(manifest.tensor_bytes)):
        raise CheckpointError(path, f"{MANIFEST} has no valid step, ranks and tensor_bytes")
    step = step_of(path.name)
    if step not in (None, manifest.step):
        raise CheckpointError(path, f"{MANIFEST} is of step {manifest.step}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tiles(stored: StoredTensor) -> bool:
    """Whether all chunks lie inside the tensor and have its volume together (the save checks that none overlap)."""
    volume = 0
    for chunk in stored.chunks:
        box = list(zip(chunk.offsets, chunk.shape, stored.shape, strict=True))
        if not all(_is_count(offset) and _is_count(size) and offset + size <= whole for offset, size, whole in box):
            return False
        volume += math.prod(chunk.shape)
    return all(map(_is_count, stored.shape)) and volume == math.prod(stored.shape)
