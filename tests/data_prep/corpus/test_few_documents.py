"""Each split has a document, however few there are."""

import pytest
from rich.console import Console

from data_prep.corpus.few_documents import with_both_splits
from data_prep.corpus.split import SplitConfig
from data_prep.documents.counts import Counts
from data_prep.documents.shards import Document, write_shard
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.workspace import Workspace
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def split_of(tmp_path, names, split) -> SplitConfig:
    shards = {}
    for number, part in enumerate((names[::2], names[1::2])):
        shards[str(number)] = tmp_path / f"{number}.jsonl.zst"
        with write_shard(shards[str(number)]) as write:
            for name in part:
                write(Document(name, f"text of {name}"))
    with Workspace(tmp_path / "work", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
        run = ShardRun(workspace)
        run.counts.append(Counts("extract", len(names), len(names)))
        return with_both_splits(run, split, shards)


@pytest.mark.parametrize("n_documents", [2, 3, 10])
@pytest.mark.parametrize("share", [1e-6, 0.5, 1 - 1e-6])
def test_few_documents_reach_both_splits(tmp_path, n_documents, share):
    names = [f"document {n}" for n in range(n_documents)]
    split = split_of(tmp_path, names, SplitConfig(share, seed=1))
    n_validation = sum(map(split.is_validation, names))
    assert 0 < n_validation < n_documents
    if share == 1e-6:
        assert n_validation == 1, "no more than needed"
    if 0 < sum(map(SplitConfig(share, 1).is_validation, names)) < n_documents:
        assert split == SplitConfig(share, 1), "a share that serves stays"


def test_documents_that_share_an_id_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match="all 5 documents have the id '7', and documents of one id go to one split"):
        split_of(tmp_path, ["7"] * 5, SplitConfig(0.5, 1))


def test_one_document_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="there is one document, and training and validation need one each"):
        split_of(tmp_path, ["a", "a#piece-1"], SplitConfig(0.5, 1))
