"""GPT-3's features equal Spark's buckets, scores equal scikit-learn's, and a model's file is checked."""

import numpy as np
import pytest

from data_prep.filters.quality_classifier import (
    N_BUCKETS,
    QualityModel,
    load_model,
    probability,
    save_model,
    scorer,
    term_counts,
    word_buckets,
    words,
)
from gpt.errors import ConfigError

mmh3 = pytest.importorskip("mmh3", reason="the extra 'data' is not installed")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The quick\tbrown", ["the", "quick", "brown"]),
        ("two  blanks", ["two", "", "blanks"]),  # Java: an empty string between two separators ...
        ("\n begins", ["", "", "begins"]),  # ... and before the first
        ("ends \n\r\n", ["ends"]),  # but none at the end
        ("", [""]),  # no separator, so the text is the only part
        (" \t\n", []),
        ("no\xa0break\u2003em\x1cunit", ["no\xa0break\u2003em\x1cunit"]),  # blanks to Python, not to Java's \s
        ("a\x0bb\x0cc", ["a", "b", "c"]),
        ("ÄÖ İ ΟΔΟΣ", ["äö", "i̇", "οδος"]),
    ],
)
def test_words_match_java(monkeypatch, text, expected):
    assert [word for found in words(text) for word in found] == expected
    for size in range(6):  # in pieces of any length
        monkeypatch.setattr("data_prep.filters.quality_classifier._PIECE", size)
        assert [word for found in words(text) for word in found] == expected


def test_buckets_match_the_examples_of_spark():
    """The examples in the documentation of pyspark.ml.feature: HashingTF (10 buckets) and FeatureHasher (2^18)."""
    assert [h % 10 for h in (mmh3.hash(word, 42) for word in "abc")] == [7, 5, 8]
    assert next(word_buckets("REAL bool=true stringNum=1")).tolist()[:2] == [174475, 247670]
    assert mmh3.hash("stringNum=1", 42) % N_BUCKETS == 262126  # case kept: the tokenizer would lower it
    assert next(word_buckets("string=foo")).tolist() == [257907]
    buckets, counts = term_counts("string=foo real string=foo  real STRING=FOO")
    assert dict(zip(buckets.tolist(), counts.tolist(), strict=True)) == {
        257907: 3,
        174475: 2,
        next(word_buckets(""))[0]: 1,
    }


def test_a_long_text_is_the_sum_of_its_pieces(monkeypatch, prose):
    text, model = prose(1, 40), QualityModel(np.random.default_rng(3).normal(scale=0.05, size=N_BUCKETS), 0.1, {})
    whole, score = term_counts(text), scorer(model)(text)
    monkeypatch.setattr("data_prep.filters.quality_classifier._PIECE", 100)
    assert len(list(words(text))) > 10
    assert all(np.array_equal(*pair) for pair in zip(term_counts(text), whole, strict=True))
    assert scorer(model)(text) == score
    assert [len(part) for part in term_counts(" \n ")] == [0, 0]


def test_buckets_match_scikit_learn():
    murmurhash3_32 = pytest.importorskip("sklearn.utils", reason="scikit-learn is not installed").murmurhash3_32
    rng = np.random.default_rng(0)
    alphabet = [*"abcxyz019-.'", "é", "ß", "я", "中", "😀", "\xa0"]
    made = ["".join(rng.choice(alphabet, size=n)) for n in rng.integers(0, 19, size=3000)]
    expected = [murmurhash3_32(word, seed=42) % N_BUCKETS for word in made]  # signed, and Python's % is non-negative
    assert [next(word_buckets(word))[0] for word in made] == expected


def test_scores_match_scikit_learn(prose):
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    murmurhash3_32 = pytest.importorskip("sklearn.utils").murmurhash3_32
    model = QualityModel(np.random.default_rng(1).normal(scale=0.1, size=N_BUCKETS), -0.3, {})
    reference = linear.LogisticRegression()
    reference.coef_, reference.intercept_, reference.classes_ = (
        model.weights[None],
        np.array([model.bias]),
        np.array([0, 1]),
    )
    texts = [prose(seed, 3 + seed) for seed in range(20)] + ["", " \n ", "Ein  Wort\xa0mehr"]
    score = scorer(model)
    for text in texts:
        row = np.zeros((1, N_BUCKETS))
        for word in (word for found in words(text) for word in found):
            row[0, murmurhash3_32(word, seed=42) % N_BUCKETS] += 1
        assert abs(score(text) - reference.predict_proba(row)[0, 1]) < 1e-6


def test_probabilities_of_extreme_margins():
    assert [probability(m) for m in (-1e4, -700.0, 0.0, 40.0, 1e4)] == [0.0, pytest.approx(np.exp(-700)), 0.5, 1, 1]


def test_a_model_file_is_deterministic_and_checked(tmp_path):
    from safetensors.numpy import save_file

    weights = np.random.default_rng(2).normal(size=N_BUCKETS)
    model = QualityModel(weights, 0.25, {"held_out": {"f1": 0.9}})
    save_model(model, tmp_path / "a.safetensors")
    save_model(model, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again = load_model(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(again.weights, weights)
    assert (again.bias, again.about["held_out"], again.about["version"]) == (0.25, {"f1": 0.9}, 1)

    with pytest.raises(ConfigError, match="is not a quality model"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match=r"no such quality model\. Make one with"):
        load_model(tmp_path / "gone.safetensors")
    (tmp_path / "text.safetensors").write_text("not a model at all")
    with pytest.raises(ConfigError, match="is not a quality model"):
        load_model(tmp_path / "text.safetensors")
    save_file({"weights": weights}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"is not a quality model\. Make one"):
        load_model(tmp_path / "other.safetensors")
    save_model(QualityModel(weights[:100], 0.0, {}), tmp_path / "short.safetensors")
    with pytest.raises(ConfigError, match="262144 finite numbers"):
        load_model(tmp_path / "short.safetensors")
    save_model(QualityModel(weights, 0.0, {"features": "others"}), tmp_path / "old.safetensors")
    with pytest.raises(ConfigError, match=r"trained on other features \(others\)"):
        load_model(tmp_path / "old.safetensors")
