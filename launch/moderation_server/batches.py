"""Collect the texts of many requests into batches for one model, on one thread."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from launch.moderation_server.limits import Refused, ServerLimits

Scores = NDArray[np.float64]
_MEMORY_S = 10.0  # the rate of the model is averaged over about this time
_MAX_WAIT_S = 600


class TextScorer(Protocol):
    """The model as the server sees it. launch.moderation.open_run.OpenedClassifier is one."""

    @property
    def categories(self) -> tuple[str, ...]: ...

    @property
    def version(self) -> str:
        """Names the weights, and whatever else decides a score."""
        ...

    @property
    def thresholds(self) -> Mapping[str, float]:
        """The least score of each category that flags a text."""
        ...

    def scores(self, texts: Sequence[str]) -> Scores:
        """Probabilities (n, c). A text's scores do not depend on the other texts."""
        ...


class ModelFault(Exception):
    """The model failed on a request. The message is the type of the error and its place, which quote no text."""


@dataclass(eq=False)
class _Job:
    texts: Sequence[str]
    result: "asyncio.Future[Scores]"
    n_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_bytes = sum(len(text.encode("utf-8", "replace")) for text in self.texts)


class BatchQueue:
    """Requests wait here; the model takes as many as fit into a batch whenever it is free.

    There is no pause to fill a batch: while the model works, the next batch collects. Use as an async context manager;
    leaving it waits until all requests in the queue have their answer.
    """

    def __init__(self, scorer: TextScorer, limits: ServerLimits) -> None:
        self.scorer, self.limits = scorer, limits
        self.waiting = 0  # texts
        self._jobs: deque[_Job] = deque()
        self._awake = asyncio.Event()
        self._closing = False
        self._rate = 0.0  # texts a second
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scores")

    async def __aenter__(self) -> "BatchQueue":
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._awake.set()
        await self._worker
        self._thread.shutdown()

    async def scores(self, texts: Sequence[str]) -> Scores:
        """Scores (n, c) of the texts, once the model has come to them. Refused: too many texts wait already."""
        if self._jobs and self.waiting + len(texts) > self.limits.max_waiting:
            wait_s = self.wait_s()
            message = f"{self.waiting} texts wait for the model, at most {self.limits.max_waiting} may. Try again later"
            raise Refused(429, "queue_full", message, retry_after_s=wait_s)
        job = _Job(texts, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self.waiting += len(texts)
        self._awake.set()
        try:
            return await job.result
        except asyncio.CancelledError:  # the client has left: its place in the queue is free
            if job in self._jobs:
                self._jobs.remove(job)
                self.waiting -= len(texts)
            raise

    def wait_s(self) -> int:
        """The seconds until the texts that wait now are scored, by the model's rate so far; at least 1."""
        if not self._rate:
            return 1
        return min(_MAX_WAIT_S, max(1, math.ceil(self.waiting / self._rate)))

    async def _work(self) -> None:
        while True:
            batch = self._next_batch()
            if batch:
                await self._score(batch)
            elif self._closing:
                return
            else:
                self._awake.clear()
                await self._awake.wait()

    def _next_batch(self) -> list[_Job]:
        """The oldest requests that fit into a batch, at least one. Clients that have left are skipped."""
        batch: list[_Job] = []
        n_bytes = 0
        while self._jobs:
            job = self._jobs[0]
            if job.result.done():
                self.waiting -= len(self._jobs.popleft().texts)
                continue
            if batch and n_bytes + job.n_bytes > self.limits.max_batch_bytes:
                break
            batch.append(self._jobs.popleft())
            self.waiting -= len(job.texts)
            n_bytes += job.n_bytes
        return batch

    async def _score(self, batch: Sequence[_Job]) -> None:
        texts = [text for job in batch for text in job.texts]
        started = time.perf_counter()
        try:
            scores = await self._on_thread(texts)
        except Exception as error:
            await self._score_apart(batch, error)
            return
        self._measure(len(texts), time.perf_counter() - started)
        start = 0
        for job in batch:
            _give(job, scores[start : start + len(job.texts)])
            start += len(job.texts)

    async def _score_apart(self, batch: Sequence[_Job], error: Exception) -> None:
        """After a fault, score each request without the others, so that one text cannot spoil them."""
        for job in batch:
            if len(batch) > 1:
                await self._score([job])
            elif not job.result.done():
                job.result.set_exception(ModelFault(f"{type(error).__name__} at {_where(error)}"))

    async def _on_thread(self, texts: Sequence[str]) -> Scores:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.scorer.scores, texts)

    def _measure(self, n_texts: int, elapsed_s: float) -> None:
        rate = n_texts / max(elapsed_s, 1e-6)
        share = 1.0 if not self._rate else 1 - math.exp(-elapsed_s / _MEMORY_S)
        self._rate += (rate - self._rate) * share


def _where(error: BaseException) -> str:
    """File and line of the innermost frame."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return "?" if frame is None else f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"


def _give(job: _Job, scores: Scores) -> None:
    if not job.result.done():  # its client has left
        job.result.set_result(scores)
