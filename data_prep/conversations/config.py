"""The [conversations] section of a recipe: which conversations to read, and how a model sees them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep.conversations.conversation import Compared, Kind
from gpt.errors import ConfigError

Shape = Literal[
    "auto",
    "messages",
    "prompt_completion",
    "preference",
    "hh",
    "ranking",
    "alpaca",
    "self_instruct",
    "prompt",
]
FormatName = Literal["auto", "template", "chatml", "plain"]
# The fields of the shapes, which `fields` maps to those of the files.
FIELDS = (
    "messages",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "completions",
    "instruction",
    "input",
    "output",
    "instances",
    "labeller",
    "id",
)


@dataclass(frozen=True)
class ConversationsConfig:
    """The [conversations] section of a recipe. With it, the input's records are conversations instead of texts."""

    kind: Kind
    """What the token files hold: `demonstrations` (to learn from), `rankings` (several answers to a prompt, by their
    quality) or `prompts` (to answer)."""
    shape: Shape = "auto"
    """Form of the records. By default the fields of the first record of a file tell, and the screen names the form."""
    fields: dict[str, str] = field(default_factory=dict)
    """Names of the files' fields where they differ: { prompt = "question" } reads `question` as `prompt`."""
    format: FormatName = "auto"
    """How roles become tokens: the tokenizer's own `template`, `chatml`, or `plain` text. The first that the tokenizer
    has by default."""
    template: Path | None = None
    """The Jinja template, or a tokenizer_config.json with one. By default that next to tokenizer.json."""
    learn: Literal["all", "last"] = "all"
    """Of demonstrations: learn all turns of the assistant, or the last. Of rankings, the last is learned."""
    compare: Compared | None = None
    """Text that de-duplication and decontamination compare: `prompt` (all before the answer) or `conversation`. By
    default the prompt, and of rankings the conversation: a prompt may be ranked by several people."""
    tie_margin: float = 0.0
    """Scores less than this above the lowest score of a level are on that level too."""
    join_pairs: bool = True
    """Of rankings: join pairs that follow each other in a file, with one prompt and labeller, to one ranking, unless
    the ranking would order answers that no pair or chain of pairs orders."""
    max_prompt_tokens: int | None = None
    """Tokens of a prompt. Longer ones leave no room for an answer, and are dropped."""
    max_tokens: int | None = None
    """Tokens of a conversation. Longer ones are dropped; of a ranking, only the long answers."""
    max_document_tokens: int | None = None
    """Tokens of a ranking: of a prompt with each of its answers. Longer ones, which data.seq_len cannot hold, are
    dropped."""

    def __post_init__(self) -> None:
        for key in self.fields:
            if key not in FIELDS:
                raise ConfigError(f"conversations.fields: '{key}' is invalid. Use {', '.join(FIELDS)}")
        if not 0 <= self.tie_margin < float("inf"):
            raise ConfigError(f"conversations.tie_margin = {self.tie_margin} is invalid: must be at least 0")
        for name in ("max_prompt_tokens", "max_tokens", "max_document_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"conversations.{name} = {value} is invalid: must be at least 1")
        if self.max_prompt_tokens and self.max_tokens and self.max_prompt_tokens >= self.max_tokens:
            raise ConfigError(
                f"conversations.max_prompt_tokens = {self.max_prompt_tokens} is invalid: must be below "
                f"conversations.max_tokens = {self.max_tokens}, which counts the answer too"
            )
        if self.max_document_tokens is not None and self.kind != "rankings":
            raise ConfigError(
                f"conversations.max_document_tokens = {self.max_document_tokens} is invalid for {self.kind}: only a "
                "ranking holds several conversations. Use conversations.max_tokens"
            )
        if self.template is not None and self.format not in ("auto", "template"):
            raise ConfigError(
                f"conversations.template is invalid with conversations.format = '{self.format}'. Remove one of them"
            )
        if self.compare is None:  # so that the recorded settings equal the settings that run
            object.__setattr__(self, "compare", "conversation" if self.kind == "rankings" else "prompt")
