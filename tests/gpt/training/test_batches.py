"""The batches of each data-parallel rank, and what a run does with corrupt data.

tests/launch/training/test_damaged_data.py has runs of several ranks.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.sampling import DamagedSamples
from gpt.data.skipped import SkippedData
from gpt.token_files.checksums import DamagedTokens
from gpt.token_files.files import TokenFileWriter
from gpt.training.batches import BatchReader, CorruptDataHandler, damage_of, epochs_read
from gpt.training.config import FaultConfig
from gpt.training.objective import NextToken

SKIP = FaultConfig(on_damaged_data="skip", max_damaged_samples=3)


def readers(run, data, ranks):
    places = [SimpleNamespace(data_rank=rank, data_size=ranks) for rank in range(ranks)]
    return [BatchReader(run, place, data, NextToken()) for place in places]


@pytest.mark.parametrize("skipped", [SkippedData(), SkippedData.stated([(5, 7), (9, 10)])], ids=["all", "skips"])
def test_ranks_share_a_step_in_order_whatever_their_number(small, corpus, skipped):
    run, (data, _) = small.run_of(), small.data_of(corpus)
    for step in range(3):
        whole = readers(run, data, 1)[0].read(step, skipped).inputs
        assert torch.equal(torch.cat([reader.read(step, skipped).inputs for reader in readers(run, data, 2)]), whole)
        expected = data.read(skipped.positions(4 * step, 4)).tokens[:, :-1]
        assert torch.equal(whole, torch.from_numpy(expected))


def test_a_batch_read_ahead_is_used_for_its_step_alone(small, corpus, monkeypatch):
    """As where a GPU is in use. Another step or other skipped data are read again; the last step has no next."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    run, (data, _) = small.run_of(), small.data_of(corpus)
    reads, read = [], data.read
    monkeypatch.setattr(data, "read", lambda positions: reads.append(list(positions)) or read(positions))
    (ahead,), (plain,) = readers(run, data, 1), readers(run, data, 1)
    for step, wanted, skipped in ((1, 1, SkippedData()), (1, 2, SkippedData()), (1, 1, SkippedData.stated([(4, 6)]))):
        pinned.clear()
        ahead.read_ahead(step, SkippedData())
        assert len(pinned) == 3, "inputs, targets and keys wait in pinned memory"
        reads.clear()
        batch = ahead.read(wanted, skipped)
        assert len(reads) == ((step, skipped) != (wanted, SkippedData()))
        assert torch.equal(batch.inputs, plain.read(wanted, skipped).inputs)
    reads.clear()
    ahead.read_ahead(run.steps, SkippedData())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    ahead.read_ahead(1, SkippedData())
    assert reads == []


