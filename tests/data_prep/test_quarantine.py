"""No document ends a run: each stage sets aside a text on which it fails, and the others go on."""

import pytest

from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import TOKENIZE, TokenizerConfig
from data_prep.corpus.tokenizer_training import SAMPLE, TRAIN, SampleTask, TrainTask
from data_prep.decontamination.decontaminate import CUT, CUT_ROW, DecontaminateConfig
from data_prep.decontamination.ngrams import join, scan_grams
from data_prep.dedup import exact, fuzzy
from data_prep.dedup.exact import COPY, DIGESTS, DigestTask, ExactConfig
from data_prep.dedup.fuzzy import FuzzyConfig, SignTask
from data_prep.dedup.signatures import SIGNATURES
from data_prep.dedup.sorted_rows import Limits
from data_prep.documents.arrays import write_array
from data_prep.documents.quarantine import QuarantineConfig, quarantine_path, read_quarantine
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.tasks import Task
from data_prep.execution.workspace import Workspace
from data_prep.filters.language import LANGUAGE, LanguageConfig
from data_prep.filters.pareto import CLASSIFY, KeepRule
from data_prep.filters.pii import PII, PiiConfig
from data_prep.filters.quality import QUALITY, QualityConfig
from data_prep.filters.quality_classifier import N_BUCKETS, QualityModel, save_model
from data_prep.quality_training.sample import FEATURES, SampleConfig
from gpt.errors import ConfigError

zstandard = pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
np = pytest.importorskip("numpy")
SPLIT = SplitConfig(validation_fraction=0.01, seed=0)
# JSON can express half a character. Readers mend it, so only a fault of ours would write it, as other text that fails.
BAD = b'{"id":"bad","text":"the \\ud800 harbour and the old miller of the village","metadata":{"url":"http://x"}}\n'


def bad_shard(path, texts):
    """Write a shard whose second document makes every stage fail."""
    with write_shard(path) as write:
        for n, text in enumerate(texts):
            write(Document(f"id{n}", text))
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(zstandard.compress(b"".join([lines[0], BAD, *lines[1:]])))
    return path


@pytest.fixture
def shard(tmp_path, prose):
    return bad_shard(tmp_path / "in.jsonl.zst", [prose(n) for n in range(3)])


def test_each_stage_sets_a_failed_document_aside(tmp_path, shard):
    model, cuts = tmp_path / "m.safetensors", tmp_path / "cuts.npy"
    save_model(QualityModel(np.zeros(N_BUCKETS), 0.0, {}), model)
    write_array(cuts, np.zeros(0, CUT_ROW))
    tokenizer = tmp_path / "t.model"
    TRAIN.function(TrainTask(TokenizerConfig(vocab_size=400), SPLIT), (shard,), (tokenizer,))
    signs = SignTask(FuzzyConfig().setting, Limits())
    tasks = [
        (LANGUAGE, LanguageConfig(), (shard,), 2),
        (QUALITY, QualityConfig(rules=("gopher_quality",)), (shard,), 2),
        (CLASSIFY, KeepRule("all"), (shard, model), 2),
        (PII, PiiConfig(), (shard,), 2),
        (CUT, DecontaminateConfig(), (shard, cuts), 2),
        (SAMPLE, SampleTask(SPLIT, 2**64), (shard,), 1),
        (DIGESTS, DigestTask(False, Limits()), (shard,), 3),
        (SIGNATURES, signs, (shard,), 3),
        (FEATURES, SampleConfig(0, 10), (shard,), 3),
        (TOKENIZE, SPLIT, (shard, tokenizer), 2),
    ]
    for stage, config, inputs, n_outputs in tasks:
        outputs = tuple(tmp_path / f"{stage.name}.{n}" for n in range(n_outputs))
        result = stage.function(config, inputs, outputs)
        (aside,) = read_quarantine(quarantine_path(outputs[0]))
        assert (aside["stage"], aside["id"], aside["record"]) == (stage.name, "bad", 1)
        assert aside["exception"].startswith("UnicodeEncodeError"), (stage.name, aside)
        if result.counts:
            assert result.counts[0].documents_in == 4, stage.name
            assert result.counts[0].dropped["quarantined"] == 1, stage.name
        if stage in (LANGUAGE, QUALITY, CLASSIFY, PII, CUT):
            assert {"id2"} <= {document.id for document in read_shard(outputs[0])} <= {"id0", "id1", "id2"}


def test_a_failed_document_does_not_shift_the_cuts_of_the_others(tmp_path, shard):
    """Row 1 fails; the text of an evaluation set is in row 2, and only there."""
    cuts = tmp_path / "cuts.npy"
    text = list(read_shard(shard))[2].text
    hits = np.zeros(1, CUT_ROW)
    hits["row"], hits["number"] = 2, join(scan_grams(text, (13,))).numbers[:1]
    write_array(cuts, hits)
    config = DecontaminateConfig(window_characters=0, min_piece_characters=1)
    result = CUT.function(config, (shard, cuts), (tmp_path / "out", tmp_path / "trace"))
    assert result.facts["documents_cut"] == 1
    assert {document.id.split("#")[0] for document in read_shard(tmp_path / "out")} == {"id0", "id1", "id2"}
    assert text not in [document.text for document in read_shard(tmp_path / "out")]


def test_a_document_that_cannot_be_compared_leaves_the_corpus(tmp_path, shard, quiet):
    """The comparison only reads the shards, so the removal after it drops the documents on which it failed."""
    with Workspace(tmp_path / "work", n_workers=1, progress=quiet) as workspace:
        run = ShardRun(workspace)
        shards = {"a": shard}
        copies = exact.find_copies(run, ExactConfig(), shards)
        after = run.map(exact.REMOVAL, COPY, shards, extra_inputs=copies)
        assert [document.id for document in read_shard(after["a"])] == ["id0", "id1", "id2"]
        assert run.counts[-1].dropped == {"quarantined": 1}
        near = bad_shard(tmp_path / "b.jsonl.zst", [document.text for document in read_shard(shard)][::2])
        copies = fuzzy.find_near_copies(run, FuzzyConfig(), {"b": near})
        after = run.map(fuzzy.REMOVAL, fuzzy.NEAR_COPY, {"b": near}, extra_inputs=copies)
        assert "bad" not in [document.id for document in read_shard(after["b"])]
    (aside,) = read_quarantine(tmp_path / "work/quarantine/exact_digests/a.jsonl")
    assert aside["id"] == "bad"
    assert set(run.quarantined) == {"exact_digests", "minhash_signatures"}


def test_a_stage_that_fails_on_too_many_documents_stops(tmp_path, shard, quiet):
    strict = QuarantineConfig(max_share=0.1, min_documents=0)
    for config, n_done in ((strict, 0), (QuarantineConfig(), 1), (strict, 0)):
        with Workspace(tmp_path / "work", n_workers=1, progress=quiet, quarantine=config) as workspace:
            output = workspace.folder / "pii"
            tasks = [Task(PiiConfig(), (shard,), (output / "a.jsonl.zst", output / "a.dropped.jsonl.zst"))]
            if n_done:
                assert len(workspace.run(PII, tasks)) == n_done
            else:
                with pytest.raises(ConfigError, match=r"stage 'pii' failed on 1 of about 4 documents.*UnicodeEncode"):
                    workspace.run(PII, tasks)
                assert not tasks[0].outputs[0].exists(), "the task runs again once the cause is mended"
