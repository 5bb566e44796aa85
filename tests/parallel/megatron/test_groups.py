"""Megatron's process groups, made once for a layout."""


def test_groups_are_made_once_for_a_layout_and_again_for_another(parts):
    for rank in parts:
        kept, made_again, data_ranks = rank["groups"]
        assert kept
        assert made_again
        assert data_ranks == 2
