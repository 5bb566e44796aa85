"""The elements that a rank holds of each parameter, and their starting values, against the whole parameter."""

import numpy as np
import pytest
import torch
from fake_ranks import first_stage, initial_shards, on_ranks
from layout_runs import MODERN, settings_of

from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from parallel.axes.initialisation import held_indices, initialise_shards
from parallel.axes.stage import canonical_parameters

UNEVEN = {"d_model": 20, "vocab_size": 97, "vocab_multiple": 1, "n_layers": 2}
LAYOUTS = {
    "data 4, zero 3": (4, {"data": 4, "zero_stage": 3}, UNEVEN),
    "tensor 2 x data 2": (4, {"tensor": 2, "data": 2}, {**MODERN, "n_layers": 2}),
    "hybrid": (4, {"data": 4, "data_shard": 2}, {"n_layers": 2}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_shards_of_all_ranks_are_the_whole_parameter(name):
    """Each element is held, in equally many copies, and has the bits of one process."""
    world_size, parallel, model = LAYOUTS[name]
    run = {"world_size": world_size, "parallel": parallel, "model": model, "micro_batch_size": 1}
    settings = settings_of(run)
    whole = GPT(settings.model)
    initialise(whole, settings.model, seed=settings.seed)
    expected = {key: parameter.detach().numpy() for key, parameter in whole.named_parameters()}
    holders = {key: np.zeros(values.shape) for key, values in expected.items()}
    for shards in on_ranks(initial_shards, [(settings, rank) for rank in range(world_size)]):
        assert shards.keys() == expected.keys()
        for key, (indices, values) in shards.items():
            assert np.array_equal(values, expected[key][np.ix_(*indices)]), key
            holders[key][np.ix_(*indices)] += 1
    for key, count in holders.items():
        assert count.min() >= 1, f"{key} has elements on no rank"
        assert count.min() == count.max(), f"{key} has more copies of some elements"


def test_data_ranks_split_the_shards_of_tensor_ranks():
    """FSDP comes after tensor parallelism, so that a tensor rank keeps its heads whatever the number of data ranks."""
    run = {"world_size": 4, "parallel": {"tensor": 2, "data": 2}, "model": {"n_layers": 1}, "micro_batch_size": 1}
    settings = settings_of(run)
    for rank, shards in enumerate(on_ranks(initial_shards, [(settings, rank) for rank in range(4)])):
        data, tensor = divmod(rank, 2)
        (rows, columns), _ = shards["blocks.0.attention.q.weight"]
        first = 16 * tensor + 8 * data  # of 32 rows
        assert rows.tolist() == list(range(first, first + 8))
        assert columns.tolist() == list(range(32))


def test_a_plain_tensor_is_held_whole():
    rows, columns = held_indices(torch.empty(3, 5))
    assert (rows.tolist(), columns.tolist()) == ([0, 1, 2], [0, 1, 2, 3, 4])


def test_another_seed_gives_other_weights(process_group):
    settings = settings_of({"world_size": 1, "parallel": {}, "model": {"n_layers": 1}})
    parameters = canonical_parameters(first_stage(settings))
    seen = []
    for seed in (1, 2):
        initialise_shards(parameters, settings.model, seed=seed)
        seen.append([parameter.to_local().clone() for _, parameter in parameters])
    changed = {name for (name, _), a, b in zip(parameters, *seen, strict=True) if not torch.equal(a, b)}
    assert changed == {name for name, p in parameters if p.dim() == 2}, "matrices are drawn, vectors constant"
