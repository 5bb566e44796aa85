"""A text leads to every step that reads it, the reverse of tests/launch/runs/test_audited.py."""

import pytest

from launch.runs.audited import open_audited_run, sequences_of_step, with_sources
from launch.runs.trail import follow

pytest.importorskip("resiliparse", reason="needs the extra 'data'")


def steps_by_id(folder):
    """By document id: the (step, position) pairs that read it, found step by step."""
    audited = open_audited_run(folder / "run", [], rank=None, text=False)
    found: dict[str, set[tuple[int, int]]] = {}
    for step in range(1, 5):
        for sequence in with_sources(sequences_of_step(audited, step), None):
            for part in sequence.documents:
                found.setdefault(part.id, set()).add((step, sequence.position))
    return found


def test_each_document_leads_to_the_steps_that_read_it(prepared):
    folder, texts = prepared
    audited = open_audited_run(folder / "run", [], rank=None, text=False)
    expected = steps_by_id(folder)
    assert expected
    for document_id in texts:
        (trail,) = follow(audited, document_id, work=None)
        assert trail.fates[0].dropped is None
        found = {(r.step, r.position) for document in trail.documents for r in document.readings}
        assert found == expected.get(document_id, set()), document_id
    (trail,) = follow(audited, "https://example.org/doc-7", work=None)
    assert {document.id for document in trail.documents} == {"doc-7"}
    (trail,) = follow(audited, str(folder / "0.jsonl"), work=None)
    assert {document.id for document in trail.documents} == set(list(texts)[::2])
