"""Read Parquet files in a child process."""

import pytest

from data_prep.documents.records import Dropped
from data_prep.readers.parquet_files import read_parquet
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
    with pytest.raises(ConfigError, match=r"no column 'body' \(it has: id, text, n\)"):
        read(path, text_field="body")
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(ConfigError, match="not a readable Parquet file"):
        read(path)


def test_a_file_that_is_damaged_further_on_gives_the_rows_before_that(tmp_path):
    path = tmp_path / "a.parquet"
    table = arrow.table({"text": [f"row {n}, which no other equals: {n * 7919}" for n in range(3000)]})
    parquet.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    group = parquet.ParquetFile(path).metadata.row_group(3).column(0)
    data[group.data_page_offset : group.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    *rows, last = read(path, max_record_bytes=1000)
    assert 1000 <= len(rows) <= 1500
    assert (last.reason, last.detail.startswith("the rows from here on: ")) == ("damaged", True)
    assert last.id.endswith(f"@{len(rows)}")
