"""Export a classifier run as an ONNX file, and check it with onnxruntime."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gpt.errors import ConfigError, import_extra
from gpt.files.atomic import hidden_name
from gpt.moderation.classifier import Classifier
from gpt.moderation.heads import constrained
from gpt.moderation.measures.calibration import Calibrator, Temperature
from launch.moderation.classifier import OpenedClassifier
from launch.moderation.export import check_near
from launch.runs.open_engine import LocalScorer

_MAX_BATCH = 1024
_CHECKED = ((1, 2), (2, 9), (5, 33), (3, 64))  # (batch, tokens)


class ClassifierGraph(nn.Module):
    """`input_ids` and `attention_mask` (b, t), padded on the right and ended by the end-of-document token, to
    probabilities (b, c)."""

    def __init__(self, scorer: LocalScorer, calibrators: Mapping[str, Calibrator]) -> None:
        super().__init__()
        assert isinstance(scorer.objective, Classifier)
        self.module, own = scorer.module, scorer.objective
        self.n_categories = len(own.taxonomy.ids)
        self.pooling = own.config.pooling
        self.calibrators = [calibrators.get(name) for name in own.taxonomy.ids]
        self.parents = own.taxonomy.parents if own.config.parents else (-1,) * self.n_categories

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.logits(input_ids, attention_mask)
        columns = [_calibrated(*pair) for pair in zip(logits.unbind(-1), self.calibrators, strict=True)]
        return constrained(torch.stack(columns, dim=-1), self.parents)

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (b, c) before calibration."""
        hidden = self.module.hidden_states(input_ids)  # (b, t, d)
        assert self.module.head is not None
        if self.pooling.needs_whole_text:
            logits = self.pooling.of_rows(self.module.head(hidden), attention_mask)
        else:
            ends = self.pooling.of_rows(hidden, attention_mask)
            logits = self.module.head(ends[:, None])[:, 0]
        return constrained(logits[:, : self.n_categories], self.parents)


def _calibrated(logits: Tensor, calibrator: Calibrator | None) -> Tensor:
    """Probabilities (b,) of logits (b,). A curve is a sum of clamped lines: ONNX has no search in a table."""
    if isinstance(calibrator, Temperature):
        return torch.sigmoid(logits / calibrator.temperature)
    if calibrator is None:
        return torch.sigmoid(logits)
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (calibrator.x, calibrator.y))
    done = (torch.sigmoid(logits.double()).unsqueeze(-1) - x[:-1]).clamp(min=0).minimum(x.diff())
    return ((done / x.diff() * y.diff()).sum(-1) + y[0]).to(logits.dtype)


def export_onnx(classifier: OpenedClassifier, output: Path) -> float:
    """Write `output`, and return the largest difference between onnxruntime's probabilities and ours.

    `classifier`: opened with `load_classifier` in fp32, not packed; the file has its calibration. ConfigError: a
    package is missing, the attention is not causal, or the file exists.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, extra="onnx")
    scorer = classifier.run.engine
    assert isinstance(scorer, LocalScorer)
    assert isinstance(scorer.objective, Classifier)
    if scorer.objective.config.attention != "causal":
        raise ConfigError("objective.attention = 'full' cannot be exported: padding would change the scores")
    if output.exists():
        raise ConfigError(f"--onnx {output} exists already. Name a file that does not, or remove this one")
    graph = ClassifierGraph(scorer, classifier.decisions.calibrators).eval()
    sizes = {
        0: torch.export.Dim("batch", min=1, max=_MAX_BATCH),
        1: torch.export.Dim("tokens", min=2, max=classifier.run.model.n_ctx),
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
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return error


def _compare(graph: ClassifierGraph, path: Path, classifier: OpenedClassifier) -> float:
    runtime = import_extra("onnxruntime", extra="onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    draw, largest = np.random.default_rng(0), 0.0
    for rows, length in _CHECKED:
        if length > classifier.run.model.n_ctx:
            continue
        ids = draw.integers(0, classifier.run.tokenizer.vocab_size, size=(rows, length))
        mask = (np.arange(length) < draw.integers(1, length + 1, size=(rows, 1))).astype(np.int64)
        found = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        with torch.no_grad():
            raw = torch.sigmoid(graph.logits(torch.from_numpy(ids), torch.from_numpy(mask)).double()).numpy()
        check_near(found, raw, classifier, where=str(path))
        wanted = classifier.decisions.applied(raw, classifier.categories)
        largest = max(largest, float(np.abs(found - wanted).max()))
    return largest
