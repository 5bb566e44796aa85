"""Each published shape gives the same conversations."""

import json
import random
from collections import Counter

import pytest

from data_prep.conversations.config import FIELDS, ConversationsConfig
from data_prep.conversations.conversation import Conversation, UnusableRecord, as_document
from data_prep.conversations.shapes import SHAPES, conversations_in, renamed, shape_of, unused_fields

DEMONSTRATIONS, RANKINGS, PROMPTS = map(ConversationsConfig, ("demonstrations", "rankings", "prompts"))
USER, ANSWER, WORSE = (
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": "A"},
    {"role": "assistant", "content": "B"},
)
ONE_ANSWER = {
    "messages": {"messages": [USER, ANSWER]},
    "prompt_completion": {"prompt": "Q", "completion": "A"},
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "self_instruct": {"id": "s", "instruction": "Q", "instances": [{"input": "", "output": "A"}]},
}
TWO_ANSWERS = {
    "preference": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "hh": {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    "ranking": {"prompt": "Q", "completions": [{"text": "B", "rank": 2}, {"text": "A", "rank": 1}]},
}


def only(record, config):
    ((found, _),) = conversations_in(record, shape_of(record), config)
    if isinstance(found, UnusableRecord):
        raise found
    return found


@pytest.mark.parametrize("shape", ONE_ANSWER)
def test_shapes_with_one_answer(shape):
    record = ONE_ANSWER[shape]
    assert shape_of(record) == shape
    found = only(record, DEMONSTRATIONS)
    assert [turn.text for turn in found.prompt] == ["Q"]
    assert [answer.text for answer in found.answers] == ["A"]
    assert only(record, PROMPTS).answers == ()
    with pytest.raises(UnusableRecord, match="one_completion"):
        only(record, RANKINGS)


@pytest.mark.parametrize("shape", TWO_ANSWERS)
def test_shapes_with_several_answers(shape):
    record = TWO_ANSWERS[shape]
    assert shape_of(record) == shape
    found = only(record, RANKINGS)
    assert sorted((answer.level, answer.text) for answer in found.answers) == [(0, "B"), (1, "A")]
    assert [answer.text for answer in only(record, DEMONSTRATIONS).answers] == ["A"], "the best is the demonstration"
    assert [turn.text for turn in only(record, PROMPTS).prompt] == ["Q"]


def test_every_shape_is_covered():
    assert {*ONE_ANSWER, *TWO_ANSWERS, "prompt"} == set(SHAPES)
    assert shape_of({"prompt": [USER]}) == "prompt"
    assert shape_of({"question": "?"}) == ""


def test_the_forms_of_trl_agree():
    for record in (
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "Q", "completion": "A"},
    ):
        assert [answer.text for answer in only(record, DEMONSTRATIONS).answers] == ["A"]
    for record in (
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
        {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"prompt": "Q", "chosen": [USER, ANSWER], "rejected": [USER, WORSE], "score_chosen": 9, "score_rejected": 2.5},
    ):
        found = only(record, RANKINGS)
        assert [(turn.role, turn.text) for turn in found.prompt] == [("user", "Q")]
        assert [(answer.text, answer.level) for answer in found.answers] == [("A", 1), ("B", 0)]
    assert [answer.score for answer in found.answers] == [9.0, 2.5]


def test_ultrafeedback_is_a_preference_although_it_has_messages():
    record = {"prompt": "Q", "chosen": [USER, ANSWER], "rejected": [USER, WORSE], "messages": [USER, ANSWER]}
    assert shape_of(record) == "preference"


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), True, "9", None, [1]])
def test_a_value_that_is_no_number_ranks_nothing(value):
    record = {"prompt": "Q", "completions": [{"text": t, "score": s} for t, s in (("a", value), ("b", 1), ("c", 2))]}
    ((found, left_out),) = conversations_in(record, "ranking", RANKINGS)
    assert [answer.text for answer in found.answers] == ["b", "c"]
    assert [(one.reason, one.number) for one in left_out] == [("unranked", 0)]


def test_scores_rank_as_ranks_do_and_the_labeller_is_kept():
    outputs = [{"model": "m1", "output": "A", "log_odds": -1.5}, {"model": "m2", "output": "B", "log_odds": -9}]
    found = only({"instruction": "Q", "outputs": outputs, "labeller": "ann"}, RANKINGS)
    assert [(one.text, one.level, one.score, one.model) for one in found.answers] == [
        ("A", 1, -1.5, "m1"),
        ("B", 0, -9.0, "m2"),
    ]
    assert found.labeller == "ann"


def test_an_instruction_and_its_input_are_one_prompt():
    record = {"instruction": "Sum up.", "input": "A text.", "output": "Text."}
    assert only(record, DEMONSTRATIONS).prompt[0].text == "Sum up.\n\nA text."
    record = {"instruction": "I", "instances": [{"input": "1", "output": "x"}, {"input": "2", "output": ""}]}
    found = [found for found, _ in conversations_in(record, "self_instruct", DEMONSTRATIONS)]
    assert found[0].prompt[0].text == "I\n\n1"
    assert found[1].reason == "empty_turn"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [USER]}, "no_answer"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty_turn"),
        ({"messages": "text"}, "roles_do_not_alternate|no_answer"),
        ({"instruction": "I", "instances": []}, "no_answer"),
        ({"instruction": 3, "output": "x"}, "malformed"),
        ({"prompt": "Q", "completion": 4}, "malformed"),
    ],
)
def test_unusable_demonstrations_are_named(record, reason):
    with pytest.raises(UnusableRecord, match=reason):
        only(record, DEMONSTRATIONS)


def test_pairs_with_different_prompts_are_named():
    record = {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: R\n\nAssistant: A"}
    with pytest.raises(UnusableRecord, match="different_prompts"):
        only(record, RANKINGS)


def test_no_record_is_a_fault_of_ours():
    rng = random.Random(7)
    scalars = ["", " ", "x\ud800", "\n\nHuman: a\n\nAssistant: b", 0, -1.5, 10**400, float("nan"), True, None]
    names = [*FIELDS, "outputs", "responses", "text", "rank", "score", "role", "content", "score_chosen", "model"]

    def value(depth):
        kind = rng.randrange(4) if depth else 0
        if kind == 0:
            return rng.choice([*scalars, "user", "assistant", "system", "tool"])
        if kind == 1:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        if kind == 2:
            return {"role": rng.choice(["user", "assistant", "x"]), "content": value(depth - 1)}
        return {rng.choice(names): value(depth - 1) for _ in range(rng.randrange(5))}

    seen = Counter()
    for _ in range(20_000):
        record = {rng.choice(names): value(3) for _ in range(rng.randrange(6))}
        shape = shape_of(record)
        for settings in (DEMONSTRATIONS, RANKINGS, PROMPTS) if shape else ():
            for found, _ in conversations_in(record, shape, settings):
                assert isinstance(found, Conversation | UnusableRecord)
                seen[shape, isinstance(found, Conversation)] += 1
                if isinstance(found, Conversation):
                    json.dumps(as_document(found, "conversation").metadata).encode()
    assert {shape for shape, _ in seen} == set(SHAPES)
    assert sum(n for (_, usable), n in seen.items() if usable) > 100


def test_fields_can_have_other_names():
    record = renamed({"question": "Q", "answer": "A", "topic": "t"}, {"prompt": "question", "completion": "answer"})
    assert shape_of(record) == "prompt_completion"
    assert unused_fields(record, "prompt_completion") == ["topic"]
