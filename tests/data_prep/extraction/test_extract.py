"""Extract the texts of records, in their order, and compare them with gold texts."""

import json
import random
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from data_prep.documents.quarantine import quarantine_path, read_quarantine
from data_prep.documents.records import Dropped, Page
from data_prep.documents.shards import Document, read_shard
from data_prep.extraction.extract import extract_file, extract_task, extract_texts
from data_prep.extraction.page_text import ExtractConfig, page_text
from data_prep.inputs.config import InputConfig
from data_prep.readers import readers
from data_prep.readers.readers import read_records

pytest.importorskip("resiliparse", reason="the extra 'data' is not installed")

SHARED = Path(__file__).parents[4] / "shared/data"
GOLD = SHARED / "html/aeb-ground-truth.json"


def page(name: str, html: bytes, charset: str | None = None) -> Page:
    return Page(name, html, charset, True, {})


def test_the_child_process_gives_the_texts_of_page_text_in_the_order_of_the_records():
    texts = {f"p{n}": f"<p>{'Ein längerer Absatz, Nummer ' * 40} {n}</p>".encode() for n in range(80)}
    records = [page(name, html) for name, html in texts.items()]
    records[10:10] = [Dropped("not_a_page", 7, "dropped"), Document("given", "a text as it is \t\n")]
    found = list(extract_texts(records, ExtractConfig()))
    assert [record.id for record, _ in found] == [record.id for record in records]
    assert {record.id: text for record, text in found if isinstance(record, Page)} == {
        name: page_text(html, None, True, ExtractConfig()) for name, html in texts.items()
    }
    assert found[11][1] == "a text as it is \t\n"


def test_a_damaged_file_tells_how_much_of_it_is_missing(tmp_path):
    """4,000 lines in four frames, of which the second is damaged and the fourth cut off."""
    zstandard = pytest.importorskip("zstandard")
    lines = [json.dumps({"id": str(n), "text": f"{n} {random.Random(n).randbytes(150).hex()}"}) for n in range(4000)]
    pack = zstandard.ZstdCompressor(write_checksum=True).compress
    frames = [bytearray(pack("\n".join([*lines[n : n + 1000], ""]).encode())) for n in range(0, 4000, 1000)]
    frames[1][len(frames[1]) // 2] ^= 8
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join([*frames[:3], frames[3][: len(frames[3]) // 2]]))
    config = extract_task(InputConfig(paths=("-",)), ExtractConfig())
    result = extract_file(config, (path,), (tmp_path / "shard", tmp_path / "trace"))
    ids = [int(document.id) for document in read_shard(tmp_path / "shard")]
    assert ids == [*range(1000), *range(2000, max(ids) + 1)]
    assert 3300 < max(ids) < 3500
    assert result.counts[0].dropped == {"damaged": 1, "truncated": 1}
    about = result.facts["unread"]
    assert (about["path"], about["file_bytes"]) == (str(path), path.stat().st_size)
    assert about["unread_bytes"] == len(frames[1])
    assert abs(about["records"] - 1000) < 50
    assert about["reason"] == "damaged"


def test_a_reader_that_fails_tells_how_much_of_the_file_is_missing(tmp_path, monkeypatch):
    """A fault in our own reader, at record 1,000 of 4,000, is counted and leaves the size of the rest."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": f"{n} {'word ' * 80}"}) + "\n" for n in range(4000)))
    real = readers._json_document

    def failing(part, *others):
        if b'"id": "1000"' in part.data:
            raise ZeroDivisionError("a fault of the reader")
        return real(part, *others)

    monkeypatch.setattr(readers, "_json_document", failing)
    config = extract_task(InputConfig(paths=("-",)), ExtractConfig())
    result = extract_file(config, (path,), (tmp_path / "shard", tmp_path / "trace"))
    assert result.counts[0].dropped == {"quarantined": 1}
    assert result.facts["cut_short"]
    about = result.facts["unread"]
    assert 0.74 < about["unread_bytes"] / path.stat().st_size < 0.76
    assert 2980 < about["records"] < 3030
    (entry,) = read_quarantine(quarantine_path(tmp_path / "shard"))
    assert entry["exception"] == "ZeroDivisionError: a fault of the reader"
    assert entry["where"].endswith("in failing")


def shingles(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+", text)
    return Counter(tuple(words[i : i + 4]) for i in range(max(len(words) - 3, 1)) if words)


def scores(pairs: list[tuple[str, str]]) -> tuple[float, float, float]:
    """Return (F1, precision, recall) of (gold, found) texts by runs of four words.

    As in scrapinghub's benchmark: precision and recall of each page, their means over the pages, F1 of the two means.
    """
    precisions, recalls = [], []
    for gold, found in ((shingles(gold), shingles(found)) for gold, found in pairs):
        both = (gold & found).total()
        if found:
            precisions.append(both / found.total())
        if gold:
            recalls.append(both / gold.total())
    precision, recall = statistics.mean(precisions), statistics.mean(recalls)
    return 2 * precision * recall / (precision + recall), precision, recall


def test_the_score_of_known_texts():
    assert scores([("a b c d e", "a b c d e"), ("a b c d", "x y a b c d")]) == pytest.approx((0.8, 2 / 3, 1.0))
    assert scores([("a b", "a b"), ("a b c d e f", "a b c d")])[2] == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
@pytest.mark.parametrize(("method", "least_f1"), [("resiliparse", 0.91), ("trafilatura", 0.95)])
def test_real_pages_against_their_gold_text(method, least_f1):
    """Score the 91 of the benchmark's 181 news and blog pages that we have; all of them gave .916 and .962."""
    pytest.importorskip(method, reason="its extra is not installed")
    gold = {entry["url"]: entry["articleBody"] for entry in json.loads(GOLD.read_text()).values()}
    records = read_records(SHARED / "warc/aeb-00000.warc.gz", InputConfig(paths=("x",)))
    found = list(extract_texts(records, ExtractConfig(method=method)))
    pairs = [(gold[record.metadata["url"]], text) for record, text in found]
    assert len(pairs) == 91
    f1, precision, recall = scores(pairs)
    print(f"{method}: F1 {f1:.3f} precision {precision:.3f} recall {recall:.3f}")
    assert f1 > least_f1
