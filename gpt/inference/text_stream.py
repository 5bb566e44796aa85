"""The text of a continuation as its tokens come, whole characters only and cut before stop strings; runs no model."""

from collections.abc import Sequence

from gpt.tokenizer.tokenizers import Tokenizer

_UNKNOWN = "\ufffd"  # what bytes decode to that are no whole character, or not yet


class GeneratedText:
    """What follows a prompt, in words. `text` is what is certain so far: no character whose bytes may still be on their
    way, nothing that may turn out to begin a stop string. `stopped`: a stop string was there; `text` ends before it."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        assert all(stops), "an empty stop string is everywhere"
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._prompt = list(prompt)
        self._start = len(tokenizer.decode(self._prompt))
        self._stops = tuple(stops)

    def update(self, tokens: Sequence[int]) -> str:
        """Take all new tokens so far; returns what that adds to `text`. Decodes everything anew, since a token's text
        depends on what stands before it: that is little beside the model's own work."""
        return self._extend(self._decoded(tokens).rstrip(_UNKNOWN), is_end=False)

    def finish(self, tokens: Sequence[int]) -> str:
        """As `update`, when no more tokens come: what was held back is text after all."""
        return self._extend(self._decoded(tokens), is_end=True)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([*self._prompt, *tokens])[self._start :]

    def _extend(self, decoded: str, *, is_end: bool) -> str:
        if self.stopped:
            return ""
        ends = [place for stop in self._stops if (place := decoded.find(stop)) >= 0]
        self.stopped = bool(ends)
        if ends:
            decoded = decoded[: min(ends)]
        elif not is_end:
            decoded = decoded[: len(decoded) - self._held_back(decoded)]
        new = decoded[len(self.text) :]
        self.text += new
        return new

    def _held_back(self, text: str) -> int:
        """Characters at the end of a text that a stop string may begin with."""
        longest = max(map(len, self._stops), default=0)
        lengths = range(min(longest - 1, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
