"""Write and read traces of dropped documents."""

import pytest

from data_prep.documents.counts import Tally
from data_prep.documents.traces import Drop, read_trace, write_trace

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def test_drops_are_written_in_order_with_step_and_reason(tmp_path):
    with write_trace(tmp_path / "t") as trace:
        first, second = Tally("read", trace), Tally("language", trace)
        first.drop("malformed", 10, "a\n", detail="at byte 7")
        first.keep(5, 5)
        second.drop("other_language", 5, "b\ud800", detail="fr")
    assert list(read_trace(tmp_path / "t")) == [
        Drop("a\n", "read", "malformed", 10, "at byte 7"),
        Drop("b\ufffd", "language", "other_language", 5, "fr"),
    ]
