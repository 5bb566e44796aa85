"""Each of FineWeb's rules drops the texts that it was made for."""

import pytest
from rule_texts import sentence

from data_prep.documents.words import TextView
from data_prep.filters.fineweb import FineWebConfig, fineweb_reason


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("empty", " \n "),
        ("line_punct_ratio", "\n".join(f"{sentence(i)} without an end {i}" for i in range(10))),
        ("short_line_ratio", "\n".join(f"Short one {i}." for i in range(10))),
        ("char_dup_ratio", "\n".join([sentence(1) + "."] * 2 + [f"{sentence(i)}." for i in range(2, 20)])),
        ("list_ratio", "\n\n\n\n".join(f"Incomprehensibilities internationalization {i}." for i in range(10))),
    ],
)
def test_each_rule_drops_its_texts(reason, text):
    assert fineweb_reason(TextView(text), FineWebConfig())[0] == reason
