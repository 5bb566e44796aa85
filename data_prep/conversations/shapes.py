"""Turn the records of published data sets into conversations, by the shape of their fields.

The shapes: `messages` (TRL, OpenAI), `prompt_completion`, `preference` (prompt, chosen, rejected) and `prompt` of TRL,
`hh` (chosen and rejected transcripts of HH-RLHF), `alpaca`, `self_instruct`, and `ranking`: a prompt with several
answers, each with a rank or a score, as AlpacaEval writes them too.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.conversation import Answer, Conversation, Turn, UnusableRecord, check_turns
from data_prep.conversations.ranking import JudgedAnswer, LeftOut, best, check_ranking, rank
from data_prep.conversations.turns import HH_MARK, transcript, turns_of
from data_prep.documents.records import usable_id
from data_prep.documents.shards import whole_text

_LISTS = ("completions", "outputs", "responses")  # of a ranking's answers
_TEXTS = ("text", "output", "completion", "response", "content")  # of one of them
_SCORES = ("score", "log_odds", "reward")  # higher is better
_LABELLERS = ("labeller", "labeler", "annotator", "worker")
_IDS = ("id", "prompt_id", "question_id")
# The fields that each shape reads; `shape_of` tests them in this order.
_READ = {
    "messages": ("messages",),
    "hh": ("chosen", "rejected"),
    "preference": ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    "ranking": ("prompt", "instruction", "input", *_LISTS),
    "prompt_completion": ("prompt", "completion"),
    "self_instruct": ("instruction", "instances"),
    "alpaca": ("instruction", "input", "output"),
    "prompt": ("prompt",),
}
SHAPES = tuple(_READ)


def renamed(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the record with our names of its fields; `names` maps ours to theirs."""
    ours = {our: record[their] for our, their in names.items() if their in record}
    return {**{key: value for key, value in record.items() if key not in names.values()}, **ours}


def shape_of(record: Mapping[str, Any]) -> str:
    """Return the shape of a record by its fields, "" if it has none of the known ones."""
    has = record.keys()
    if {"chosen", "rejected"} <= has:  # before `messages`, which UltraFeedback has too
        texts = "prompt" not in has and isinstance(record["chosen"], str)
        return "hh" if texts and HH_MARK.search(record["chosen"]) else "preference"
    if "messages" in has:
        return "messages"
    if {"prompt", "instruction"} & has and any(isinstance(record.get(name), list) for name in _LISTS):
        return "ranking"
    if {"prompt", "completion"} <= has:
        return "prompt_completion"
    if {"instruction", "instances"} <= has:
        return "self_instruct"
    if {"instruction", "output"} <= has:
        return "alpaca"
    return "prompt" if "prompt" in has else ""


def unused_fields(record: Mapping[str, Any], shape: str) -> list[str]:
    """Return the fields of a record that its shape does not read."""
    known = {*_READ[shape], *_LABELLERS, *_IDS}
    return [whole_text(str(key))[:60] for key in record if key not in known]


def conversations_in(
    record: Mapping[str, Any], shape: str, config: ConversationsConfig
) -> Iterator[tuple[Conversation | UnusableRecord, tuple[LeftOut, ...]]]:
    """Yield each conversation of a record, or why it is none, with the answers that are left out and the reason."""
    if shape == "self_instruct":
        instances = record["instances"]
        if not isinstance(instances, list) or not instances:
            yield UnusableRecord("no_answer", "no instances"), ()
            return
        parts: list[Mapping[str, Any]] = [
            {"instruction": record["instruction"], **(one if isinstance(one, dict) else {})} for one in instances
        ]
    else:
        parts = [record]
    for part in parts:
        try:
            prompt, judged = _READERS[shape](part)
            yield _conversation(prompt, judged, record, config)
        except UnusableRecord as error:
            yield error, ()


