"""Ranks and scores become levels; contradictions and empty rankings are named."""

import math

import pytest

from data_prep.conversations.conversation import Answer, Conversation, Turn, UnusableRecord
from data_prep.conversations.ranking import (
    MAX_LEVELS,
    JudgedAnswer,
    LeftOut,
    best,
    can_join,
    check_ranking,
    join_pairs,
    rank,
)


def ranked(*pairs, margin=0.0):
    return rank([JudgedAnswer(text, value) for text, value in pairs], tie_margin=margin)


def test_levels_rise_with_the_value_and_equal_values_tie():
    found = ranked(("a", 2.0), ("b", -1.0), ("c", 2.0), ("d", 0.5))
    assert [(answer.text, answer.level) for answer in found.answers] == [("a", 2), ("b", 0), ("c", 2), ("d", 1)]
    assert not found.left_out


def test_near_scores_tie_with_the_lowest_of_them():
    found = ranked(("a", 0.0), ("b", 0.6), ("c", 1.1), ("d", 1.3), ("e", 3.0), margin=1.0)
    assert [answer.level for answer in found.answers] == [0, 0, 1, 1, 2]


def test_equal_texts_count_once_unless_another_answer_is_between():
    found = ranked(("a", 3.0), ("same", 2.0), ("same", 1.0), ("b", 0.0))
    assert [(answer.text, answer.level) for answer in found.answers] == [("a", 2), ("same", 1), ("b", 0)]
    assert found.left_out == (LeftOut("equal_text", 2, 4),)
    found = ranked(("same", 3.0), ("a", 2.0), ("same", 1.0), ("b", 0.0))
    assert [(answer.text, answer.level) for answer in found.answers] == [("a", 1), ("b", 0)]
    assert found.left_out == (LeftOut("contradictory_ranks", 0, 4), LeftOut("contradictory_ranks", 2, 4))


def test_answers_without_text_or_value_are_left_out():
    found = ranked(("a", 1.0), ("  ", 2.0), ("b", None), ("c", math.nan), ("d", 0.0))
    assert [answer.text for answer in found.answers] == ["a", "d"]
    assert [(one.reason, one.number) for one in found.left_out] == [
        ("empty_answer", 1),
        ("unranked", 2),
        ("unranked", 3),
    ]


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([("a", 1.0)], "one_completion"),
        ([("a", 1.0), ("b", 1.0)], "all_tied"),
        ([("a", 1.0), ("a", 0.0)], "one_completion"),
        ([("a", 1.0), ("", 0.0)], "one_completion"),
    ],
)
def test_a_ranking_without_a_pair_is_named(pairs, reason):
    with pytest.raises(UnusableRecord) as error:
        check_ranking(ranked(*pairs).answers, len(pairs))
    assert error.value.reason == reason


def test_a_ranking_with_more_levels_than_token_files_hold_is_named():
    answers = [Answer(str(level), level) for level in range(MAX_LEVELS + 1)]
    check_ranking(answers[1:], MAX_LEVELS)
    with pytest.raises(UnusableRecord, match="32768, at most 32767 are possible") as error:
        check_ranking(answers, len(answers))
    assert error.value.reason == "too_many_levels"


def test_the_best_answer_must_be_one():
    assert best(ranked(("a", 1.0), ("b", 2.0)).answers).text == "b"
    with pytest.raises(UnusableRecord, match="best_is_tied"):
        best(ranked(("a", 2.0), ("b", 2.0), ("c", 0.0)).answers)


def pair(better, worse, prompt="q", labeller=""):
    return Conversation((Turn("user", prompt),), (Answer(better, 1), Answer(worse, 0)), labeller)


def levels(conversation):
    return {answer.text: answer.level for answer in conversation.answers}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (["ab", "ac", "bc"], [{"a": 2, "b": 1, "c": 0}]),
        (["bc", "ab"], [{"a": 2, "b": 1, "c": 0}]),
        (["ab", "ac"], [{"a": 1, "b": 0, "c": 0}]),  # b and c are never compared
        (["ab", "ac", "bd", "cd"], [{"a": 2, "b": 1, "c": 1, "d": 0}]),
        (["ab", "ab"], [{"a": 1, "b": 0}]),
        (["ab", "cd"], [{"a": 1, "b": 0}, {"c": 1, "d": 0}]),  # a and d are not compared by anyone
        (["ab", "cb", "cd"], [{"a": 1, "b": 0}, {"c": 1, "b": 0}, {"c": 1, "d": 0}]),  # nor are a and d here
        (["ab", "bc", "ca"], [{"a": 1, "b": 0}, {"b": 1, "c": 0}, {"c": 1, "a": 0}]),  # a contradiction
    ],
)
def test_pairs_become_a_ranking_if_it_says_no_more_than_they(pairs, expected):
    found = join_pairs([pair(*both) for both in pairs])
    assert [levels(conversation) for conversation, _ in found] == expected
    assert sorted(i for _, members in found for i in members) == list(range(len(pairs)))


def test_pairs_of_another_prompt_or_labeller_are_not_joined():
    assert can_join([], pair("a", "b"))
    assert can_join([pair("a", "b")], pair("b", "c"))
    assert not can_join([pair("a", "b")], pair("b", "c", prompt="other"))
    assert not can_join([pair("a", "b")], pair("b", "c", labeller="somebody"))
    chain = [pair(str(i), str(i + 1)) for i in range(8)]
    assert can_join(chain, pair("0", "8"))
    assert not can_join(chain, pair("8", "9")), "a tenth answer"
    assert not can_join([], Conversation((Turn("user", "q"),), (Answer("a", 1), Answer("b", 1)))), "a tie is no pair"
