"""Read Parquet files in a child process."""

import pytest

from data_prep.documents.records import Dropped, Unread
from data_prep.readers.parquet_files import check_columns, read_parquet
from gpt.errors import ConfigError

arrow = pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")
parquet = pytest.importorskip("pyarrow.parquet")


def read(path, text_field="text", max_record_bytes=50):
    return list(read_parquet(path, text_field, "id", max_record_bytes=max_record_bytes))


def test_rows_become_documents_or_reasons(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"id": ["a", "b", "c"], "text": ["one", None, "y" * 99], "n": [1, 2, 3]}), path)
    first, *dropped = read(path)
    assert (first.id, first.text) == ("a", "one")
    assert [(type(row), row.reason) for row in dropped] == [(Dropped, "malformed"), (Dropped, "too_large")]
    (missing,) = read(path, text_field="body")
    assert (missing.reason, missing.unread) == ("malformed", Unread(0, 3))
    message = r"no column 'body' \(it has: id, text, n\)"
    with pytest.raises(ConfigError, match=message):
        check_columns(path, "body", "id")
    check_columns(path, "text", "id")
    path.write_bytes(b"PAR1 nothing")
    (damaged,) = read(path)
    assert (damaged.reason, damaged.unread) == ("damaged", Unread(12))
    assert damaged.detail.startswith("not a readable Parquet file: ")
    check_columns(path, "text", "id")


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path):
    path = tmp_path / "a.parquet"
    table = arrow.table({"text": [f"row {n}, which no other equals: {n * 7919}" for n in range(3000)]})
    parquet.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    group = parquet.ParquetFile(path).metadata.row_group(3).column(0)
    data[group.data_page_offset : group.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    rows = read(path, max_record_bytes=1000)
    (gap,) = [row for row in rows if isinstance(row, Dropped)]
    assert [row.text.split(",")[0] for row in rows if row is not gap] == [
        f"row {n}" for n in range(3000) if not 1500 <= n < 2000
    ]
    assert (gap.reason, gap.unread) == ("damaged", Unread(0, 500))
    assert gap.detail.startswith("500 rows from here on: ")
    assert gap.id.endswith("@1500")


def test_a_flipped_bit_in_a_text_costs_one_row(tmp_path):
    """Pages without compression have no checksum, so the bad letter reaches the decoding of UTF-8."""
    path, texts = tmp_path / "a.parquet", [f"number {n}: " + "ä" * 20 for n in range(100)]
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    parquet.write_table(arrow.table({"text": texts}), path, store_schema=False, **options)
    data = bytearray(path.read_bytes())
    data[data.index(texts[50].encode()) + 12] ^= 0x40
    path.write_bytes(data)
    rows = read(path, max_record_bytes=100)
    assert [getattr(row, "reason", "") for row in rows] == [*[""] * 50, "malformed", *[""] * 49]
