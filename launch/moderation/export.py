"""Export a classifier run as a folder that `transformers` loads as AutoModelForSequenceClassification.

The classes of transformers have one linear layer without bias at the end. A head that this layer expresses exactly is
exported to them; any other needs a model class of its own, which the folder then contains.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from gpt.convert.hugging_face.config import config_json
from gpt.convert.hugging_face.names import family_of, to_hugging_face
from gpt.convert.hugging_face.tokenizer import SAMPLES, write_tokenizer
from gpt.errors import ConfigError, import_extra
from gpt.files.atomic import partial_folder
from gpt.files.json_text import decode_json
from gpt.model.config import ModelConfig
from gpt.moderation.classifier import Classifier
from gpt.moderation.measures.calibration import Isotonic, Temperature, calibrator_json
from launch.moderation.classifier import OpenedClassifier
from launch.moderation.decisions import Decisions
from launch.runs.open_engine import LocalScorer

CODE = "modeling_triaxial_classifier.py"
_UNUSED = ("<pad>", "<unk>")  # pieces that byte fallback leaves without use
TOLERANCE = 1e-5  # of probabilities in fp32
_LAST_NORM = {"gpt2": "norm.bias", "llama": ""}
_CLASSES = {"gpt2": "GPT2ForSequenceClassification", "llama": "LlamaForSequenceClassification"}


@dataclass(frozen=True)
class ExportedFolder:
    """`architecture`: the class that loads it. `max_error`: the largest difference of probabilities, on `texts`."""

    folder: Path
    architecture: str
    needs_code: bool
    max_error: float
    texts: int


def export_classifier(classifier: OpenedClassifier, output: Path, *, with_code: bool, card: str) -> ExportedFolder:
    """Write the folder, load it with transformers, and compare scores; then give it its name.

    `classifier`: opened with `load_classifier` in fp32; the folder has its calibration. `with_code`: write a model
    class into the folder if transformers has none. ConfigError: it has none, or the output exists.
    """
    import_extra("transformers", extra="hf")
    scorer, objective = _parts(classifier)
    config = replace(classifier.run.model, tied=True)  # a classifier has no vocabulary head
    family = family_of(config)
    if objective.config.attention != "causal":
        raise ConfigError(
            f"objective.attention = '{objective.config.attention}' cannot be exported: the decoders of transformers "
            "are causal. Serve the run with `triaxial moderate serve`"
        )
    weights = {name: tensor.detach().cpu() for name, tensor in scorer.module.named_parameters()}
    trunk = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    with partial_folder(output) as folder:
        pad = _write_tokenizer(classifier, folder)
        obstacle = _obstacle(objective, weights, family, classifier.decisions)
        if not obstacle and pad == classifier.run.tokenizer.end_of_document_id:
            obstacle = "they find the end of a text by its padding, and the tokenizer has no special token for that"
        if obstacle and not with_code:
            raise ConfigError(
                f"no class of transformers expresses this classifier: {obstacle}. Add --with-code, which writes a "
                "model class into the folder (transformers then needs trust_remote_code=True)"
            )
        if obstacle:
            tensors, settings = _with_code(trunk, weights, config, classifier)
            code = resources.files("launch.moderation") / "assets" / CODE.replace(".py", ".txt")
            (folder / CODE).write_text(code.read_text(encoding="utf-8"), encoding="utf-8")
        else:
            tensors, settings = _plain(trunk, _tempered(weights, classifier), config)
        settings |= _labels(classifier) | {
            "pad_token_id": pad,
            "eos_token_id": classifier.run.tokenizer.end_of_document_id,
        }
        settings["triaxial"] = {"version": classifier.version, "window": classifier.window}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "config.json", settings)
        _write_json(folder / "thresholds.json", dict(classifier.thresholds))
        (folder / "README.md").write_text(card, encoding="utf-8")
        error, n_texts = compare(classifier, folder, has_code=bool(obstacle))
    name = settings["architectures"][0]
    return ExportedFolder(output, name, bool(obstacle), error, n_texts)


def compare(classifier: OpenedClassifier, folder: Path, *, has_code: bool) -> tuple[float, int]:
    """The largest difference of probabilities between the folder in transformers and ours, and the number of texts.

    They are compared in padded batches; texts of several windows are left out without our code. RuntimeError: they
    differ by more than TOLERANCE, or by more than it becomes in a steep calibration.
    """
    transformers = import_extra("transformers", extra="hf")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    loader = _own_class(folder) if has_code else transformers.AutoModelForSequenceClassification
    model = loader.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False)
    largest, texts = 0.0, _sample_texts()
    fits = [has_code or n == 1 for n in classifier.n_windows(classifier.encoded(texts))]
    texts = [text for text, one in zip(texts, fits, strict=True) if one]
    uncalibrated = replace(classifier, decisions=Decisions())
    for start in range(0, len(texts), 8):
        some = texts[start : start + 8]
        batch = tokenizer(some, padding=True, padding_side="right", return_tensors="pt", verbose=False)
        with torch.inference_mode():
            logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        found = torch.sigmoid(logits.double()).numpy()
        check_near(found, uncalibrated.scores(some), classifier, where=str(folder))
        largest = max(largest, float(np.abs(found - classifier.scores(some)).max()))
    return largest, len(texts)


def check_near(
    found: NDArray[np.float64], raw: NDArray[np.float64], classifier: OpenedClassifier, *, where: str
) -> None:
    """RuntimeError unless scores (n, c) equal our calibrated ones. Raw and calibrated may each differ by TOLERANCE."""
    low, high = (
        classifier.decisions.applied(np.clip(raw + change, 0, 1), classifier.categories)
        for change in (-TOLERANCE, TOLERANCE)
    )
    error = float(np.maximum(low - found, found - high).max())
    if error > TOLERANCE:
        raise RuntimeError(f"{where}: scores differ from ours by {error:.1e}, more than {TOLERANCE:.0e}")


def _own_class(folder: Path) -> Any:
    """The model class in the folder. It is our asset, written there a moment ago: no stranger's code runs."""
    spec = importlib.util.spec_from_file_location(CODE.removesuffix(".py"), folder / CODE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # transformers looks a model's module up there
    spec.loader.exec_module(module)
    return module.TriaxialClassifier


def _parts(classifier: OpenedClassifier) -> tuple[LocalScorer, Classifier]:
    scorer = classifier.run.engine
    assert isinstance(scorer, LocalScorer), "open the run with load_classifier"
    assert isinstance(scorer.objective, Classifier)
    return scorer, scorer.objective


def _obstacle(objective: Classifier, weights: dict[str, Tensor], family: str, decisions: Decisions) -> str:
    """Why the classes of transformers cannot express the model, "" if they can."""
    own = objective.config
    if own.head != "linear":
        return f"they have no MLP at the end (objective.head = '{own.head}')"
    if own.pool != "last":
        return f"they read a text's last token alone (objective.pool = '{own.pool}')"
    if own.parents and any(parent >= 0 for parent in objective.taxonomy.parents):
        return "they cannot give a category at least the score of its children (objective.parents = true)"
    if any(isinstance(one, Isotonic) for one in decisions.calibrators.values()):
        return "they cannot follow an isotonic calibration"
    if family == "llama" and bool(weights["head.classes.bias"].any()):
        return "their linear layer has no bias, and RMSNorm has none that could hold it"
    return ""


def _tempered(weights: dict[str, Tensor], classifier: OpenedClassifier) -> dict[str, Tensor]:
    """The weights with those of a linear head divided by the temperatures of the calibration."""
    found = [classifier.decisions.calibrators.get(name) for name in classifier.categories]
    scales = torch.tensor([1 / one.temperature if isinstance(one, Temperature) else 1.0 for one in found])
    weight, bias = weights["head.classes.weight"].float(), weights["head.classes.bias"].float()
    return {**weights, "head.classes.weight": weight * scales[:, None], "head.classes.bias": bias * scales}


def _plain(
    trunk: dict[str, Tensor], weights: dict[str, Tensor], config: ModelConfig
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of GPT2ForSequenceClassification or LlamaForSequenceClassification.

    GPT-2: the bias b of the head moves into that of the last norm, as W (beta + W+ b) = W beta + b, with the
    pseudo-inverse W+ of the head's weight. It is exact if the rows of W are independent.
    """
    family, head = family_of(config), weights["head.classes.weight"].float()
    trunk = dict(trunk)
    if name := _LAST_NORM[family]:
        moved = torch.linalg.pinv(head.double()) @ weights["head.classes.bias"].double()
        trunk[name] = (trunk[name].double() + moved).float()
    tensors = dict(_converted(config, trunk)) | {"score.weight": head.contiguous()}
    settings = config_json(config, dtype=torch.float32)
    return tensors, {**settings, "architectures": [_CLASSES[family]]}


def _with_code(
    trunk: dict[str, Tensor], weights: dict[str, Tensor], config: ModelConfig, classifier: OpenedClassifier
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of the class in the asset CODE."""
    objective, calibrators = _parts(classifier)[1], classifier.decisions.calibrators
    prefix = {"gpt2": "transformer.", "llama": "model."}[family_of(config)]
    tensors = {f"trunk.{name.removeprefix(prefix)}": tensor for name, tensor in _converted(config, trunk)}
    for name, tensor in weights.items():
        if name.startswith("head.") and not name.startswith("head.critic."):
            tensors[name.removeprefix("head.")] = tensor.float().contiguous()
    own, module = objective.config, CODE.removesuffix(".py")
    return tensors, {
        "model_type": "triaxial_classifier",
        "architectures": ["TriaxialClassifier"],
        "auto_map": {
            "AutoConfig": f"{module}.TriaxialClassifierConfig",
            "AutoModelForSequenceClassification": f"{module}.TriaxialClassifier",
        },
        "dtype": "float32",
        "trunk": config_json(config, dtype=torch.float32),
        "head": own.head,
        "head_hidden": own.hidden if own.head != "linear" else 0,
        "pool": own.pool,
        "queries": own.n_queries,
        "parents": list(objective.taxonomy.parents) if own.parents else [-1] * len(objective.taxonomy.ids),
        "window": classifier.window,
        "calibration": [
            calibrator_json(calibrators[name]) if name in calibrators else None for name in classifier.categories
        ],
    }


def _converted(config: ModelConfig, trunk: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in to_hugging_face(config, trunk.items()):
        yield name, tensor.float().contiguous()


def _labels(classifier: OpenedClassifier) -> dict[str, Any]:
    ids = classifier.categories
    return {
        "problem_type": "multi_label_classification",
        "id2label": {str(number): name for number, name in enumerate(ids)},
        "label2id": {name: number for number, name in enumerate(ids)},
    }


def _write_tokenizer(classifier: OpenedClassifier, folder: Path) -> int:
    """The tokenizer's files; it appends the end-of-document token to each text. Returns the id of the padding token.

    A token that no text gives pads: a special one, or that of unknown characters. Without any it is the
    end-of-document token.
    """
    end = classifier.run.tokenizer.end_of_document_id
    write_tokenizer(
        classifier.run.tokenizer_file,
        folder,
        tokenizer=classifier.run.tokenizer,
        n_ctx=min(classifier.window, classifier.run.model.n_ctx),
    )
    path = folder / "tokenizer.json"
    file = decode_json(path.read_bytes())
    names = {one["id"]: one["content"] for one in file.get("added_tokens", []) if one.get("special")}
    vocabulary = file["model"]["vocab"]
    unknown = {vocabulary[name]: name for name in _UNUSED if isinstance(vocabulary, dict) and name in vocabulary}
    pad = next((number for number in (*sorted(names), *unknown) if number != end), end)
    names = {**unknown, **names}
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": names[end], "type_id": 0}}],
        "pair": [
            *({"Sequence": {"id": one, "type_id": 0}} for one in "AB"),
            {"SpecialToken": {"id": names[end], "type_id": 0}},
        ],
        "special_tokens": {names[end]: {"id": names[end], "ids": [end], "tokens": [names[end]]}},
    }
    _write_json(path, file)
    settings = decode_json((folder / "tokenizer_config.json").read_bytes())
    _write_json(folder / "tokenizer_config.json", {**settings, "pad_token": names[pad], "padding_side": "right"})
    return pad


def _sample_texts() -> list[str]:
    return [*SAMPLES, *(f"{SAMPLES[0]} {number} {text}"[:400] for number, text in enumerate(SAMPLES))]


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
