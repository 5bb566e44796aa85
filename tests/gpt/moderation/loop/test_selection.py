"""The selection is a function of scores and seed: neither order nor split of the pool changes it."""

import numpy as np
import pytest

from gpt.moderation.loop.selection import (
    SelectionSettings,
    add_texts,
    empty_pool,
    group_weights,
    merge_pools,
    quotas,
    select,
)

CATEGORIES = ("A", "B")


def pool(n=3_000, seed=0):
    rng = np.random.default_rng(seed)
    ids = [f"text{i}" for i in range(n)]
    scores = np.round(rng.beta(0.3, 3, size=(n, 2)), 3)  # many equal scores
    groups = rng.choice(["large", "small"], p=[0.9, 0.1], size=n).tolist()
    return ids, scores, groups


def state_of(settings, texts, *, parts=1, order=None):
    ids, scores, groups = texts
    order = np.arange(len(ids)) if order is None else order
    state = empty_pool()
    for part in np.array_split(order, parts):
        state = add_texts(state, settings, [ids[i] for i in part], scores[part], [groups[i] for i in part])
    return state


@pytest.mark.parametrize("top", [None, 150])
@pytest.mark.parametrize("oversample", [1, 3])
def test_order_split_and_merging_change_nothing(top, oversample):
    settings = SelectionSettings(60, CATEGORIES, seed=7, top=top, oversample=oversample)
    texts = pool()
    expected = select(state_of(settings, texts), settings)
    assert len(expected) == 60
    assert len({one.id for one in expected}) == 60
    shuffled = np.random.default_rng(1).permutation(3_000)
    assert select(state_of(settings, texts, parts=17, order=shuffled), settings) == expected
    halves = [state_of(settings, texts, order=shuffled[:1_000]), state_of(settings, texts, order=shuffled[1_000:])]
    merged = merge_pools(*halves, settings)
    assert merged.seen == 3_000
    assert select(merged, settings) == expected
    other = SelectionSettings(60, CATEGORIES, seed=8, top=top, oversample=oversample)
    assert select(state_of(other, texts), other) != expected


def test_a_text_that_is_seen_twice_counts_once():
    settings = SelectionSettings(30, CATEGORIES)
    texts = pool(200)
    once = state_of(settings, texts)
    twice = merge_pools(once, once, settings)
    assert select(twice, settings) == select(once, settings)


def test_the_pipelines_admit_what_they_say():
    settings = SelectionSettings(60, CATEGORIES, thresholds=(0.3, 0.4))
    ids, scores, groups = pool()
    found = select(state_of(settings, (ids, scores, groups)), settings)
    score = dict(zip(ids, scores, strict=True))
    counts = {name: sum(one.pipeline == name for one in found) for name in settings.pipelines}
    assert counts == {"random": 20, "above:A": 10, "above:B": 10, "uncertain:A": 10, "uncertain:B": 10}
    assert all(score[one.id][0] >= 0.3 for one in found if one.pipeline == "above:A")
    assert all(score[one.id][1] >= 0.4 for one in found if one.pipeline == "above:B")
    others = {one.id for one in found if one.pipeline != "uncertain:A"}
    rest = sorted(abs(score[name][0] - 0.5) for name in ids if name not in others)
    chosen = sorted(abs(score[one.id][0] - 0.5) for one in found if one.pipeline == "uncertain:A")
    assert chosen == rest[:10] or chosen[-1] <= 0.05  # a later pipeline may have taken a text that is as near
    assert all(one.weight == 1 for one in settings_without_groups(settings, ids, scores))


def settings_without_groups(settings, ids, scores):
    return select(state_of(settings, (ids, scores, [""] * len(ids))), settings)


def test_above_is_filled_with_the_highest_scores_and_a_small_pool_gives_all_it_has():
    ids = [f"t{i}" for i in range(20)]
    scores = np.linspace(0.01, 0.2, 20)[:, None]
    settings = SelectionSettings(5, ("A",), shares=(0, 1, 0))
    found = select(state_of(settings, (ids, scores, [""] * 20)), settings)
    assert {one.id for one in found} == {"t15", "t16", "t17", "t18", "t19"}
    all_of_them = SelectionSettings(50, ("A",))
    assert len(select(state_of(all_of_them, (ids, scores, [""] * 20)), all_of_them)) == 20
    assert select(empty_pool(), settings) == []


def test_top_draws_at_random_within_the_highest_scores():
    ids, scores, groups = pool()
    settings = SelectionSettings(40, ("A",), shares=(0, 1, 0), top=100)
    found = select(state_of(settings, (ids, scores[:, :1], groups)), settings)
    limit = np.sort(scores[:, 0])[-100]
    score = dict(zip(ids, scores[:, 0], strict=True))
    assert all(score[one.id] >= limit for one in found)
    assert {one.id for one in found} != set(sorted(ids, key=lambda name: -score[name])[:40])


def test_the_random_pipeline_is_uniform():
    """Each of 200 texts is chosen in 10% of 100 seeds; the largest of 200 binomials stays below 5.5 deviations."""
    ids, scores, groups = pool(200)
    counts = dict.fromkeys(ids, 0)
    for seed in range(100):
        settings = SelectionSettings(20, CATEGORIES, seed=seed, shares=(1, 0, 0))
        for one in select(state_of(settings, (ids, scores, groups)), settings):
            counts[one.id] += 1
    deviation = np.sqrt(100 * 0.1 * 0.9)
    assert max(abs(count - 10) for count in counts.values()) < 5.5 * deviation


def test_a_group_has_a_share_proportional_to_the_root_of_its_count():
    weights = group_weights(np.array(["a"] * 900 + ["b"] * 100, dtype=object))
    assert weights.mean() == pytest.approx(1)
    assert weights[:900].sum() / weights[900:].sum() == pytest.approx(3)
    ids, scores, groups = pool()
    small = []
    for seed in range(10):
        settings = SelectionSettings(60, CATEGORIES, seed=seed, shares=(1, 0, 0), oversample=10)
        found = select(state_of(settings, (ids, scores, groups)), settings)
        small.append(sum(one.group == "small" for one in found))
    assert np.mean(small) / 60 == pytest.approx(0.25, abs=0.05)  # 1 / (1 + sqrt(9)); 0.1 without weights


@pytest.mark.parametrize("scores", [np.array([[1.2]]), np.array([[np.nan]]), np.array([[0.1, 0.2]])])
def test_refuses_scores_that_are_no_probabilities(scores):
    settings = SelectionSettings(5, ("A",))
    with pytest.raises(ValueError, match=r"probability|groups"):
        add_texts(empty_pool(), settings, ["t"], scores, [""])


def test_quotas_sum_to_the_total():
    assert quotas(10, [1, 1, 1]) == [4, 3, 3]
    assert quotas(7, [0, 2, 1]) == [0, 5, 2]
    assert sum(quotas(101, [0.3, 0.1, 0.1, 0.5])) == 101
