"""Conversations keep their roles in order, and all of one prompt share its id."""

import pytest

from data_prep.conversations.conversation import (
    Answer,
    Conversation,
    Turn,
    UnusableRecord,
    as_document,
    check_turns,
    conversation_of,
    prompt_id,
    with_answers,
)
from data_prep.corpus.split import SplitConfig
from data_prep.documents.shards import parent_id

U, A, S = "user", "assistant", "system"


def turns(*pairs):
    return tuple(Turn(role, text) for role, text in pairs)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([(U, "a"), (U, "b")], "roles_do_not_alternate"),
        ([(A, "a"), (U, "b")], "roles_do_not_alternate"),
        ([(U, "a"), (S, "b"), (U, "c")], "roles_do_not_alternate"),
        ([(U, "a"), (A, "b")], "roles_do_not_alternate"),
        ([(U, "a"), (A, " \n"), (U, "b")], "empty_turn"),
        ([(U, "")], "empty_turn"),
        ([(S, "a")], "no_prompt"),
        ([], "no_prompt"),
    ],
)
def test_turns_out_of_order_are_named(given, reason):
    with pytest.raises(UnusableRecord) as error:
        check_turns(turns(*given))
    assert error.value.reason == reason


def test_turns_in_order_pass():
    check_turns(turns((S, ""), (U, "a"), (A, "b"), (U, "c")))
    check_turns(turns((U, "a")))


def test_a_document_holds_the_whole_conversation():
    conversation = Conversation(
        turns((S, "be kind"), (U, "Why?")), (Answer("Because.", 1, -2.5, "m"), Answer("No.", 0)), "ann", "7"
    )
    for compared, text in (("prompt", "be kind\n\nWhy?"), ("conversation", "be kind\n\nWhy?\n\nBecause.\n\nNo.")):
        document = as_document(conversation, compared)
        assert conversation_of(document) == conversation
        assert document.text == text


def test_conversations_that_begin_alike_are_in_one_split():
    openings = [f"Tell me about  number {n}" for n in range(200)]
    split = SplitConfig(0.3, seed=5)
    drawn = []
    for text in openings:
        variants = (turns((U, text)), turns((S, "x"), (U, f" {text.upper()}\n")), turns((U, text), (A, "b"), (U, "c")))
        documents = [as_document(Conversation(prompt, (Answer("a"),)), "prompt") for prompt in variants]
        assert {parent_id(document.id) for document in documents} == {prompt_id(variants[0])}
        (is_validation,) = {split.is_validation(document.id) for document in documents}
        drawn.append(is_validation)
    assert 30 < sum(drawn) < 90, "about 60 of 200 are expected"


def test_an_id_that_only_looks_like_a_prompt_keeps_its_own_split():
    assert parent_id("prompt:short#a") == "prompt:short#a"
    assert parent_id("a#piece-3") == "a"


def test_levels_are_renumbered_without_gaps():
    kept = with_answers(Conversation(turns((U, "a"))), [Answer("x", 5), Answer("y", 2), Answer("z", 5)])
    assert [answer.level for answer in kept.answers] == [1, 0, 1]
