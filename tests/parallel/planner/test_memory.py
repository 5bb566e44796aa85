"""The memory tracker on tensors of known size."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from parallel.planner.memory import MemoryTracker, tracking


def test_every_byte_is_counted_once():
    with FakeTensorMode():
        weight = torch.empty(100, 100)
        tracker = MemoryTracker([], [weight])
        with tracking(tracker):
            x = torch.empty(1000, 100)  # 400,000 bytes
            y = x @ weight  # 400,000 more
            z = y.view(-1)  # a view: no more
            assert tracker.live_bytes == 800_000
            del x, y
            assert tracker.live_bytes == 400_000
            z.untyped_storage().resize_(0)
            assert tracker.live_bytes == 0
            z.untyped_storage().resize_(1_200_000)
            del z
            torch.empty(10)
    assert tracker.live_bytes == 0
    assert tracker.peak_activation_bytes == 800_000
    assert tracker.peak_bytes == 840_000
