"""Sequences share rows. tests/launch/rewards compares the scores with each sequence alone."""

from gpt.post_training.sequence_scores import MIN_ROW_TOKENS, pack, row_tokens_for


def test_a_row_holds_as_many_sequences_as_fit():
    assert pack([3, 4, 3, 10, 1], 10) == [[0, 1, 2], [3], [4]]
    assert pack([], 10) == []


def test_a_row_holds_the_longest_sequence_and_divides_over_tensor_ranks():
    assert row_tokens_for([5, 7], multiple=2) == MIN_ROW_TOKENS
    assert row_tokens_for([5, 1025], multiple=4) == 1028