def _conversation(
    prompt: tuple[Turn, ...], judged: list[JudgedAnswer], record: Mapping[str, Any], config: ConversationsConfig
) -> tuple[Conversation, tuple[LeftOut, ...]]:
    """Make a conversation of the wanted kind. UnusableRecord: the record is of another, or has no usable answer."""
    check_turns(prompt)
    labeller = next((usable_id(record[name]) for name in _LABELLERS if name in record), "")
    own = next((usable_id(record[name]) for name in _IDS if name in record), "")
    if config.kind == "prompts":
        return Conversation(prompt, (), labeller, own), ()
    if not judged:
        raise UnusableRecord("no_answer", "the conversation ends with a user's turn")
    if config.kind == "rankings":
        if len(judged) == 1:
            raise UnusableRecord("one_completion")
        ranked = rank(judged, tie_margin=config.tie_margin)
        check_ranking(ranked.answers, len(judged))
        return Conversation(prompt, ranked.answers, labeller, own), ranked.left_out
    if len(judged) == 1:
        if not judged[0].text.strip():
            raise UnusableRecord("empty_turn", "the answer has no text")
        answer = Answer(judged[0].text, 0, judged[0].score, judged[0].model)
        return Conversation(prompt, (answer,), labeller, own), ()
    ranked = rank(judged, tie_margin=0.0)
    chosen = best(ranked.answers)
    return Conversation(prompt, (Answer(chosen.text, 0, chosen.score, chosen.model),), labeller, own), ()


def _messages(record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], list[JudgedAnswer]]:
    turns = turns_of(record["messages"], "messages")
    if turns and turns[-1].role == "assistant":
        return turns[:-1], [JudgedAnswer(turns[-1].text, 0.0)]
    return turns, []


def _prompt_completion(record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], list[JudgedAnswer]]:
    return turns_of(record["prompt"], "prompt"), [JudgedAnswer(_answer(record["completion"], "completion"), 0.0)]


def _preference(record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], list[JudgedAnswer]]:
    found = []
    for value, name in ((1.0, "chosen"), (0.0, "rejected")):
        turns = turns_of(record[name], name, role="assistant")
        if not turns or turns[-1].role != "assistant":
            raise UnusableRecord("no_answer", f"{name} does not end with a turn of the assistant")
        score = record.get(f"score_{name}")
        found.append((turns[:-1], JudgedAnswer(turns[-1].text, value, _number(score))))
    (before, chosen), (before_rejected, rejected) = found
    given = turns_of(record["prompt"], "prompt") if record.get("prompt") is not None else ()
    if before != before_rejected:
        raise UnusableRecord("different_prompts", "chosen and rejected differ before their last turns")
    return (before if before else given), [chosen, rejected]


def _hh(record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], list[JudgedAnswer]]:
    both = {name: transcript(record[name]) for name in ("chosen", "rejected")}
    return _preference({name: [turn.message for turn in turns] for name, turns in both.items()})


def _ranking(record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], list[JudgedAnswer]]:
    name = next(name for name in _LISTS if isinstance(record.get(name), list))
    answers = [one if isinstance(one, dict) else {"text": one} for one in record[name]]
    by_rank = any("rank" in one for one in answers)
    judged = []
    for one in answers:
        score = next((_number(one[key]) for key in _SCORES if key in one), None)
        order = _number(one.get("rank"))
        value = (None if order is None else -order) if by_rank else score
        text = next((one[key] for key in _TEXTS if key in one), None)
        judged.append(JudgedAnswer(_answer(text, name), value, score, usable_id(one.get("model"))))
    if "prompt" in record:
        return turns_of(record["prompt"], "prompt"), judged
    return _instruction(record), judged


def _alpaca(record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], list[JudgedAnswer]]:
    if "output" not in record:
        raise UnusableRecord("no_answer", "no output")
    return _instruction(record), [JudgedAnswer(_answer(record["output"], "output"), 0.0)]


def _only_prompt(record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], list[JudgedAnswer]]:
    return turns_of(record["prompt"], "prompt"), []


def _instruction(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The instruction, and after a blank line its input if there is one."""
    texts = [record["instruction"], record.get("input")]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise UnusableRecord("malformed", "instruction and input must be text")
    return (Turn("user", "\n\n".join(whole_text(text) for text in texts if text and text.strip())),)


def _answer(value: object, name: str) -> str:
    """Return the text of an answer: text, or a list of one message of the assistant."""
    turns = turns_of(value, name, role="assistant")
    if len(turns) != 1 or turns[0].role != "assistant":
        raise UnusableRecord("malformed", f"{name} must be one turn of the assistant")
    return turns[0].text


def _number(value: object) -> float | None:
    """Return a finite number, None of anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond 1e308
        return None
    return number if math.isfinite(number) else None


_READERS = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "hh": _hh,
    "ranking": _ranking,
    "alpaca": _alpaca,
    "self_instruct": _alpaca,
    "prompt": _only_prompt,
}
