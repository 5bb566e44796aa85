"""Read and write the manifest of a checkpoint folder, which records every file of it.

step-000000123/
    shard-00000.safetensors   the pieces of tensors that rank 0 wrote
    tensors.json              for each tensor its shape, dtype, and which piece of it lies in which shard
    state.json                the caller's state
    MANIFEST.json             step, sizes and SHA-256 of the files above, and a digest of itself
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.files.json_rules import Fields, Finite, ListOf, Plain, Text, ValuesOf, Whole
from parallel.checkpoint.files import FileRecord, parse_json, read_own
from parallel.checkpoint.folders import step_of
from parallel.errors import CheckpointError

FORMAT = "triaxial checkpoint"
FORMAT_VERSION = 1
MANIFEST, INDEX, STATE = "MANIFEST.json", "tensors.json", "state.json"

# The only names a manifest may list: no folder, no `..`, nothing that another program would run or unpickle.
_FILE_NAME = re.compile(r"shard-\d{5,}\.safetensors|tensors\.json|state\.json")
_MANIFEST_LIMIT_BYTES = 64 * 2**20  # a line of about 120 bytes a file: room for 500,000 files
_STATE_LIMIT_BYTES = 64 * 2**20  # a run's state has some kilobytes

_RANGE = Fields({"first": Whole(), "stop": Whole(1), "why": Text()})
_SPIKES = Fields({"losses": ListOf(Finite()), "seen": Whole(), "high": Whole(), "first_high": Whole()})
_COUNTERS = {"skipped_steps": Whole(), "skipped_in_a_row": Whole(), "rewinds": Whole()}
_LOOP = Fields({"skipped": ListOf(_RANGE), "spikes": _SPIKES, **_COUNTERS})
_CORPUS = Fields({"name": Text()}, {"streams": ValuesOf(Whole())})
# The types and ranges of the keys in state.json that somebody reads. A caller's state need not have them.
STATE_RULES = Fields(
    optional={
        **dict.fromkeys(("step", "tokens_seen", "samples_seen", "optimizer_steps"), Whole()),
        **dict.fromkeys(("run_id", "tokenizer"), Text()),
        "config": ValuesOf(Fields()),
        "data": Fields(optional={"corpora": ListOf(_CORPUS)}),
        "loop": _LOOP,
        "fast_tier": Fields({"save_id": Text(), "rank": Whole(), "ranks": Whole(1), "layout": Fields()}),
        "imported": Fields(optional={"dtype": Text()}),
        "base": Fields(dict.fromkeys(("path", "from_run", "manifest_sha256"), Text())),
    }
)


@dataclass(frozen=True)
class CheckpointManifest:
    """MANIFEST.json: the facts of one save, and the size and digest of each file."""

    step: int
    ranks: int
    torch_version: str
    tensor_bytes: int
    files: dict[str, FileRecord]


def encode_state(state: dict[str, object]) -> bytes:
    """The state as JSON text. NaN and infinity are allowed; ConfigError for any other value that JSON does not have."""
    try:
        return json.dumps(state, indent=1).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the state to save is not JSON: {error}. Pass tensors as `tensors`.") from error


def check_state(path: Path, state: dict[str, Any], manifest: CheckpointManifest) -> None:
    """Check state.json. CheckpointError: a value has a wrong type or range, or the step differs from the manifest's."""
    if fault := STATE_RULES.fault(state, ""):
        raise CheckpointError(path, f"{STATE} is invalid: {fault}")
    if state.get("step", manifest.step) != manifest.step:
        raise CheckpointError(path, f"{STATE} is of step {state['step']}, and {MANIFEST} of step {manifest.step}")


def encode_manifest(manifest: CheckpointManifest) -> bytes:
    """The manifest as canonical JSON with its own digest, so that any changed byte is found."""
    body: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    return _canonical({**body, "digest": hashlib.sha256(_canonical(body)).hexdigest()})


def manifest_digest(manifest: CheckpointManifest) -> str:
    """The SHA-256 of a manifest, which has the digests of all files: it tells a checkpoint from any other."""
    return hashlib.sha256(encode_manifest(manifest)).hexdigest()


def read_manifest(path: Path) -> CheckpointManifest:
    """Read and check the manifest. CheckpointError: it is missing, damaged, or of another format or version."""
    if not os.path.lexists(path / MANIFEST):
        what = f"{MANIFEST} is missing: no whole checkpoint was published here" if path.is_dir() else "no such folder"
        raise CheckpointError(path, what)
    data = read_own(path, MANIFEST, lambda file: file.read(_MANIFEST_LIMIT_BYTES))
    body = parse_json(path, MANIFEST, data)
    if fault := Plain(4).fault(body, MANIFEST):
        raise CheckpointError(path, fault)
    version = body.get("format_version")
    if body.get("format") == FORMAT and version != FORMAT_VERSION:
        raise CheckpointError(path, f"format version {version!r}, but this Triaxial reads version {FORMAT_VERSION}")
    digest = body.pop("digest", None)
    if digest != hashlib.sha256(_canonical(body)).hexdigest() or _canonical({**body, "digest": digest}) != data:
        raise CheckpointError(path, f"{MANIFEST} is damaged: its content does not match its own digest")
    try:
        files = {str(name): FileRecord(**record) for name, record in body["files"].items()}
        manifest = CheckpointManifest(body["step"], body["ranks"], body["torch_version"], body["tensor_bytes"], files)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(path, f"{MANIFEST} is not as Triaxial writes it: {error!r}") from error
    _check_manifest(path, manifest)
    return manifest


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"


def _check_manifest(path: Path, manifest: CheckpointManifest) -> None:
    for name, record in manifest.files.items():
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(path, f"{MANIFEST} lists {name!r}, which is no file of a checkpoint")
        if not (is_count(record.size_bytes) and re.fullmatch(r"[0-9a-f]{64}", str(record.sha256))):
            raise CheckpointError(path, f"{MANIFEST} has no valid size and digest for {name}")
    for name in (INDEX, STATE):
        if name not in manifest.files:
            raise CheckpointError(path, f"{MANIFEST} does not list {name}")
    if manifest.files[STATE].size_bytes > _STATE_LIMIT_BYTES:
        raise CheckpointError(path, f"{STATE} has more than {_STATE_LIMIT_BYTES:,} bytes, which no run's state has")
    if not (is_count(manifest.step) and is_count(manifest.ranks) and is_count(manifest.tensor_bytes)):
        raise CheckpointError(path, f"{MANIFEST} has no valid step, ranks and tensor_bytes")
    step = step_of(path.name)
    if step not in (None, manifest.step):
        raise CheckpointError(path, f"{MANIFEST} is of step {manifest.step}")


def is_count(value: object) -> bool:
    """Return whether a value that was read from JSON is a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**62
