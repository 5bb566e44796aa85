"""Which boxes tile a shape, compared with counting the boxes of every element."""

import random
from itertools import product

from gpt.files.boxes import overlapping, untiled

Box = tuple[tuple[int, ...], tuple[int, ...]]


def tiles_by_counting(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    counts = dict.fromkeys(product(*map(range, shape)), 0)
    for offsets, sizes in boxes:
        for point in product(*[range(start, start + size) for start, size in zip(offsets, sizes, strict=True)]):
            counts[point] += 1
    return all(count == 1 for count in counts.values())


def cut(generator: random.Random, box: Box) -> list[Box]:
    """Cut a box into a few at random."""
    offsets, sizes = box
    i = generator.randrange(len(sizes)) if sizes else 0
    if not sizes or sizes[i] < 2 or generator.random() < 0.3:
        return [box]
    at = generator.randrange(1, sizes[i])
    low = (offsets, (*sizes[:i], at, *sizes[i + 1 :]))
    high = ((*offsets[:i], offsets[i] + at, *offsets[i + 1 :]), (*sizes[:i], sizes[i] - at, *sizes[i + 1 :]))
    return [*cut(generator, low), *cut(generator, high)]


def test_tilings_pass_and_changed_ones_do_not() -> None:
    generator = random.Random(0)
    results = set()
    for _ in range(3000):
        shape = tuple(generator.randrange(1, 5) for _ in range(generator.randrange(4)))
        boxes = cut(generator, ((0,) * len(shape), shape))
        assert untiled(shape, boxes) is None
        if boxes and shape:
            i = generator.randrange(len(boxes))
            other = generator.choice(boxes)
            moved = (
                tuple(min(o + generator.randrange(2), n - s) for o, s, n in zip(*other, shape, strict=True)),
                other[1],
            )
            boxes[i] = moved
            boxes += generator.choices(boxes, k=generator.randrange(2))
        found = untiled(shape, boxes)
        assert (found is None) == tiles_by_counting(shape, boxes), (shape, boxes, found)
        results.add(found is None)
    assert results == {True, False}


def test_the_fault_is_named() -> None:
    assert "overlap: they hold 4 elements" in str(untiled((3,), [((0,), (2,)), ((1,), (2,))]))
    assert "leave gaps: they hold 2 elements" in str(untiled((3,), [((0,), (2,))]))
    assert "overlap or leave gaps" in str(untiled((4,), [((0,), (2,)), ((1,), (2,))]))
    assert "outside its shape [3]" in str(untiled((3,), [((2,), (2,))]))
    assert "has 1 dimensions, not 2" in str(untiled((3, 1), [((2,), (2,))]))
    assert "cut in 9 dimensions" in str(untiled((2,) * 9, [((0,) * 9, (1,) * 9)]))
    assert untiled((0, 7), []) is None
    assert untiled((0, 7), [((0, 0), (0, 7))]) is None
    assert untiled((), [((), ())]) is None
    assert "leave gaps" in str(untiled((), []))
    assert untiled((2**40,), [((0,), (2**39,)), ((2**39,), (2**39,))]) is None


def test_the_work_grows_with_the_number_of_boxes() -> None:
    """Comparing all pairs of 20,000 boxes would take minutes."""
    n = 20_000
    assert untiled((n, 3), [((i, 0), (1, 3)) for i in range(n)]) is None
    assert "overlap" in str(untiled((n, 3), [((i // 2, 0), (1, 3)) for i in range(n)]))


def test_spans_that_share_bytes_are_found() -> None:
    assert overlapping([(5, 9), (0, 5), (7, 7)]) is None
    assert overlapping([(0, 5), (4, 6), (9, 10)]) == (4, 6)
    assert overlapping([(0, 10), (2, 3), (5, 6)]) == (2, 3)
