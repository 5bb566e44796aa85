"""Document n of a token file is found among the last shards; tests/launch/runs/test_audited.py reads the tokens too."""

import json

import pytest

from data_prep.corpus.corpus import CORPUS_FILE
from data_prep.corpus.split import SplitConfig
from data_prep.documents.shards import Document, write_shard
from data_prep.reports.origins import sources_of
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
SPLIT = SplitConfig(0.3, 5)


@pytest.fixture
def corpus(tmp_path):
    """The last shards of a run of 40 documents in two shards, and the description of its corpus."""
    ids = [f"d{n}" for n in range(40)]
    work = tmp_path / "work"
    (work / "extract").mkdir(parents=True)
    steps = [{"stage": "extract", "ending": ".jsonl.zst", "names": ["a", "b"]}]
    (work / "steps.json").write_text(json.dumps({"finished": True, "steps": steps}))
    for name, part in (("a", ids[:15]), ("b", ids[15:])):
        with write_shard(work / "extract" / f"{name}.jsonl.zst") as write:
            for i in part:
                write(Document(i, f"text of {i}", {"url": f"https://example.org/{i}"} if i != "d3" else {}))
    n_validation = sum(map(SPLIT.is_validation, ids))
    description = {
        "recipe": {"output": {"validation_fraction": 0.3, "seed": 5}},
        "splits": {"training": {"documents": 40 - n_validation}, "validation": {"documents": n_validation}},
    }
    (tmp_path / CORPUS_FILE).write_text(json.dumps(description))
    return tmp_path


@pytest.mark.parametrize("split", ["train", "validation"])
def test_documents_have_the_order_of_the_token_files(corpus, split):
    expected = sorted(
        (f"d{n}" for n in range(40) if SPLIT.is_validation(f"d{n}") == (split == "validation")), key=SPLIT.order
    )
    found = sources_of(corpus, corpus / "work", split=split, documents=range(len(expected)))
    assert [found[n].id for n in range(len(expected))] == expected
    for source in found.values():
        assert source.url == ("" if source.id == "d3" else f"https://example.org/{source.id}")
        assert source.shard.name == ("a.jsonl.zst" if int(source.id[1:]) < 15 else "b.jsonl.zst")


def test_shards_of_another_run_are_refused(corpus):
    (corpus / "work/extract/b.jsonl.zst").unlink()
    with write_shard(corpus / "work/extract/b.jsonl.zst") as write:
        write(Document("other", "text"))
    with pytest.raises(ConfigError, match=r"another run made this corpus"):
        sources_of(corpus, corpus / "work", split="train", documents=[0])
    (corpus / "work/extract/b.jsonl.zst").unlink()
    with pytest.raises(ConfigError, match=r"damaged \(missing\). Run `triaxial prepare` again"):
        sources_of(corpus, corpus / "work", split="train", documents=[0])
    with pytest.raises(ConfigError, match=r"test is no split"):
        sources_of(corpus, corpus / "work", split="test", documents=[0])
