"""Turn generated tokens into text as they arrive: whole characters only, and cut before stop strings."""

from collections.abc import Sequence

from gpt.tokenizer.tokenizers import Tokenizer

_UNKNOWN = "\ufffd"  # decoding of bytes that are not, or not yet, a whole character


class GeneratedText:
    """The text after a prompt.

    `text` is the part that cannot change: it has no character with bytes still to come, and nothing that may be the
    beginning of a stop string. `stopped` is True once a stop string was found; `text` ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        assert all(stops), "an empty stop string matches everywhere"
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._prompt = list(prompt)
        self._start = len(tokenizer.decode(self._prompt))
        self._stops = tuple(stops)

    def update(self, tokens: Sequence[int]) -> str:
        """Take all new tokens so far. Returns the characters that they add to `text`.

        Decodes all tokens each time, since the text of a token depends on the tokens before it. This is cheap compared
        with the model.
        """
        return self._extend(self._decoded(tokens).rstrip(_UNKNOWN), is_end=False)

    def finish(self, tokens: Sequence[int]) -> str:
        """Take all new tokens when no more will come. Returns what they add, with the part that was held back."""
        return self._extend(self._decoded(tokens), is_end=True)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([*self._prompt, *tokens])[self._start :]

    def _extend(self, decoded: str, *, is_end: bool) -> str:
        if self.stopped:
            return ""
        ends = [index for stop in self._stops if (index := decoded.find(stop)) >= 0]
        self.stopped = bool(ends)
        if ends:
            decoded = decoded[: min(ends)]
        elif not is_end:
            decoded = decoded[: len(decoded) - self._held_back(decoded)]
        new = decoded[len(self.text) :]
        self.text += new
        return new

    def _held_back(self, text: str) -> int:
        """Return how many characters at the end of `text` are the beginning of a stop string."""
        longest = max(map(len, self._stops), default=0)
        lengths = range(min(longest - 1, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
