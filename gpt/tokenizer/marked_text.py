"""Encode a text whose special tokens are written out, as a chat template writes them. Plain text never goes here."""

from pathlib import Path

from gpt.errors import ConfigError, import_extra
from gpt.files.regular import read_bytes
from gpt.tokenizer.faults import library_faults
from gpt.tokenizer.tokenizers import HuggingFaceTokenizer, Tokenizer, tokenizer_files


class MarkedTextEncoder:
    """Turns text into ids, in which the name of a special token, such as `<|im_end|>`, is that token.

    A stranger's text must not be encoded so: it could end its own turn. `find_special` finds such names in it.
    ConfigError: the tokenizer is no tokenizer.json.
    """

    def __init__(self, path: Path) -> None:
        files = tokenizer_files(path)
        if files[0].suffix != ".json" or len(files) > 1:
            raise ConfigError(f"{files[-1]} is invalid for a chat template: must be a tokenizer.json")
        library = import_extra("tokenizers", extra="hf")
        with library_faults(f"{files[0]}: not a Hugging Face tokenizer file"):
            self._model = library.Tokenizer.from_buffer(read_bytes(files[0]))
            self._model.no_padding()
            self._model.no_truncation()
            added = self._model.get_added_tokens_decoder()
            self.special_ids: dict[str, int] = {token.content: i for i, token in added.items() if token.special}
            whole, *parts = [self._ids(text) for text in ("a b\nc", "a", " b", "\nc")]
        self.joins = whole == [i for part in parts for i in part]  # the parts of a text give the ids of the text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, text: str) -> list[int]:
        """Encode a text, without the special tokens that the tokenizer itself would add."""
        with library_faults("the tokenizer cannot encode a text"):
            return self._ids(text)

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text; also return the characters of each token, (start, end)."""
        with library_faults("the tokenizer cannot encode a text"):
            found = self._model.encode(text, add_special_tokens=False)
            return list(found.ids), [(int(start), int(end)) for start, end in found.offsets]

    def find_special(self, text: str) -> str | None:
        """Return the name of a special token that the text contains, or None."""
        return next((name for name in self.special_ids if name in text), None)


def special_names(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the special tokens of a tokenizer, id to name; of ours and GPT-2's, the end-of-document token."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.special_names
    return {tokenizer.end_of_document_id: "<|endoftext|>"}
