"""A run of four data ranks resumes on other layouts and fewer ranks, and back: no sample is lost or read twice."""

import json
import shutil
from collections import Counter

import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.health.weight_digests import weight_digests

SEQ_LEN, SEQUENCES = 64, 8  # per step
LAYOUTS = {
    "data 2": {"data": 2},
    "one": {},
    "tensor 2 x data 2": {"tensor": 2, "data": 2},
    "pipeline 2 x data 2": {"pipeline": 2, "data": 2},
    "tensor 2 x pipeline 2": {"tensor": 2, "pipeline": 2},
}


class Journey:
    """A run of four data ranks, from whose checkpoint of one step other runs resume."""

    def __init__(self, watched_ranks, corpus, folder):
        self.watched_ranks, self.corpus, self.folder = watched_ranks, corpus, folder
        self.data = TrainingData(
            DataConfig(tokenizer="none", train=(CorpusConfig(str(corpus.folder / "train")),), seq_len=SEQ_LEN),
            seed=3,
            vocab_size=512,
        )

    def plan(self, name, axes, *, steps, every, directory):
        nproc = axes.get("tensor", 1) * axes.get("pipeline", 1) * axes.get("data", 1)
        words = [self.corpus.recipe, "--run.directory", directory, "--metrics.wandb", "disabled"]
        words += ["--train.total_tokens", steps * SEQUENCES * SEQ_LEN, "--train.validation_tokens", 64]
        words += ["--checkpoint.every_tokens", every * SEQUENCES * SEQ_LEN, "--checkpoint.keep_last", 9]
        words += [word for axis, size in axes.items() for word in (f"--parallel.{axis}", size)]
        return {"name": name, "nproc": nproc, "words": [*map(str, words)], "digests": True}

    def launch(self, plan):
        seen = self.watched_ranks.launch(self.folder, plan, timeout_s=250 * len(plan))
        assert all(one["status"] == [0] * len(one["ranks"]) for one in seen.values()), seen
        return seen

    def check(self, run, *, first, steps, source, reference):
        """Check the ranks of one run: they started from the checkpoint `source` bit for bit, had the reference's losses
        from step `first` on, and exactly one data rank read each sample of each step, once."""
        stored = weight_digests(read_tensors(verify_checkpoint(source)))
        began = [rank[0]["began"] for rank in run["ranks"]]
        assert set().union(*began) == stored.keys(), "all tensors, over the stages"
        assert all(stored[name] == digest for tensors in began for name, digest in tensors.items())
        assert {len(rank) for rank in run["ranks"]} == {steps - first}
        worst = 0.0
        for step in range(first, steps):
            lines = [rank[step - first] for rank in run["ranks"]]
            read = {line["data_rank"]: line["tokens"] for line in lines}
            assert all(read[line["data_rank"]] == line["tokens"] for line in lines), "the ranks of one batch share it"
            samples = Counter(tuple(row) for rows in read.values() for row in rows)
            expected = self.data.read(range(step * SEQUENCES, (step + 1) * SEQUENCES)).tokens.tolist()
            assert samples == Counter(map(tuple, expected)), step
            loss, wanted = (float.fromhex(text) for text in (lines[0]["loss"], reference[step]["loss"]))
            worst = max(worst, abs(loss - wanted))
        assert worst <= 1e-5, "nats"
        return worst


@pytest.fixture
def journey(watched_ranks, tiny_corpus, tmp_path):
    return Journey(watched_ranks, tiny_corpus, tmp_path)


def copied(run, step, to):
    """Make a run directory with one checkpoint of another run; return both."""
    name = f"step-{step:09}"
    shutil.copytree(run / "checkpoints" / name, to / "checkpoints" / name)
    return to / "checkpoints" / name


def test_four_data_ranks_resume_as_tensor_and_data_ranks(journey):
    first = journey.plan("four", {"data": 4}, steps=6, every=3, directory=journey.folder / "run")
    reference = journey.launch([first])["four"]["ranks"][0]
    source = copied(journey.folder / "run", 3, journey.folder / "moved")
    second = journey.plan("other", LAYOUTS["tensor 2 x data 2"], steps=6, every=9, directory=journey.folder / "moved")
    seen = journey.launch([second])
    journey.check(seen["other"], first=3, steps=6, source=source, reference=reference)


@pytest.mark.rehearse
def test_100_steps_over_every_layout_and_back(journey):
    """Saved on data 4 at step 20 of 120; then 50 steps on another layout, and 50 on data 4 again."""
    kept, turn, end = 20, 70, 120
    plan = [journey.plan("four", {"data": 4}, steps=end, every=kept, directory=journey.folder / "run")]
    reference = journey.launch(plan)["four"]["ranks"][0]
    sources, plan = {}, []
    for name, axes in LAYOUTS.items():
        directory = journey.folder / name.replace(" ", "-")
        sources[name] = copied(journey.folder / "run", kept, directory)
        plan.append(journey.plan(f"{name}, on", axes, steps=turn, every=1000, directory=directory))
        plan.append(journey.plan(f"{name}, back", {"data": 4}, steps=end, every=1000, directory=directory))
    seen = journey.launch(plan)
    worst = {}
    for name, source in sources.items():
        spans = {"on": (kept, turn, source), "back": (turn, end, source.with_name(f"step-{turn:09}"))}
        for way, (first, steps, begin) in spans.items():
            run = seen[f"{name}, {way}"]
            worst[f"{name}, {way}"] = journey.check(run, first=first, steps=steps, source=begin, reference=reference)
    print(json.dumps({"greatest difference of a loss, nats": worst}))
