"""Messages, plain texts and transcripts give turns; other content is named."""

import pytest

from data_prep.conversations.conversation import Turn, UnusableRecord
from data_prep.conversations.turns import transcript, turns_of


def test_texts_and_messages_give_turns():
    assert turns_of("hello", "prompt") == (Turn("user", "hello"),)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts, "name": "z"}]
    assert turns_of(messages, "messages") == (Turn("system", "x"), Turn("user", "ab"))
    assert turns_of("lone \ud800 surrogate", "prompt")[0].text == "lone \ufffd surrogate"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "malformed"),
        ({"role": "user", "content": "x"}, "malformed"),
        ([{"content": "x"}], "malformed"),
        ([{"role": "user", "content": 3}], "malformed"),
        ([{"role": "tool", "content": "x"}], "unknown_role"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "not_text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not_text"),
    ],
)
def test_other_content_is_named(value, reason):
    with pytest.raises(UnusableRecord) as error:
        turns_of(value, "messages")
    assert error.value.reason == reason


def test_a_transcript_is_cut_at_its_marks():
    found = transcript("\n\nHuman: Hi\nthere\n\nAssistant: Hello.\n\nHuman: Bye\n\nAssistant:")
    roles = [("user", "Hi\nthere"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "")]
    assert [(turn.role, turn.text) for turn in found] == roles
    with pytest.raises(UnusableRecord, match="malformed"):
        transcript("Human: Hi")
