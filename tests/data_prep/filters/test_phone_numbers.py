"""Find telephone numbers, those in national formats too."""

from pii_cases import HARD, MISSED, masked_whole

from data_prep.filters.phone_numbers import phones


def test_hard_cases_are_masked_whole_and_nothing_around_them():
    missed = [case[1] for case, whole in zip(HARD["phone"], masked_whole("phone"), strict=True) if not whole]
    assert missed == MISSED["phone"]


def test_a_word_makes_a_national_number_of_digits():
    for number in ("0171 1234567", "412 268 7393", "4122687393"):
        assert phones(f"room {number}", False) == []
        assert phones(f"mobile: {number}", False) == [(8, 8 + len(number))]
