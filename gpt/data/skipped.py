"""The positions of the data's order that a run leaves out. The order itself does not change.

`gpt.data.dataset.TrainingData` says what each position holds. Sample n of a run is at the n-th position that lies in no
range left out. Ranges come from the recipe (`data.skip`), from rewinds after a loss spike and from damaged data.
Checkpoints hold all ranges in force:

    skipped = SkippedData.stated(config.data.skip)
    skipped.positions(first_sample, n)                    # (n,) int64: of samples first_sample, ... of the run
    skipped = skipped.without_samples(first, stop, why="the loss spike at step 812")
    state["loop"]["skipped"] = skipped.to_json()          # and SkippedData.from_json(...) back
    skipped, messages = resumed(saved, config.data.skip, samples_read=..., step_of=...)   # after a change of the recipe
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from gpt.data.order import Ints
from gpt.errors import ConfigError

STATED = "data.skip"  # the reason of a range that the recipe states

Span = tuple[int, int]  # first position, and one past the last


@dataclass(frozen=True)
class SkippedRange:
    """Positions first to stop - 1 of the data's order, and why they are left out."""

    first: int
    stop: int
    why: str


@dataclass(frozen=True)
class SkippedData:
    """The ranges in force, in the order in which they were added. They may overlap: the run leaves out their union.

    Samples count what a run reads, from 0. Positions count what the order holds, from 0.
    """

    ranges: tuple[SkippedRange, ...] = ()

    @classmethod
    def stated(cls, spans: Sequence[Sequence[int]]) -> "SkippedData":
        """The ranges of a recipe, after `check_skip`."""
        return cls(tuple(SkippedRange(int(first), int(stop), STATED) for first, stop in spans))

    @classmethod
    def from_json(cls, ranges: Sequence[dict[str, Any]]) -> "SkippedData":
        check_skip([(r["first"], r["stop"]) for r in ranges])
        return cls(tuple(SkippedRange(r["first"], r["stop"], r["why"]) for r in ranges))

    def to_json(self) -> list[dict[str, Any]]:
        return [{"first": r.first, "stop": r.stop, "why": r.why} for r in self.ranges]

    def with_range(self, first: int, stop: int, *, why: str) -> "SkippedData":
        """Add a range."""
        assert 0 <= first < stop, f"no range: {first} to {stop}"
        return SkippedData((*self.ranges, SkippedRange(first, stop, why)))

    def without_samples(self, first_sample: int, stop_sample: int, *, why: str) -> "SkippedData":
        """Add the range from the position of the run's sample `first_sample` to that of sample `stop_sample` - 1."""
        assert 0 <= first_sample < stop_sample, f"no samples: {first_sample} to {stop_sample}"
        return self.with_range(self.position(first_sample), self.position(stop_sample - 1) + 1, why=why)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The union, as rising spans that neither touch nor overlap."""
        merged: list[Span] = []
        for first, stop in sorted((r.first, r.stop) for r in self.ranges):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((first, stop))
        return tuple(merged)

    @cached_property
    def _table(self) -> tuple[Ints, Ints]:
        """The first sample after each span (spans,), and the positions left out before each span and in all
        (spans + 1,)."""
        left_out = np.cumsum([0, *(stop - first for first, stop in self.spans)], dtype=np.int64)
        firsts = np.array([first for first, _ in self.spans], dtype=np.int64)
        return firsts - left_out[:-1], left_out

    def positions(self, first_sample: int, n: int) -> Ints:
        """The positions (n,) of samples first_sample to first_sample + n - 1 of the run, rising."""
        samples = np.arange(first_sample, first_sample + n, dtype=np.int64)
        behind, left_out = self._table
        return samples + left_out[np.searchsorted(behind, samples, side="right")]

    def position(self, sample: int) -> int:
        """The position of one sample."""
        return int(self.positions(sample, 1)[0])

    def spans_read(self, n_samples: int) -> list[Span]:
        """The positions of the first `n_samples` samples of the run, as rising spans."""
        if n_samples == 0:
            return []
        end = self.position(n_samples - 1) + 1
        edges = [0, *(edge for span in self.spans if span[0] < end for edge in span), end]
        return [(first, stop) for first, stop in list(pairwise(edges))[::2] if first < stop]

    def sample_at(self, position: int) -> int | None:
        """The sample of the run at a position; None if the position is left out."""
        before = 0
        for first, stop in self.spans:
            if position < first:
                break
            if position < stop:
                return None
            before += stop - first
        return position - before


def check_skip(spans: Sequence[Sequence[int]]) -> None:
    """ConfigError unless every entry of data.skip is a range of positions."""
    for span in spans:
        if len(span) != 2 or not 0 <= span[0] < span[1]:
            raise ConfigError(
                f"data.skip: {list(span)} must be [first, stop] with 0 <= first < stop, positions in the data's order "
                f"(stop is not left out); `triaxial data audit RUN --steps A-B` shows those of any steps"
            )


def resumed(
    saved: SkippedData, stated: Sequence[Sequence[int]], *, samples_read: int, step_of: Callable[[int], int]
) -> tuple[SkippedData, list[str]]:
    """The ranges in force after a resume, and messages about a changed data.skip.

    `saved`: the ranges of the checkpoint. `stated`: those of the recipe now. Ranges with other reasons stay.
    `samples_read`: the number of samples that the run had read. `step_of`: the step, counted from 1, that read a
    sample. ConfigError: a change before the run's position, since the run would continue at another position.
    """
    automatic = tuple(r for r in saved.ranges if r.why != STATED)
    now = SkippedData((*SkippedData.stated(stated).ranges, *automatic))
    end = saved.position(samples_read - 1) + 1 if samples_read else 0  # all positions from here on are still to be read
    position = _first_difference(_up_to(saved.spans, end), _up_to(now.spans, end))
    if position is not None:
        sample = saved.sample_at(position)
        if sample is None:
            behind = saved.sample_at(next(stop for first, stop in saved.spans if first <= position < stop))
            assert behind is not None, "spans do not touch"
            raise ConfigError(
                f"data.skip no longer leaves out position {position:,}, which the run passed by before step "
                f"{step_of(behind):,}; restore that range: only what lies at position {end:,} or later can change"
            )
        raise ConfigError(
            f"data.skip leaves out position {position:,}, but the run has read it at step {step_of(sample):,}; a range "
            f"must begin at position {end:,} or later, or go back to a checkpoint before that step"
        )
    before = {(r.first, r.stop) for r in saved.ranges if r.why == STATED}
    after_change = {(r.first, r.stop) for r in now.ranges if r.why == STATED}
    messages = [f"data.skip: positions {a:,} to {b - 1:,} are left out from now on" for a, b in after_change - before]
    messages += [f"data.skip: positions {a:,} to {b - 1:,} are read after all" for a, b in before - after_change]
    return now, sorted(messages)


def _up_to(spans: Sequence[Span], end: int) -> list[Span]:
    """The parts of spans below `end`."""
    return [(first, min(stop, end)) for first, stop in spans if first < end]


def _first_difference(one: Sequence[Span], other: Sequence[Span]) -> int | None:
    """The first position that lies in one union and not in the other."""
    edges = sorted({edge for span in (*one, *other) for edge in span})
    for edge in edges:  # membership changes at edges only
        inside = [any(first <= edge < stop for first, stop in spans) for spans in (one, other)]
        if inside[0] != inside[1]:
            return edge
    return None
