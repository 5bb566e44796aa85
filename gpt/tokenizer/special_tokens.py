"""Which tokens stand before a text and end one; for an imported model as the files that came with it say."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, import_extra
from gpt.tokenizer.tokenizers import Tokenizer


@dataclass(frozen=True)
class SpecialTokens:
    """`begin_id` stands before a text that nothing precedes. `added_ids` stand before every text that is read, as
    Llama's tokenizer puts its beginning of a text. A written text ends at any of `end_ids`."""

    begin_id: int
    end_ids: tuple[int, ...]
    added_ids: tuple[int, ...] = ()


def own_special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Of a model that we trained: the end of a document is all there is."""
    end = tokenizer.end_of_document_id
    return SpecialTokens(begin_id=end, end_ids=(end,))


def special_tokens_of(companions: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> SpecialTokens:
    """As `companions` says, the folder that an import left in its run; `own_special_tokens` where there is none.

    transformers begins a text with the tokenizer's bos, else its eos; it ends one at the eos of the tokenizer and at
    those of generation_config.json. ConfigError: files that cannot be read.
    """
    own = own_special_tokens(tokenizer)
    if not (companions / "tokenizer_config.json").is_file() or tokenizer_file.suffix != ".json":
        return own
    names = _read(companions / "tokenizer_config.json")
    model = import_extra("tokenizers", extra="hf").Tokenizer.from_file(str(tokenizer_file))
    begin, end = (_id(model, names.get(key)) for key in ("bos_token", "eos_token"))
    generation = companions / "generation_config.json"
    more = _read(generation).get("eos_token_id") if generation.is_file() else None
    ends = [end, *(more if isinstance(more, list) else [more])]
    end_ids = tuple(dict.fromkeys(i for i in ends if isinstance(i, int) and 0 <= i < tokenizer.vocab_size))
    begins = [i for i in (begin, end) if i is not None]
    return SpecialTokens(
        begin_id=begins[0] if begins else own.begin_id,
        end_ids=end_ids or own.end_ids,
        added_ids=tuple(_added(model.encode("a").ids, model.encode("a", add_special_tokens=False).ids)),
    )


def _added(with_template: list[int], without: list[int]) -> Iterable[int]:
    """What a template puts before a text; a text that is to be continued gets nothing after it."""
    for start in range(len(with_template) - len(without) + 1):
        if with_template[start : start + len(without)] == without:
            return with_template[:start]
    return ()


def _id(model: Any, name: Any) -> int | None:
    if isinstance(name, dict):
        name = name.get("content")
    found: int | None = model.token_to_id(name) if isinstance(name, str) else None
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} is no JSON object")
    return settings
