"""Check that boxes tile a tensor: every element lies in exactly one of them."""

import math
from collections.abc import Iterable, Sequence
from itertools import product

MAX_CUT_DIMENSIONS = 8  # a box has 2^n corners in the n dimensions in which tensors are cut; layouts cut one or two


def untiled(shape: Sequence[int], boxes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> str | None:
    """Return None if the boxes, (offsets, sizes) each, tile the shape; else one phrase that describes the fault.

    The time is linear in the number of boxes. Give every corner of a box a sign that alternates along each edge. Sums
    of these signs at each point are the mixed differences of the number of boxes that hold an element. They are those
    of the whole shape if and only if every element lies in exactly one box.
    """
    for offsets, sizes in boxes:
        if not len(offsets) == len(sizes) == len(shape):
            return f"the piece at {list(offsets)} has {len(sizes)} dimensions, not {len(shape)}"
        if any(start < 0 or size < 0 or start + size > n for start, size, n in zip(offsets, sizes, shape, strict=True)):
            return f"the piece at {list(offsets)} of {list(sizes)} is outside its shape {list(shape)}"
    cut = [i for i, n in enumerate(shape) if any(offsets[i] or sizes[i] != n for offsets, sizes in boxes)]
    if len(cut) > MAX_CUT_DIMENSIONS:
        return f"it is cut in {len(cut)} dimensions; at most {MAX_CUT_DIMENSIONS} are supported"
    corners: dict[tuple[int, ...], int] = {}
    for offsets, sizes in boxes:
        if math.prod(sizes):
            _add_corners(corners, [(offsets[i], offsets[i] + sizes[i]) for i in cut], +1)
    if math.prod(shape):
        _add_corners(corners, [(0, shape[i]) for i in cut], -1)
    if any(corners.values()):
        held, needed = sum(math.prod(sizes) for _, sizes in boxes), math.prod(shape)
        kind = "overlap or leave gaps" if held == needed else "overlap" if held > needed else "leave gaps"
        return f"its pieces {kind}: they hold {held} elements, and its shape {list(shape)} has {needed}"
    return None


def overlapping(spans: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first span, (start, stop), that overlaps an earlier one; None if no two overlap."""
    end = 0
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if start < end:
            return start, stop
        end = stop
    return None


def _add_corners(corners: dict[tuple[int, ...], int], edges: list[tuple[int, int]], sign: int) -> None:
    """Add the signs of a box's corners; `edges`: its first and last coordinate in each dimension that is cut."""
    for chosen in product(*[((start, 1), (stop, -1)) for start, stop in edges]):
        point = tuple(coordinate for coordinate, _ in chosen)
        corners[point] = corners.get(point, 0) + sign * math.prod(factor for _, factor in chosen)
