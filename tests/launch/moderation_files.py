"""Files of harmless labelled and scored texts for tests of `triaxial moderate`."""

import json

import numpy as np

TAXONOMY = """name = "toys"
version = 1
[[category]]
id = "A"
title = "Boats"
definition = "The text is about boats."
[[category]]
id = "B"
title = "Trains"
definition = "The text is about trains."
"""
SECRET = "harmless-marker"  # in every text: no command may print it


def write_taxonomy(folder):
    path = folder / "toys.toml"
    path.write_text(TAXONOMY)
    return path


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def labelled_and_scored(folder, *, n=300, seed=0):
    """Write n texts with true labels and well-ordered scores: paths of labels and scores, and the labels (n, 2)."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.6, 1.2, size=(n, 2)).round(6)
    labels = (rng.random((n, 2)) < scores).astype(int)
    ids = [f"t{i}" for i in range(n)]
    texts = [
        {"id": one, "text": f"{SECRET} {one}", "labels": {"A": int(row[0]), "B": int(row[1])}}
        for one, row in zip(ids, labels, strict=True)
    ]
    scored = [
        {"id": one, "text": f"{SECRET} {one}", "scores": {"A": float(row[0]), "B": float(row[1])}}
        for one, row in zip(ids, scores, strict=True)
    ]
    return write_lines(folder / "labels.jsonl", texts), write_lines(folder / "scores.jsonl", scored), labels