def test_a_fault_met_ahead_is_left_to_the_read_of_its_step(small, corpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    run, (data, _) = small.run_of(), small.data_of(corpus)
    (reader,) = readers(run, data, 1)

    def fail(positions):
        raise OSError("the disk fails")

    monkeypatch.setattr(data, "read", fail)
    reader.read_ahead(1, SkippedData())
    with pytest.raises(OSError, match="the disk fails"):
        reader.read(1, SkippedData())


def test_a_blank_batch_has_the_shape_of_a_read_one(small, corpus):
    reader = readers(small.run_of(), small.data_of(corpus)[0], 2)[1]
    read, blank = reader.read(0, SkippedData()).tensors(), reader.blank(0, SkippedData()).tensors()
    assert {name: tensor.shape for name, tensor in read.items()} == {name: t.shape for name, t in blank.items()}
    reader.announce(1, SkippedData())


def test_epochs_count_what_was_read(small, corpus):
    run, (data, _) = small.run_of(), small.data_of(corpus)
    assert epochs_read(run, data, small.state_of(run)) == {"numbers": 0.0}
    assert epochs_read(run, data, small.state_of(run, step=3)) == {"numbers": 12 / 249}


# --- corrupt data


@pytest.fixture
def handler_of(small, process_group, damaged):
    """A handler over the damaged corpus, with the events and saves that it asks for."""
    data, _ = small.data_of(damaged)

    def make(faults, *, first_step=0):
        events, saves = [], []
        handler = CorruptDataHandler(
            small.run_of(faults=faults),
            small.engine_of(),
            data,
            first_step=first_step,
            event=lambda kind, text, **fields: events.append((kind, text, fields)),
            save=lambda: saves.append(True),
        )
        return handler, events, saves

    return make


def found_in(data, positions):
    with pytest.raises(DamagedSamples) as error:
        data.read(positions)
    return damage_of(data, positions, error.value)


def bad_position(data):
    """A position whose window lies in the damaged block: a small file is one block, so all do."""
    return found_in(data, np.array([3]))[0]


def test_damage_names_the_position_and_its_documents(small, damaged):
    data, _ = small.data_of(damaged)
    found = found_in(data, np.array([3, 17]))
    assert [damage.position for damage in found] == [3, 17]
    for damage in found:
        place = data.locate(damage.position)
        assert damage.where.startswith(f"corpus 'damaged', window {place.window:,}, document")
        assert "damaged.bin" in damage.what
        assert f"position {damage.position:,} of the data's order" in damage.text


def test_damage_at_an_empty_document_names_it(tmp_path):
    with TokenFileWriter(tmp_path / "tokens", vocab_size=8) as file:
        for ids in ([1, 2], []):
            file.add_document(ids)
    config = DataConfig(
        tokenizer="none", train=(CorpusConfig(str(tmp_path / "tokens")),), seq_len=4, sampling="document"
    )
    data = TrainingData(config, seed=0, vocab_size=8)
    found = damage_of(data, np.array([0, 1]), DamagedSamples(dict.fromkeys((0, 1), DamagedTokens("bad"))))
    wanted = {f"corpus 'tokens', window {number}, document {number}" for number in (0, 1)}
    assert {damage.where for damage in found} == wanted


def test_damaged_samples_are_left_out_and_reported(small, damaged, handler_of):
    data, _ = small.data_of(damaged)
    handler, events, saves = handler_of(SKIP)
    state = small.state_of(handler.run)
    handler.leave_out(state, found_in(data, np.array([17, 3])))
    assert state.skipped.spans == ((3, 4), (17, 18))
    assert [(kind, fields["position"]) for kind, _, fields in events] == [("data_damaged", 3), ("data_damaged", 17)]
    assert all(text.endswith("which is left out") for _, text, _ in events)
    assert not saves


def test_too_many_damaged_samples_end_the_run(small, damaged, handler_of):
    """The limit counts those of the whole run, and no other range that is left out."""
    data, _ = small.data_of(damaged)
    handler, events, saves = handler_of(SKIP)
    state = small.state_of(handler.run, step=2)
    state.skipped = SkippedData.stated([(100, 150)])
    handler.leave_out(state, found_in(data, np.array([3, 17])))
    with pytest.raises(DamagedTokens, match=r"More samples than faults\.max_damaged_samples = 3 .* resumes at step 2"):
        handler.leave_out(state, found_in(data, np.array([5, 6])))
    assert saves == [True], "with what it has learnt since its first step"
    assert events[-1][0] == "data_damaged"


@pytest.mark.parametrize(("first_step", "saved"), [(0, [True]), (2, [])])
def test_a_run_that_stops_at_damage_saves_what_it_has_learnt(small, damaged, handler_of, first_step, saved):
    data, _ = small.data_of(damaged)
    handler, _, saves = handler_of(FaultConfig(), first_step=first_step)
    with pytest.raises(DamagedTokens, match=r"--faults\.on_damaged_data skip"):
        handler.leave_out(small.state_of(handler.run, step=2), [bad_position(data)])
    assert saves == saved


def test_damaged_validation_samples_are_reported_once(small, handler_of):
    handler, events, _ = handler_of(SKIP)
    state = small.state_of(handler.run)
    handler.windows["wiki"] = {4: DamagedTokens("wiki.bin: bytes 0 to 9")}
    handler.report_windows(state)
    handler.report_windows(state)
    assert [text for _, text, _ in events] == [
        "wiki.bin: bytes 0 to 9. It holds window 4 of the validation corpus 'wiki', which is left out"
    ]
    stopping, _, _ = handler_of(FaultConfig())
    stopping.windows["wiki"] = {4: DamagedTokens("wiki.bin: bytes 0 to 9")}
    with pytest.raises(DamagedTokens, match="window 4 of the validation corpus 'wiki'"):
        stopping.report_windows(state)
