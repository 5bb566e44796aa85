"""Find the tokens that begin and end a text, for our own models and, from their files, for imported ones."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.errors import import_extra
from gpt.files.json_files import read_json_object
from gpt.files.regular import read_bytes
from gpt.tokenizer.faults import library_faults
from gpt.tokenizer.tokenizers import Tokenizer

_SURROGATE = re.compile("[\ud800-\udfff]")  # no token has one, and the library cannot look it up


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a model."""

    begin_id: int  # goes before a text that nothing precedes
    end_ids: tuple[int, ...]  # any of these ends a generated text
    added_ids: tuple[int, ...] = ()  # go before every prompt, such as the begin-of-text token of Llama's tokenizer


def own_special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Return the special tokens of a model that we trained: there is only the end-of-document token."""
    end = tokenizer.end_of_document_id
    return SpecialTokens(begin_id=end, end_ids=(end,))


def special_tokens_of(companions: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> SpecialTokens:
    """Read the special tokens from `companions`, the folder of an import's other files, else `own_special_tokens`.

    transformers begins a text with the tokenizer's bos, else with its eos. A text ends at the eos of the tokenizer and
    at those of generation_config.json. ConfigError: a file cannot be read.
    """
    own = own_special_tokens(tokenizer)
    if not (companions / "tokenizer_config.json").is_file() or tokenizer_file.suffix != ".json":
        return own
    names = read_json_object(companions / "tokenizer_config.json")
    generation = companions / "generation_config.json"
    more = read_json_object(generation).get("eos_token_id") if generation.is_file() else None
    library = import_extra("tokenizers", extra="hf")
    with library_faults(f"{tokenizer_file}: not a Hugging Face tokenizer file"):
        model = library.Tokenizer.from_buffer(read_bytes(tokenizer_file))
        begin, end = (_id(model, names.get(key)) for key in ("bos_token", "eos_token"))
        added = tuple(_added(model.encode("a").ids, model.encode("a", add_special_tokens=False).ids))
    ends = [end, *(more if isinstance(more, list) else [more])]
    known = range(tokenizer.vocab_size)
    end_ids = tuple(dict.fromkeys(i for i in ends if type(i) is int and i in known))
    begins = [i for i in (begin, end) if i is not None]
    return SpecialTokens(
        begin_id=begins[0] if begins else own.begin_id,
        end_ids=end_ids or own.end_ids,
        added_ids=added,
    )


def _added(with_template: list[int], without: list[int]) -> Iterable[int]:
    """Return what a template puts before a text. Tokens that it adds after a text are left out, because the text is to
    be continued."""
    for start in range(len(with_template) - len(without) + 1):
        if with_template[start : start + len(without)] == without:
            return with_template[:start]
    return ()


def _id(model: Any, name: Any) -> int | None:
    if isinstance(name, dict):
        name = name.get("content")
    is_text = isinstance(name, str) and not _SURROGATE.search(name)
    found: int | None = model.token_to_id(name) if is_text else None
    return found
