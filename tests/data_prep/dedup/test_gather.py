"""The rows of all shards are gathered into groups, whose index describes them."""

import numpy as np
import pytest
from rich.console import Console

from data_prep.dedup.exact import DIGESTS, GATHER, ROW, DigestTask
from data_prep.dedup.gather import describe_shards, fields_of, gather_rows
from data_prep.dedup.index import MAX_ROWS, OWN, corpus_of, position, read_index
from data_prep.dedup.sorted_rows import Limits
from data_prep.documents.shards import Document, write_shard
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.tasks import FinishedTask, Task
from data_prep.execution.workspace import Workspace
from gpt.errors import ConfigError

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def test_groups_have_all_rows_with_positions_in_the_corpus(tmp_path, prose):
    shards, limits = {}, Limits(shards_per_group=2)
    for number in range(5):
        shards[f"s{number}"] = tmp_path / f"{number}.jsonl.zst"
        with write_shard(shards[f"s{number}"]) as write:
            for row in range(number):
                write(Document(f"{number}-{row}", prose(10 * number + row, 2)))
    with Workspace(tmp_path / "work", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
        run = ShardRun(workspace)
        described = describe_shards(run, DIGESTS, DigestTask(False, limits), shards)
        gathered = gather_rows(run, GATHER, described, kind="exact", setting={"a": 1}, dtype=ROW, limits=limits)
        assert gathered.names == tuple(shards)
        assert gathered.groups() == [range(3), range(3, 5)], "sqrt(5), rounded up"
        index = read_index(gathered.index)
        assert (index.kind, index.setting, index.folder) == ("exact", {"a": 1}, DIGESTS.name)
        assert [shard.documents for shard in index.shards] == [0, 1, 2, 3, 4]
        rows = [np.fromfile(workspace.folder / group.path, ROW) for group in index.groups]
        assert [group.bytes for group in index.groups] == [part.nbytes for part in rows]
        expected = [[position(shard, row) for shard in group for row in range(shard)] for group in gathered.groups()]
        assert [sorted(part["position"].tolist()) for part in rows] == expected
        assert all((corpus_of(part["position"]) == OWN).all() for part in rows)
        assert all((np.diff(part["high"].astype(object)) >= 0).all() for part in rows)
        assert gathered.n_rows == 10
        paths = tuple(tmp_path / f"s{ending}" for ending in (".rows", ".about", ".notes"))
        large = FinishedTask(Task(None, (), paths), [], {"documents": MAX_ROWS + 1}, 0.0)
        with pytest.raises(ConfigError, match="a file has 1,073,741,825 documents, but at most 1,073,741,824 can be"):
            gather_rows(run, GATHER, [large], kind="exact", setting={}, dtype=ROW, limits=limits)


def test_fields_give_the_row_type_back():
    assert np.dtype(list(fields_of(ROW))) == ROW
