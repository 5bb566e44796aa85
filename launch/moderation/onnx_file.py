"""Export a classifier run as an ONNX file, and check it with onnxruntime."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gpt.errors import ConfigError, import_extra
from gpt.files.atomic import hidden_name
from gpt.moderation.classifier import Classifier
from gpt.moderation.heads import constrained
from launch.moderation.classifier import OpenedClassifier
from launch.runs.open_engine import LocalScorer

TOLERANCE = 1e-5  # of probabilities in fp32
_MAX_BATCH = 1024
_CHECKED = ((1, 2), (2, 9), (5, 33), (3, 64))  # (batch, tokens)


class ClassifierGraph(nn.Module):
    """`input_ids` and `attention_mask` (b, t), padded on the right and ended by the end-of-document token, to
    probabilities (b, c)."""

    def __init__(self, scorer: LocalScorer) -> None:
        super().__init__()
        assert isinstance(scorer.objective, Classifier)
        self.module, own = scorer.module, scorer.objective
        self.n_categories = len(own.taxonomy.ids)
        self.pool = own.config.pool
        self.parents = own.taxonomy.parents if own.config.parents else (-1,) * self.n_categories

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.module.hidden_states(input_ids)  # (b, t, d)
        assert self.module.head is not None
        if self.pool == "mean":
            kept = attention_mask.unsqueeze(-1).double()
            own: Tensor = self.module.head(hidden)[..., : self.n_categories]
            logits = ((own * kept).sum(1) / kept.sum(1)).to(own.dtype)
        else:
            last = (attention_mask * torch.arange(hidden.size(1))).argmax(-1)
            ends = hidden[torch.arange(hidden.size(0)), last]
            logits = self.module.head(ends[:, None])[:, 0, : self.n_categories]
        return torch.sigmoid(constrained(logits, self.parents))


def export_onnx(classifier: OpenedClassifier, output: Path) -> float:
    """Write `output`, and return the largest difference between onnxruntime's probabilities and ours.

    `classifier`: opened with `load_classifier(raw=True)` in fp32, not packed. ConfigError: a package is missing, the
    attention is not causal, or the file exists.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, extra="onnx")
    scorer = classifier.engine
    assert isinstance(scorer, LocalScorer)
    assert isinstance(scorer.objective, Classifier)
    if scorer.objective.config.attention != "causal":
        raise ConfigError("objective.attention = 'full' cannot be exported: padding would change the scores")
    if output.exists():
        raise ConfigError(f"--onnx {output} exists already. Name a file that does not, or remove this one")
    graph = ClassifierGraph(scorer).eval()
    sizes = {
        0: torch.export.Dim("batch", min=1, max=_MAX_BATCH),
        1: torch.export.Dim("tokens", min=2, max=classifier.model.n_ctx),
    }
    ids = torch.zeros((2, 8), dtype=torch.int64)
    partial = hidden_name(output)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.onnx warns about its own code
            program = torch.onnx.export(
                graph,
                (ids, torch.ones_like(ids)),
                dynamo=True,
                verbose=False,
                dynamic_shapes=(sizes, sizes),
                input_names=["input_ids", "attention_mask"],
                output_names=["scores"],
            )
            assert program is not None
            program.model.metadata_props.update(version=classifier.version, categories=",".join(classifier.categories))
            program.save(str(partial), external_data=False)
        error = _compare(graph, partial, classifier)
        if error > TOLERANCE:
            raise RuntimeError(f"{output}: scores differ from ours by {error:.1e}, more than {TOLERANCE:.0e}")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return error


def _compare(graph: ClassifierGraph, path: Path, classifier: OpenedClassifier) -> float:
    runtime = import_extra("onnxruntime", extra="onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    draw, largest = np.random.default_rng(0), 0.0
    for rows, length in _CHECKED:
        if length > classifier.model.n_ctx:
            continue
        ids = draw.integers(0, classifier.tokenizer.vocab_size, size=(rows, length))
        mask = (np.arange(length) < draw.integers(1, length + 1, size=(rows, 1))).astype(np.int64)
        found = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        with torch.no_grad():
            wanted = graph(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        largest = max(largest, float(np.abs(found - wanted).max()))
    return largest
