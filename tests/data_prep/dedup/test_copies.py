"""Copies are removed by lists, and clusters are counted by size."""

import json

import numpy as np
import pytest

from data_prep.dedup.copies import ClusterSizes, Removal, remove_copies, with_first_of_group
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import read_trace

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def test_a_list_may_end_with_the_last_document(tmp_path, prose):
    """Removal reads its list as a stream along with the shard."""
    documents = [Document(str(i), prose(i, 2)) for i in range(6)]
    with write_shard(tmp_path / "shard") as write:
        for document in documents:
            write(document)
    lines = [[0, "x", None], [4, "y", "wiki"], [5, "x", None]]
    (tmp_path / "list").write_text("".join(json.dumps(line) + "\n" for line in lines))
    remove_copies(Removal("s", "r"), (tmp_path / "shard", tmp_path / "list"), (tmp_path / "out", tmp_path / "trace"))
    assert list(read_shard(tmp_path / "out")) == documents[1:4]
    drops = [(d.id, d.reason, d.detail) for d in read_trace(tmp_path / "trace")]
    assert drops == [
        ("0", "r", "copy of x"),
        ("4", "r_of_other_corpus", "copy of y in wiki"),
        ("5", "r", "copy of x"),
    ]


def test_groups_and_sizes_do_not_depend_on_the_blocks():
    """Groups of 1, 2, 3, 4 and 9 rows, cut into blocks anywhere."""
    rows = np.zeros(19, np.dtype([("label", "<u8"), ("position", "<u8")]))
    rows["label"] = np.repeat([3, 5, 6, 8, 9], [1, 2, 3, 4, 9])
    rows["position"] = np.arange(100, 119)
    for size in (1, 2, 5, 19):
        sizes, new, first = ClusterSizes(), [], []
        blocks = (rows[i : i + size] for i in range(0, 19, size))
        for _, is_new, of_first in with_first_of_group(blocks, ("label",), "position"):
            sizes.add(is_new)
            new += is_new.tolist()
            first += of_first.tolist()
        assert [i for i in range(19) if new[i]] == [0, 1, 3, 6, 10]
        assert first == np.repeat([100, 101, 103, 106, 110], [1, 2, 3, 4, 9]).tolist()
        assert sizes.table() == {"2": 2, "4": 1, "8": 1}
