"""Requests become batches without a pause, in order, and the wait is estimated."""

import asyncio

import numpy as np
import pytest
from rule_server import RuleScorer, rule

from launch.moderation_server.batches import BatchQueue
from launch.moderation_server.limits import Refused, ServerLimits


class Counting(RuleScorer):
    def __init__(self, pause_s=0.0):
        super().__init__(pause_s)
        self.batches = []

    def scores(self, texts):
        self.batches.append(len(texts))
        return super().scores(texts)


def test_what_waits_goes_together_and_each_gets_its_own():
    scorer = Counting(pause_s=0.05)

    async def run():
        async with BatchQueue(scorer, ServerLimits(max_batch_bytes=40)) as queue:
            texts = [["a" * n, "b"] for n in range(1, 13)]
            found = await asyncio.gather(*(queue.scores(one) for one in texts))
            for got, one in zip(found, texts, strict=True):
                np.testing.assert_array_equal(got, [rule(text) for text in one])
            assert queue.wait_s() == 1

    asyncio.run(run())
    assert sum(scorer.batches) == 24
    assert len(scorer.batches) < 6  # 102 bytes in batches of at most 40
    assert max(scorer.batches) <= 14


def test_a_full_queue_refuses_and_a_large_first_request_does_not_wait_for_ever():
    async def run():
        async with BatchQueue(RuleScorer(pause_s=0.1), ServerLimits(max_waiting=3)) as queue:
            large = asyncio.create_task(queue.scores(["a"] * 5))
            await asyncio.sleep(0.02)
            first = asyncio.create_task(queue.scores(["b"] * 3))
            await asyncio.sleep(0)
            with pytest.raises(Refused, match="3 texts wait") as refused:
                await queue.scores(["a"])
            assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
            assert (await large).shape == (5, 2)
            assert (await first).shape == (3, 2)

    asyncio.run(run())


def test_clients_that_leave_free_their_places():
    async def run():
        async with BatchQueue(RuleScorer(pause_s=0.2), ServerLimits(max_waiting=3, max_batch_bytes=1)) as queue:
            first = asyncio.create_task(queue.scores(["a"]))
            await asyncio.sleep(0.05)  # the model works on it
            left = asyncio.create_task(queue.scores(["b"] * 3))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.wait([left])
            assert queue.waiting == 0
            assert (await queue.scores(["c"] * 3)).shape == (3, 2)
            await first

    asyncio.run(run())
