"""Labels of token files become targets at the last token of each text; corpora that do not fit are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt.data.config import CorpusConfig
from gpt.data.sampling import CorpusFiles, Samples
from gpt.data.sampling_rules import Documents, PackedDocuments, Windows
from gpt.errors import ConfigError
from gpt.losses.marks import IGNORE, PADDING
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.moderation.config import ClassifierConfig
from gpt.token_files.files import TokenFileWriter
from gpt.token_files.label_states import encode_states, label_tokens, label_values
from gpt.training.objective import MixtureObjective

MODEL = ModelConfig(vocab_size=50, n_ctx=16, n_layers=2, d_model=16, n_heads=2)
C = 12  # more than one value of the stream holds
TAXONOMY = {
    "name": "many",
    "version": 1,
    "category": [{"id": f"C{i}", "title": f"c {i}", "definition": f"about {i}"} for i in range(C)],
}


IDS = [f"C{i}" for i in range(C)]


IDS = [f"C{i}" for i in range(C)]


def config(**more):
    return ClassifierConfig(taxonomy_content=json.dumps(TAXONOMY), **{"hidden": 4, **more})


def write_corpus(folder, states, *, lengths, labelled=True):
    """Documents of these lengths; `states` (n, C) of their labels."""
    draw, k = np.random.default_rng(0), label_tokens(C)
    with (
        TokenFileWriter(folder / "texts", vocab_size=50) as tokens,
        TokenFileWriter(folder / "texts_labels", vocab_size=label_values(C)) as labels,
    ):
        for length, codes in zip(lengths, encode_states(np.asarray(states, dtype=np.int8)), strict=True):
            tokens.add_document(draw.integers(0, 50, size=length))
            values = np.zeros(length, dtype=np.int64)
            values[length - k :] = codes[::-1]
            labels.add_document(values)
    return CorpusConfig(str(folder / "texts"), streams={"labels": str(folder / "texts_labels")} if labelled else {})


def described_corpus(folder, labels):
    """A corpus of one text whose corpus.json describes its labels so."""
    corpus = write_corpus(folder, np.ones((1, C)), lengths=[4])
    description = {
        "format": "triaxial-corpus",
        "version": 1,
        "tokenizer": {"file": "none", "fingerprint": ""},
        "splits": {"train": {"prefix": "texts"}},
        "labels": labels,
    }
    (folder / "corpus.json").write_text(json.dumps(description))
    return CorpusFiles(corpus, Documents(8))


@pytest.mark.parametrize("labelled", [True, False])
def test_targets_stand_at_the_last_token_of_each_text(labelled):
    states = np.random.default_rng(1).integers(0, 3, size=(3, C)).astype(np.int8)
    codes = encode_states(states)
    tokens = np.arange(2 * 9).reshape(2, 9)
    ids = np.array([[0] * 4 + [1] * 4 + [PADDING], [0] * 3 + [PADDING] * 6])
    stream = np.zeros((2, 9), np.int64)
    for (row, last), code in zip(((0, 3), (0, 7), (1, 2)), codes, strict=True):
        stream[row, last], stream[row, last - 1] = code
    lengths = {"labels": np.array([9, 9])}
    samples = Samples(tokens, ids, {"labels": stream}, lengths) if labelled else Samples(tokens, ids)
    batch = config().build(z_loss=0.0).batch(samples)
    assert batch.inputs.tolist() == tokens[:, :-1].tolist()
    expected = torch.full((2, 8, C), IGNORE, dtype=torch.int8)
    for (row, last), state in zip(((0, 3), (0, 7), (1, 2)), states, strict=True):
        expected[row, last] = torch.from_numpy(state) if labelled else 0
    assert torch.equal(batch.targets, expected)
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_rows_of_padding_alone_count_nothing(pool):
    """A data rank has them in the last batch of an evaluation."""
    nothing = np.zeros((2, 9), np.int64)
    samples = Samples(nothing, np.full((2, 9), PADDING), {"labels": nothing}, {"labels": np.array([9, 9])})
    objective = config(pool=pool).build(z_loss=0.0)
    batch = objective.batch(samples)
    assert (batch.targets == IGNORE).all()
    totals = objective.loss(compile=False)(torch.ones(2, 8, C), batch)
    assert (float(totals.sum), int(totals.count)) == (0.0, 0)


@pytest.mark.parametrize("parents", [True, False])
def test_a_negative_category_makes_its_unknown_descendants_negative(parents):
    """Else labels of a parent alone would leave its children, and by the maximum the parent, at their first logits."""
    rows = [{**one, "parent": f"C{i - 1}"} if i in (1, 2) else one for i, one in enumerate(TAXONOMY["category"][:4])]
    content = json.dumps({**TAXONOMY, "category": rows})
    objective = ClassifierConfig(taxonomy_content=content, parents=parents).build(z_loss=0.0)
    states = np.array([[1, 0, 0, 0], [2, 0, 0, 0], [2, 1, 0, 2], [0, 0, 0, 1]])
    stream = np.zeros((1, 9), np.int64)
    stream[0, 1:8:2] = encode_states(states)[:, 0]
    ids = np.array([[0, 0, 1, 1, 2, 2, 3, 3, PADDING]])
    batch = objective.batch(Samples(np.zeros((1, 9), np.int64), ids, {"labels": stream}, {"labels": np.array([8])}))
    filled = [[1, 1, 1, 0], [2, 0, 0, 0], [2, 1, 1, 2], [0, 0, 0, 1]]
    assert batch.targets[0, 1:8:2].tolist() == (filled if parents else states.tolist())


def test_a_row_of_texts_gives_each_the_logits_that_it_has_alone():
    for attention in ("causal", "full"):
        objective = config(attention=attention).build(z_loss=0.0)
        model = GPT(replace(MODEL, tied=False), embed=objective.front(MODEL), head=objective.head(MODEL))
        initialise(model, MODEL, seed=1)
        model.double()
        texts = [np.array([3, 4, 5, 6]), np.array([7, 8]), np.array([9, 1, 2])]
        row = np.concatenate([*texts, [0]])
        ids = np.array([0] * 4 + [1] * 2 + [2] * 3 + [PADDING])
        batch = objective.batch(Samples(row[None], ids[None]))
        together = model(batch.inputs, positions=batch.positions, mask=objective.attention_mask(batch))[0, [3, 5, 8]]
        for logits, text in zip(together, texts, strict=True):
            alone = objective.batch(Samples(np.append(text, 0)[None], np.array([[0] * len(text) + [PADDING]])))
            found = model(alone.inputs, positions=alone.positions, mask=objective.attention_mask(alone))[0, -1]
            assert torch.allclose(found, logits, rtol=0, atol=1e-12), attention


def test_a_corpus_that_fits_is_described(tmp_path):
    states = np.full((4, C), 1)
    states[:2, 1:] = 2
    states[:, 5] = 0
    corpus = write_corpus(tmp_path, states, lengths=[3, 5, 4, 2])
    for rule in (Documents(8), PackedDocuments(8)):
        warnings = config().build(z_loss=0.0).check_corpus(CorpusFiles(corpus, rule), MODEL)
        assert warnings == [
            "corpus 'texts': no text is positive in C0, C5, so these categories learn one answer or nothing from it",
            "corpus 'texts': no text is negative in C5, so these categories learn one answer or nothing from it",
        ]


def test_what_a_classifier_cannot_learn_from_is_refused(tmp_path):
    objective = config().build(z_loss=0.0)
    states = np.random.default_rng(1).integers(1, 3, size=(3, C))
    corpus = write_corpus(tmp_path, states, lengths=[3, 12, 5])
    for rule, model, message in (
        (Windows(4), MODEL, r"data\.sampling = 'window' is invalid for a classifier: .* Use 'packed' or 'document'"),
        (Documents(8), MODEL, r"data\.seq_len = 8 is invalid: in corpus 'texts', document 1 is a text of 12 tokens"),
        (Documents(16), replace(MODEL, n_ctx=10), r"model\.n_ctx = 10 is invalid: in corpus 'texts', document 1 is "),
    ):
        with pytest.raises(ConfigError, match=message):
            objective.check_corpus(CorpusFiles(corpus, rule), model)
    two = {**TAXONOMY, "category": TAXONOMY["category"][:2]}
    of_two = ClassifierConfig(taxonomy_content=json.dumps(two)).build(z_loss=0.0)
    with pytest.raises(ConfigError, match=r"corpus 'texts', stream 'labels': the labels are not those of 2 categories"):
        of_two.check_corpus(CorpusFiles(corpus, Documents(16)), MODEL)
    with pytest.raises(ConfigError, match="the labels are not those of 2 categories"):
        of_two.check_corpus(CorpusFiles(corpus, Documents(16)), MODEL)
    with pytest.raises(ConfigError, match=r"data\.sampling = 'window'"):
        objective.batch(Samples(np.zeros((1, 5), np.int64)))


def test_texts_without_labels_are_the_target_domain_or_nothing(tmp_path):
    corpus = write_corpus(tmp_path, np.zeros((3, C)), lengths=[3, 4, 5], labelled=False)
    files = CorpusFiles(corpus, Documents(8))
    with pytest.raises(ConfigError, match=r"corpus 'texts' has no known label in 3 texts\. Leave it out, or set "):
        config().build(z_loss=0.0).check_corpus(files, MODEL)
    assert config(adversarial_weight=0.01).build(z_loss=0.0).check_corpus(files, MODEL) == []


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"taxonomy": "other 3", "categories": ["X"]}, r"it is 'other 3'; the categories are \['X'\], not \['C0'"),
        ({"taxonomy": "many 2", "categories": IDS}, r"objective\.taxonomy = 'many 1': it is 'many 2'\. Prepare it"),
        ({"taxonomy": "many 1", "categories": IDS, "parents": {"C3": "C1"}}, "the parent of C3 is C1, not none"),
        ({"taxonomy": "many 1", "categories": IDS, "severities": {"C3": 2}}, "the severity of C3 is 2, not none"),
    ],
)
def test_labels_of_another_taxonomy_are_refused(tmp_path, labels, why):
    files = described_corpus(tmp_path, labels)
    with pytest.raises(ConfigError, match=why):
        config().build(z_loss=0.0).check_corpus(files, MODEL)


def test_labels_of_other_instructions_are_a_warning(tmp_path):
    objective = config().build(z_loss=0.0)
    same = {"taxonomy": "many 1", "categories": IDS, "parents": {}, "severities": {}}
    found = []
    for digest in ({}, {"digest": objective.taxonomy.digest}, {"digest": "0"}):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        files = described_corpus(folder, {**same, **digest})
        found.append(objective.check_corpus(files, MODEL))
    assert found[0] == found[1] == found[2][1:]
    assert "was prepared with other titles, definitions, instructions or examples of taxonomy 'many 1'" in found[2][0]


def test_adaptation_needs_texts_of_both_domains(tmp_path):
    """Without, WDAT would do nothing and say nothing."""
    for name in ("source", "target", "mixed"):
        (tmp_path / name).mkdir()
    known = np.ones((2, C), dtype=np.int8)
    source = CorpusFiles(write_corpus(tmp_path / "source", known, lengths=[4, 5]), Documents(8))
    target = CorpusFiles(write_corpus(tmp_path / "target", known, lengths=[4, 5], labelled=False), Documents(8))
    mixed = CorpusFiles(write_corpus(tmp_path / "mixed", known * [[1], [0]], lengths=[4, 5]), Documents(8))
    objective = config(adversarial_weight=0.01).build(z_loss=0.0)
    assert isinstance(objective, MixtureObjective)
    for corpora, rows in (([source, target], 2), ([mixed], 1), ([source, mixed], 4)):
        assert objective.check_mixture(corpora, rows=rows) == []
    for corpora, rows, why in (
        ([source], 2, r"adversarial_weight = 0\.01 is invalid: no text of data\.train is without labels"),
        ([target], 2, r"no text of data\.train is with a known label"),
        ([source, target], 1, r"batch\.micro_batch_size = 1 is invalid .* Use 2 or more"),
    ):
        with pytest.raises(ConfigError, match=why):
            objective.check_mixture(corpora, rows=rows)
    assert config().build(z_loss=0.0).check_mixture([source], rows=1) == []
