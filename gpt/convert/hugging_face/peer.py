"""Load a Hugging Face folder with `transformers`, to compare it with ours. No code that the folder names is run.

Two independent guards: `refuse_code` reads the folder's settings first, and transformers gets
`trust_remote_code=False`. Without it, transformers asks on standard input whether to run the folder's code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpt.errors import ConfigError, file_error, import_extra
from gpt.files.json_text import decode_json
from gpt.files.regular import read_bytes

_MAX_FILE_BYTES = 1 << 28  # a tokenizer.json of a large vocabulary has 35 MB
_CODE = "auto_map"
# transformers downloads a kernel, which is compiled code, if one of these settings names a repository: "owner/name".
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_ADAPTER = "adapter_config.json"  # with peft installed, transformers would load another model that it names


def refuse_code(folder: Path) -> None:
    """Check that no JSON file of the folder names code. ConfigError: one does, or is no regular file of bounded size.

    Files that are not JSON are skipped: their own readers check them.
    """
    for path in sorted(folder.glob("*.json")):
        if path.name == _ADAPTER:
            raise ConfigError(f"{path}: adapters are not supported. Merge it into the model, or remove the file.")
        try:
            data = read_bytes(path, max_bytes=_MAX_FILE_BYTES)
        except OSError as error:
            raise file_error(error, f"{path} cannot be read: {(error.strerror or '').lower()}") from None
        try:
            settings = decode_json(data)
        except ValueError:
            continue
        for key, value in _entries(settings):
            # In a vocabulary, auto_map may be a token; its value is then an id.
            if key == _CODE and value and not isinstance(value, int):
                raise ConfigError(f"{path} has the key {_CODE}: it asks for remote code, which is never run")
            if key in _KERNELS and any("/" in name for name in _texts(value)):
                raise ConfigError(f"{path}: {key} names a kernel to download, which is code and is never run")


def load_peer_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer as transformers loads it. ConfigError: it cannot, or the folder names code."""
    with _loading(folder) as transformers:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_peer_model(folder: Path) -> Any:
    """Return the folder's model in fp32, as any user would load it. Errors as for `load_peer_tokenizer`."""
    with _loading(folder) as transformers:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="sdpa",
            local_files_only=True,
            trust_remote_code=False,
        ).eval()


def empty_peer_model(folder: Path, **settings: Any) -> Any:
    """Return a model of the folder's configuration, with other `settings`, in fp32. Errors as `load_peer_tokenizer`."""
    with _loading(folder) as transformers:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for key, value in settings.items():
            setattr(config, key, value)
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )


@contextmanager
def _loading(folder: Path) -> Iterator[Any]:
    """Return transformers, for a folder that names no code. Its own errors become a ConfigError of one line."""
    transformers = import_extra("transformers", extra="hf")
    refuse_code(folder)
    transformers.utils.logging.disable_progress_bar()  # we already show one
    transformers.utils.logging.set_verbosity_error()
    with peer_faults(folder):
        yield transformers


@contextmanager
def peer_faults(folder: Path) -> Iterator[None]:
    """Turn errors of transformers into a ConfigError of one line: bad files make it raise errors of any type."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"transformers cannot load {folder}: {reason}") from None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Return all (key, value) pairs at every depth. The stack is a list, so depth costs no recursion."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            yield from here.items()
            waiting.extend(here.values())
        elif isinstance(here, list):
            waiting.extend(here)


def _texts(value: Any) -> list[str]:
    """Return the strings of a setting: one string, or one for each part of a model."""
    values = value.values() if isinstance(value, dict) else [value]
    return [text for text in values if isinstance(text, str)]
