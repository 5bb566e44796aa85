"""A document on which a stage fails is named, kept aside and counted; the others go on; too many end the stage."""

import json
from collections import Counter

import pytest

from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import (
    FailureCount,
    NumberedDocument,
    Quarantine,
    QuarantineConfig,
    failed_rows,
    quarantine_path,
    read_quarantine,
)
from data_prep.documents.shards import Document
from data_prep.documents.traces import read_trace, write_trace
from gpt.errors import ConfigError


class Panic(BaseException):
    """As a panic of a Rust library: no Exception."""


def fail_on_odd(document):
    number = int(document.text)
    if number % 2:
        raise {1: ValueError, 3: RecursionError, 5: OverflowError, 7: Panic}[number]("a reason\nof two lines")
    return number


@pytest.fixture
def opened(tmp_path):
    (tmp_path / "in").mkdir()
    with Quarantine("double", [tmp_path / "in/a.jsonl.zst"], [tmp_path / "out"]) as quarantine:
        yield quarantine


def test_failed_documents_are_set_aside_and_counted(tmp_path, opened):
    documents = [Document(f"id{n}", str(n), {"url": f"http://x/{n}"}) for n in range(8)]
    with write_trace(tmp_path / "trace") as trace:
        tally = Tally("double", trace)
        found = [(document.id, number) for document, number in opened.each(documents, fail_on_odd, tally)]
    opened.__exit__()
    assert found == [("id0", 0), ("id2", 2), ("id4", 4), ("id6", 6)]
    aside = list(read_quarantine(quarantine_path(tmp_path / "out")))
    assert [entry["exception"].split(":")[0] for entry in aside] == [
        "ValueError",
        "RecursionError",
        "OverflowError",
        "Panic",
    ]
    assert aside[0].pop("where").startswith("test_quarantine.py:")
    assert aside[0] == {
        "stage": "double",
        "shard": "in/a.jsonl.zst",
        "record": 1,
        "id": "id1",
        "url": "http://x/1",
        "exception": "ValueError: a reason of two lines",
        "bytes": 1,
        "text": "1",
        "metadata": {"url": "http://x/1"},
    }
    assert tally.counts().dropped == {"quarantined": 4}
    assert [drop.id for drop in read_trace(tmp_path / "trace")] == ["id1", "id3", "id5", "id7"]


def test_of_a_failed_batch_only_the_failed_documents_are_set_aside(tmp_path, opened):
    batches = [[NumberedDocument(f"id{n}", str(n), {}, 10 * n) for n in some] for some in ((0, 2), (3, 4), (6,))]
    calls = Counter()

    def function(batch):
        calls[len(batch)] += 1
        return [fail_on_odd(document) for document in batch]

    found = [number for _, numbers in opened.each_batch(batches, function) for number in numbers]
    opened.__exit__()
    assert found == [0, 2, 4, 6]
    assert calls == {2: 2, 1: 3}
    assert failed_rows([quarantine_path(tmp_path / "out")]) == {30}


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a setting"),
        OSError(28, "disk full"),
        KeyboardInterrupt(),
        MemoryError(),
        RuntimeError("can't start new thread"),
    ],
)
def test_faults_that_are_not_the_documents_end_the_task(tmp_path, opened, error):
    def function(document):
        raise error

    with pytest.raises(type(error)):
        list(opened.each([Document("a", "1")], function))
    assert not quarantine_path(tmp_path / "out").exists()


def test_too_many_failed_documents_stop_the_stage(tmp_path, opened):
    list(opened.each([Document("a", "1")], fail_on_odd))
    opened.__exit__()
    (tmp_path / "quarantine/double").mkdir(parents=True)
    quarantine_path(tmp_path / "out").rename(tmp_path / "quarantine/double/a.jsonl")

    def count(n_failed, n_documents, *, n_tasks=1, cut_short=False, max_share=0.1):
        config = QuarantineConfig(max_share=max_share, min_documents=5)
        failures = FailureCount(config, tmp_path, "double", n_tasks=n_tasks)
        failures.add(tmp_path / "out", n_failed=n_failed, n_documents=n_documents, cut_short=cut_short)
        failures.check()

    (tmp_path / "out").touch()
    for n_failed, n_documents in ((5, 6), (10, 100), (0, 0), (5, 0)):
        count(n_failed, n_documents)
    count(5, 5, n_tasks=2)
    count(5, 5, max_share=1)
    count(1, 100, n_tasks=10, cut_short=True)
    assert (tmp_path / "out").exists()
    with pytest.raises(
        ConfigError, match=r"stage 'double' failed on 11 of about 100 documents.*a of in/.*\(ValueError"
    ):
        count(11, 100)
    assert not (tmp_path / "out").exists(), "the task is undone, so that it runs again"
    with pytest.raises(ConfigError, match=r"failed on 5 of about 5 documents.*run the same command again"):
        count(5, 5)
    with pytest.raises(ConfigError, match=r"could not read 1 of 9 files to their end"):
        count(1, 100, n_tasks=9, cut_short=True)
    with pytest.raises(ConfigError, match=r"quarantine\.max_share = 2 is invalid"):
        QuarantineConfig(max_share=2)


def test_text_that_utf8_cannot_represent_is_set_aside_too(tmp_path, opened):
    list(opened.each([Document("a", "\ud800")], lambda document: document.text.encode()))
    opened.__exit__()
    (line,) = quarantine_path(tmp_path / "out").read_bytes().splitlines()
    assert json.loads(line)["text"] == "\ufffd"
