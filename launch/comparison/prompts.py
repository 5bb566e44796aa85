"""Read the prompts of a comparison: texts to continue, or conversations to answer."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.conversation import Turn, UnusableRecord
from data_prep.conversations.shapes import conversations_in, shape_of
from data_prep.documents.records import Dropped
from data_prep.inputs.config import InputConfig
from data_prep.readers.readers import read_fields
from gpt.errors import ConfigError
from launch.comparison.questions import Prompt
from launch.generation.chat import ChatPrompt
from launch.generation.jobs import PromptLine
from launch.generation.prompt_file import read_lines


@dataclass(frozen=True)
class ComparedPrompt:
    """One prompt, as the page shows it, and as a text to continue or a conversation to answer."""

    shown: Prompt
    line: PromptLine
    chat: ChatPrompt | None = None


def read_texts_to_continue(path: Path) -> list[ComparedPrompt]:
    """Read the prompts of a JSON-lines file. ConfigError: a line without a prompt; names the first such line."""
    return [ComparedPrompt(line.fields["prompt"], line) for line in read_lines(path, option="--prompts")]


def read_conversations(path: Path) -> tuple[list[ComparedPrompt], Counter[str]]:
    """Read conversations to answer from a file in any shape that `triaxial prepare` reads.

    Returns them, and the number of records that are none by reason. ConfigError: the file has none.
    """
    left_out: Counter[str] = Counter()
    found = list[ComparedPrompt]()
    if not path.is_file():
        raise ConfigError(f"--prompts {path} cannot be read: no such file. Give JSON lines or Parquet.")
    for number, record in enumerate(read_fields(path, InputConfig(paths=(str(path),))), start=1):
        if isinstance(record, Dropped):
            left_out[record.reason] += 1
        elif not (shape := shape_of(record.values)):
            left_out["unknown_shape"] += 1
        else:
            for one, _ in conversations_in(record.values, shape, ConversationsConfig("prompts")):
                if isinstance(one, UnusableRecord):
                    left_out[one.reason] += 1
                else:
                    found.append(_compared(one.prompt, f"--prompts {path}, record {number}"))
    if not found:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in left_out.most_common()) or "it is empty"
        raise ConfigError(f"--prompts {path} is invalid: it has no prompt that can be used ({reasons})")
    return found, left_out


def _compared(turns: tuple[Turn, ...], where: str) -> ComparedPrompt:
    """Show a lone turn of the user as text, and everything else as messages."""
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    shown: Prompt = turns[0].text if len(turns) == 1 else messages
    return ComparedPrompt(shown, PromptLine({"prompt": shown}, where), ChatPrompt(turns, where))
