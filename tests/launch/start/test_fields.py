"""The fields of the text and of the id."""

import pytest

from launch.start.fields import choose_field, choose_id_field, with_ids


def test_the_text_field_has_a_usual_name_or_most_characters():
    assert choose_field({"url": 500, "content": 300}) == "content"
    assert choose_field({"story_body": 500, "title": 20}) == "story_body"


@pytest.mark.parametrize(
    ("ids", "field"),
    [
        ([], "id"),
        ([None, None, None], "id"),
        ([7], "id"),
        ([1, 2, 3], "id"),
        ([1, 1, 2], "id"),
        (["same"] * 3, ""),
        ([0, 0, 1, 1], "id"),  # passages of two articles, which stay together
    ],
)
def test_an_id_that_all_documents_share_is_not_used(ids, field):
    assert choose_id_field([{"text": "a", "id": name} for name in ids] + ["no object"]) == field


def test_the_ids_of_a_table_are_read_with_its_texts():
    assert with_ids(["text"], ["text", "id", "n"]) == ["text", "id"]
    assert with_ids(["id", "text"], ["id", "text"]) == ["id", "text"]
