"""Agreement in one process: results, and errors in the form in which they reach the other ranks.

tests/parallel/checkpoint/ and tests/launch/ have agreement over several ranks.
"""

import errno
from pathlib import Path

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gpt.errors import ConfigError
from parallel.agreement import (
    ALONE,
    broadcast_object,
    combine,
    gather_scatter,
    rank_in,
    run_on_all_ranks,
    world_size,
)
from parallel.errors import CheckpointError, CheckpointFault, NoRoomForCheckpoints

PATH = Path("runs/x/step-000000001")


@pytest.mark.parametrize("group", [None, ALONE])
def test_one_process_agrees_with_itself(group) -> None:
    assert (rank_in(group), world_size(group)) == (0, 1)
    assert broadcast_object("a", group) == "a"
    assert combine(5, lambda values: [*values, 6], group) == [5, 6]
    assert run_on_all_ranks(lambda: 5, group, path=PATH) == 5
    assert gather_scatter(lambda: 5, lambda values: [sum(values) + 1], group, path=PATH) == 6


def test_a_group_of_one_rank_sends_nothing() -> None:
    """Values are the same objects: gloo's thread would get OpenMP threads, which slow those of the training."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        value = bytearray(100_000)
        assert broadcast_object(value, None) is value
        assert run_on_all_ranks(lambda: value, None, path=PATH) is value
        assert combine(value, lambda values: values[0], None) is value
        assert gather_scatter(lambda: value, lambda values: values, None, path=PATH) is value
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConfigError("x = 1 is invalid"), ConfigError, "x = 1 is invalid"),
        (OSError(errno.EIO, "Input/output error", "f"), CheckpointFault, "Input/output error on rank 0 (f)"),
        (OSError(errno.ENOSPC, "No space"), NoRoomForCheckpoints, "No space on rank 0"),
        (ValueError("two\nlines"), CheckpointError, "ValueError on rank 0: two lines"),
    ],
)
def test_errors_are_one_line_that_names_the_rank(error: Exception, kind: type[ConfigError], text: str) -> None:
    def fail() -> None:
        raise error

    for run in (
        lambda: run_on_all_ranks(fail, None, path=PATH),
        lambda: gather_scatter(fail, lambda values: values, None, path=PATH),
        lambda: gather_scatter(lambda: 1, lambda values: fail(), None, path=PATH),
    ):
        with pytest.raises(kind) as caught:
            run()
        assert type(caught.value) is kind
        assert str(caught.value).endswith(text)
        assert caught.value is error or caught.value.__cause__ is error


def test_an_interrupt_is_not_an_error_to_agree_on() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_all_ranks(interrupt, None, path=PATH)
