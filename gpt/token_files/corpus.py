"""Open token files and check them against the corpus.json in their folder, which takes a few reads.

`triaxial prepare` writes corpus.json (data_prep/corpus/corpus.py). Token files without one, such as those of other
tools, are opened unchecked. `triaxial prepare verify` compares whole digests.
"""

from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, file_error
from gpt.files.json_rules import Fields, ListOf, Text, ValuesOf, Whole
from gpt.files.json_text import decode_json
from gpt.files.regular import read_text
from gpt.token_files.files import TokenFile, sampled_digest, shard_prefixes

CORPUS_FILE = "corpus.json"
# The rules of the fields that are needed to open the files, of all prefixes and of the one that is opened.
_FILES = Fields({"prefix": Text()}, {"shards": ListOf(Fields({"name": Text()}))})
_SPLIT = Fields({"prefix": Text()}, {"shards": ListOf(Fields({"name": Text()})), "streams": ValuesOf(_FILES)})
_CHAT = Fields(optional={"kind": Text(), "format": Text(), "end_ids": ListOf(Whole())})
_DESCRIPTION = Fields(optional={"version": Whole(1), "splits": ValuesOf(_SPLIT), "chat": _CHAT})
_TOKENIZER = Fields({"tokenizer": Fields({"file": Text(), "fingerprint": Text()})})
_FILE = Fields({"bytes": Whole(), "sampled_sha256": Text()})
_DIGESTS = Fields({"bin": _FILE, "idx": _FILE})


def open_tokens(prefix: Path) -> TokenFile:
    """Open the token files of `prefix` after `check_corpus`. ConfigError as for both."""
    check_corpus(prefix)
    return TokenFile(prefix)


def describe_corpus(prefix: Path) -> dict[str, Any] | None:
    """Read the corpus.json in the folder of `prefix`; None if it is not ours or does not describe this prefix."""
    path = Path(prefix).parent / CORPUS_FILE
    try:
        description = decode_json(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(description, dict) or description.get("format") != "triaxial-corpus":
        return None
    if fault := _DESCRIPTION.fault(description, ""):
        raise _damaged(path, fault)
    shards = _shards(description, Path(prefix).name)
    if not shards:
        return None
    fault = _TOKENIZER.fault(description, "")
    for shard in shards if description.get("version", 1) >= 2 else ():
        fault = fault or _DIGESTS.fault(shard, f"the shard '{shard['name']}'")
    if fault:
        raise _damaged(path, fault)
    return description


def _damaged(path: Path, fault: str) -> ConfigError:
    return ConfigError(f"{path} is damaged ({fault}). Copy it again, or run `triaxial prepare` again.")


def check_corpus(prefix: Path) -> None:
    """Compare names, sizes and sampled digests of the files of `prefix` with corpus.json, if there is one.

    Cost: 32 blocks of 4 KiB per shard, whatever its size. This finds missing, added, exchanged and cut-off files and
    damage over long ranges, but a flipped bit only inside a sampled block. ConfigError: names the first such file.
    """
    prefix = Path(prefix)
    description = describe_corpus(prefix)
    if description is None or description.get("version", 1) < 2:  # version 1 has no sampled digests
        return
    expected = {shard["name"]: shard for shard in _shards(description, prefix.name)}
    where = f"{prefix.parent / CORPUS_FILE} describes"
    for path in shard_prefixes(prefix):
        if path.name not in expected:
            raise ConfigError(f"{path}.bin is not in the corpus that {where}. Remove it, or prepare the corpus again.")
        files = expected.pop(path.name)
        for suffix in ("bin", "idx"):
            _check_file(Path(f"{path}.{suffix}"), files[suffix])
    for name in expected:
        raise ConfigError(f"{prefix.parent}/{name}.bin: no such file, but {where} it. Copy the corpus again.")


def check_tokenizer(prefix: Path, *, path: Path, fingerprint: str) -> None:
    """Check that corpus.json names the tokenizer at `path`. ConfigError: another tokenizer made these ids."""
    description = describe_corpus(prefix)
    if description is None or description["tokenizer"]["fingerprint"] == fingerprint:
        return
    made_by = description["tokenizer"]
    raise ConfigError(
        f"data.tokenizer = '{path}' (fingerprint {fingerprint[:16]}) is invalid: the corpus {prefix} was made with "
        f"{made_by['file']} (fingerprint {made_by['fingerprint'][:16]}). Use "
        f"data.tokenizer = '{Path(prefix).parent / made_by['file']}', or prepare the corpus again with this tokenizer."
    )


def _shards(description: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the entries of a split, of one of its streams, or of the shard `name`.

    Version 1 has one entry without digests.
    """
    splits = description.get("splits", {}).values()
    for split in (*splits, *(stream for one in splits for stream in one.get("streams", {}).values())):
        if split["prefix"] == name:
            return list(split.get("shards", [{"name": name}]))
        for shard in split.get("shards", []):
            if shard["name"] == name:
                return [shard]
    return []


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    again = f"Copy it again; `triaxial prepare verify {path.parent}` checks the whole corpus."
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise ConfigError(f"{path}: {size:,} bytes, but {CORPUS_FILE} says {expected['bytes']:,}. {again}")
        digest = sampled_digest(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, but {CORPUS_FILE} lists it. Copy the corpus again.") from None
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {error.strerror}. {again}") from None
    if digest != expected["sampled_sha256"]:
        raise ConfigError(f"{path}: its content differs from {CORPUS_FILE} (digest of sampled blocks). {again}")
