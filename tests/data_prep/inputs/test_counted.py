"""A reader that fails costs the rest of its file, which is counted."""

from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import CUT_SHORT, REASON, Quarantine
from data_prep.documents.records import Dropped
from data_prep.inputs.counted import CountedFile


def test_a_failing_reader_gives_a_last_record(tmp_path):
    path, tally = tmp_path / "a.jsonl", Tally("read")
    path.write_text("x" * 100)

    def records():
        yield "one"
        raise ValueError("a fault")

    with Quarantine("s", [path], [tmp_path / "out"]) as quarantine:
        file = CountedFile(path, path, tally, quarantine)
        for record in file.to_failure(records()):
            if isinstance(record, Dropped):
                file.drop(record)
            else:
                file.keep(10)
        facts = file.facts()
    assert tally.counts().dropped == {REASON: 1}
    assert facts["records"] == 1
    assert facts[CUT_SHORT]
    assert (tmp_path / "out.quarantine").exists()
