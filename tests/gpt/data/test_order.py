"""The data order: a shuffled bijection in the proportions of the weights, equal in all versions."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from gpt.data.order import (
    MIXTURE_BOUND,
    DataOrder,
    assign,
    build_mixture,
    count,
    make_order,
    mix,
    permute,
    unassign,
    unpermute,
)
from gpt.errors import ConfigError


def permutations_of(n: int, *, keys: np.ndarray) -> np.ndarray:
    """The permutation of range(n) for each key, (keys, n)."""
    rank = np.tile(np.arange(n, dtype=np.uint64), len(keys))
    size = np.full(rank.size, n, dtype=np.uint64)
    return permute(rank, size=size, key=np.repeat(keys, n)).reshape(len(keys), n).astype(np.int64)


def key_series(n: int) -> np.ndarray:
    return mix(np.arange(1, n + 1, dtype=np.uint64))


# --- permutation


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 10, 97, 100, 256, 1009, 4095, 4096, 4097, 65_537])
def test_permutation_is_a_bijection(n: int) -> None:
    for row in permutations_of(n, keys=key_series(3)):
        assert np.array_equal(np.sort(row), np.arange(n))


def test_permutation_of_mixed_sizes_in_one_call_is_that_of_each_size_alone() -> None:
    sizes = np.array([5, 100, 4097, 1], dtype=np.uint64)
    keys = key_series(4)
    alone = [permutations_of(int(n), keys=keys[i : i + 1])[0, 0] for i, n in enumerate(sizes)]
    assert permute(np.zeros(4, dtype=np.uint64), size=sizes, key=keys).tolist() == alone


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_small_permutations_are_equally_likely(n: int) -> None:
    n_keys = 24_000
    drawn = permutations_of(n, keys=key_series(n_keys)) @ (n ** np.arange(n))
    codes = [sum(x * n**i for i, x in enumerate(p)) for p in itertools.permutations(range(n))]
    observed = np.array([(drawn == code).sum() for code in codes])
    expected = n_keys / math.factorial(n)
    chi2, df = ((observed - expected) ** 2 / expected).sum(), len(codes) - 1
    assert observed.sum() == n_keys
    assert chi2 < df + 4 * math.sqrt(2 * df) + 4  # about 4 sigma


def test_first_two_images_are_jointly_uniform() -> None:
    n, n_keys = 13, 20_000
    drawn = permutations_of(n, keys=key_series(n_keys))
    for a, b in [(0, 1), (0, 4), (3, 12)]:
        table = np.zeros((n, n))
        np.add.at(table, (drawn[:, a], drawn[:, b]), 1)
        expected = n_keys / (n * (n - 1))
        chi2 = ((table - expected) ** 2 / expected)[~np.eye(n, dtype=bool)].sum()
        df = n * (n - 1) - 1
        assert abs(chi2 - df) < 5 * math.sqrt(2 * df)


@pytest.mark.parametrize("n", [4097, 10_007, 65_536])
def test_permutation_looks_shuffled(n: int) -> None:
    p, q = permutations_of(n, keys=key_series(2))
    limit = 5 / math.sqrt(n)
    for first, second in [
        (np.arange(n), p),
        (p[:-1], p[1:]),
        (p[:-2], p[2:]),
        (p[: n // 2], p[n - n // 2 :]),
        (p, q),
        (p[:-64], p[64:]),
    ]:
        assert abs(np.corrcoef(first, second)[0, 1]) < limit
    assert abs((np.diff(p) > 0).mean() - 0.5) < limit
    assert (np.diff(p) == 1).sum() < 10  # expected: about 1
    assert (p == np.arange(n)).sum() < 10
    assert (p == q).sum() < 10


def test_permutation_of_billions_is_even_over_the_range() -> None:
    n = 4_882_812_500  # windows of 2,048 in 10**13 tokens
    rank = np.arange(100_000, dtype=np.uint64)
    image = permute(rank, size=np.full(rank.size, n, np.uint64), key=np.full(rank.size, 7, np.uint64))
    assert len(np.unique(image)) == rank.size
    assert image.max() < n
    observed = np.bincount((image * np.uint64(64) // np.uint64(n)).astype(np.int64), minlength=64)
    chi2 = ((observed - rank.size / 64) ** 2 / (rank.size / 64)).sum()
    assert abs(chi2 - 63) < 5 * math.sqrt(2 * 63)


# --- mixture

FIBONACCI = [1.0, 1.0]
while len(FIBONACCI) < 40:
    FIBONACCI.append(FIBONACCI[-1] + FIBONACCI[-2])

MIXTURES = {
    "one": [3.0],
    "equal": [1.0] * 7,
    "gpt3": [0.60, 0.22, 0.08, 0.08, 0.03],
    "tiny": [1.0, 1e-9, 1e-6, 1e-12],
    "tiny beside tiny": [1.0, 1e-7, 1e-7 * 1.0001, 3e-8],
    "just above half": [0.5 + 2**-33, 0.5 - 2**-33],
    "beyond 64 bits": [1.0, 1e-30],
    "fibonacci": FIBONACCI,  # the deepest Huffman tree, where the bound on the deviation is tightest
    "fibonacci, large last": [*FIBONACCI[:12], 1000.0],
    "thousand": [1.0] * 1000,
    "large and many small": [500.0] + [0.5] * 1000,
    **{f"random {seed}": np.exp(np.random.default_rng(seed).normal(0, 3, 2 + 4 * seed)).tolist() for seed in range(8)},
}


@pytest.mark.parametrize("weights", MIXTURES.values(), ids=MIXTURES.keys())
def test_every_prefix_follows_the_weights_and_corpora_are_read_in_order(weights: list[float]) -> None:
    n = 4000
    mixture = build_mixture(weights)
    corpus, index = assign(mixture, np.arange(n))
    drawn = np.cumsum(corpus[:, None] == np.arange(len(weights)), axis=0)  # (n, corpora)
    wanted = np.arange(1, n + 1)[:, None] * (np.array(weights) / math.fsum(weights))
    assert np.abs(drawn - wanted).max() <= MIXTURE_BOUND
    for k in range(len(weights)):
        assert np.array_equal(index[corpus == k], np.arange((corpus == k).sum()))
    for prefix in (0, 1, 2, 17, 1234, n):
        assert count(mixture, prefix) == (drawn[prefix - 1].tolist() if prefix else [0] * len(weights))


@pytest.mark.parametrize("weights", MIXTURES.values(), ids=MIXTURES.keys())
def test_far_out_the_mixture_is_still_exact(weights: list[float]) -> None:
    total = sum(map(Fraction, weights))
    shares = [Fraction(w) / total for w in weights]
    mixture = build_mixture(weights)
    for start in (2**31 - 5, 2**32 - 5, 10**12 + 7, 2**50 - 200):
        before = count(mixture, start)
        assert sum(before) == start
        assert max(abs(c - start * s) for c, s in zip(before, shares, strict=True)) <= MIXTURE_BOUND
        corpus, index = assign(mixture, np.arange(start, start + 200))
        for k, i in zip(corpus.tolist(), index.tolist(), strict=True):
            assert i == before[k]
            before[k] += 1
        assert before == count(mixture, start + 200)


def test_few_corpora_stay_within_one_sample() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = np.exp(rng.normal(0, 2, 3))
        corpus, _ = assign(build_mixture(weights.tolist()), np.arange(400))
        drawn = np.cumsum(corpus[:, None] == np.arange(3), axis=0)
        assert np.abs(drawn - np.arange(1, 401)[:, None] * (weights / weights.sum())).max() <= 1


def test_the_scale_of_the_weights_does_not_matter() -> None:
    a = assign(build_mixture([3.0, 5.0, 11.0]), np.arange(3000))
    b = assign(build_mixture([0.375, 0.625, 1.375]), np.arange(3000))
    assert np.array_equal(a, b)


# --- both together


def order(seed: int = 5, **changes: object) -> DataOrder:
    arguments = {"sizes": [11, 4, 50], "weights": [0.5, 0.3, 0.2]} | changes
    return make_order(["books", "wiki", "web"], seed=seed, **arguments)  # type: ignore[arg-type]


def test_each_epoch_reads_every_sample_once_and_epochs_differ() -> None:
    corpus, epoch, sample = order().lookup(np.arange(3000))
    seen = {}
    for k, size in enumerate([11, 4, 50]):
        mine = corpus == k
        assert np.array_equal(epoch[mine], np.arange(mine.sum()) // size)
        for e in range(mine.sum() // size):
            seen[k, e] = sample[mine & (epoch == e)]
            assert np.array_equal(np.sort(seen[k, e]), np.arange(size))
    assert not any(np.array_equal(seen[2, e], seen[2, e + 1]) for e in range(10))
    assert not any(np.array_equal(seen[0, e], seen[0, e + 1]) for e in range(100))


def test_any_split_of_the_positions_gives_the_same_samples() -> None:
    whole = np.array(order().lookup(np.arange(10_000, 10_600)))
    rng = np.random.default_rng(1)
    cuts = np.sort(rng.choice(600, 20))
    parts = [order().lookup(part) for part in np.split(np.arange(10_000, 10_600), cuts)]
    assert np.array_equal(whole, np.concatenate([np.array(part) for part in parts], axis=1))
    shuffled = rng.permutation(600)
    assert np.array_equal(whole[:, shuffled], np.array(order().lookup(10_000 + shuffled)))
    for position in (10_000, 10_321):  # one at a time
        assert np.array_equal(whole[:, position - 10_000], np.array(order().lookup(np.array([position])))[:, 0])


def test_seed_and_name_key_the_permutation_and_the_mixture_is_left_alone() -> None:
    positions = np.arange(2000)
    corpus, _, sample = order().lookup(positions)
    other_corpus, _, other = order(seed=6).lookup(positions)
    assert np.array_equal(corpus, other_corpus)
    web = corpus == 2
    assert (sample[web] == other[web]).mean() < 0.1
    renamed = make_order(["a", "b", "c"], sizes=[50, 50, 50], weights=[1.0, 1.0, 1.0], seed=5)
    k, _, i = renamed.lookup(np.arange(150))
    assert not np.array_equal(i[k == 0], i[k == 1])


def test_adding_a_corpus_keeps_the_order_within_the_others() -> None:
    corpus, _, sample = order().lookup(np.arange(1000))
    more = make_order(["books", "code", "web", "wiki"], sizes=[11, 9, 50, 4], weights=[0.5, 0.9, 0.2, 0.3], seed=5)
    corpus_more, _, sample_more = more.lookup(np.arange(2000))
    n = min((corpus == 2).sum(), (corpus_more == 2).sum())
    assert n > 50
    assert np.array_equal(sample[corpus == 2][:n], sample_more[corpus_more == 2][:n])


def test_the_order_of_version_1_never_changes() -> None:
    """Runs on disk depend on it: another result here needs another ORDER_VERSION."""
    big = make_order(["books", "web"], sizes=[12_345, 5 * 10**9], weights=[0.3, 0.7], seed=1234)
    found = np.stack(big.lookup(np.array([0, 1, 2, 3, 4, 5, 100_000, 2**50])), axis=1).tolist()
    assert found == GOLDEN


GOLDEN = [
    [1, 0, 1470597185],
    [0, 0, 9642],
    [1, 0, 2409075395],
    [1, 0, 2934423167],
    [0, 0, 7362],
    [1, 0, 1423971628],
    [1, 0, 3313235894],
    [0, 27360872584, 11803],
]  # corpus, epoch, sample


def test_a_corpus_without_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'wiki' has 0 samples"):
        order(sizes=[1, 0, 1])


# --- from a sample back to the positions that read it


@pytest.mark.parametrize("n", [1, 2, 5, 97, 4097, 65_537])
def test_unpermute_is_the_inverse(n: int) -> None:
    rank = np.arange(n, dtype=np.uint64)
    size, key = np.full_like(rank, n), np.full_like(rank, key_series(2)[1])
    assert np.array_equal(unpermute(permute(rank, size=size, key=key), size=size, key=key), rank)


def test_unassign_is_the_inverse_for_uneven_weights_and_late_positions() -> None:
    draw = np.random.default_rng(3)
    for weights in ([1.0], [0.5, 0.5], [1e-9, 1.0], list(draw.random(13) + 1e-3), [2.0**-k for k in range(30)]):
        mixture = build_mixture(weights)
        positions = np.concatenate([np.arange(2000), draw.integers(0, 2**50, 200)])
        corpus, index = assign(mixture, positions)
        for k, j, n in zip(corpus.tolist(), index.tolist(), positions.tolist(), strict=True):
            assert unassign(mixture, k, j) == n


def test_every_position_of_a_sample_is_found() -> None:
    made, n_positions = order(), 700
    corpus, _, sample = made.lookup(np.arange(n_positions))
    for k, size in enumerate(made.sizes.tolist()):
        for i in range(size):
            wanted = np.flatnonzero((corpus == k) & (sample == i)).tolist()
            assert made.positions_of(k, i, n_positions=n_positions) == wanted
