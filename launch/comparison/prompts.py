"""Read the prompts of a comparison: texts to continue, or conversations to answer."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.conversation import Turn
from data_prep.conversations.read import conversations_of_file, describe_left_out
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

    Returns the conversations, and the number of unusable records by reason. ConfigError: none can be used.
    """
    if not path.is_file():
        raise ConfigError(f"--prompts {path} cannot be read: no such file. Give JSON lines or Parquet.")
    left_out: Counter[str] = Counter()
    found = [
        _compared(conversation.prompt, f"--prompts {path}, record {number}")
        for number, conversation in conversations_of_file(path, ConversationsConfig("prompts"), left_out)
    ]
    if not found:
        reasons = describe_left_out(left_out)
        raise ConfigError(f"--prompts {path} is invalid: it has no prompt that can be used ({reasons})")
    return found, left_out


def _compared(turns: tuple[Turn, ...], where: str) -> ComparedPrompt:
    """Show a lone turn of the user as text, and everything else as messages."""
    shown: Prompt = turns[0].text if len(turns) == 1 else [turn.message for turn in turns]
    return ComparedPrompt(shown, PromptLine({"prompt": shown}, where), ChatPrompt(turns, where))
