"""Build the parts of a training run from its recipe: device, data, objective, engine, run, metrics."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from gpt.data.dataset import TrainingData, ValidationData
from gpt.errors import ConfigError
from gpt.model.gpt import Embedding
from gpt.model.heads import VocabularyHead
from gpt.telemetry.event_log import EventKind
from gpt.telemetry.metrics import MetricsWriter
from gpt.telemetry.time_ledger import TimeLedger
from gpt.token_files import corpus as token_corpus
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer
from gpt.training.engine import Engine
from gpt.training.objective import MixtureObjective, Objective, ReferencedObjective
from gpt.training.run import Run
from gpt.training.validation import check_best_name, validation_names
from launch.config.corpora import naming_the_maker
from launch.config.run_config import RunConfig, as_dict
from launch.processes.environment import GPU_MEMORY_SETTINGS, ClusterEnvironment, set_unless_set
from launch.training.hardware import peak_flops_per_s
from launch.training.local_tier import local_directory
from launch.training.reference import REFERENCE, build_reference
from launch.training.resume import RunStart
from parallel.adapters.base import with_bases
from parallel.agreement import wait_for_all
from parallel.checkpoint.handle import Checkpoint
from parallel.checkpoint.load import has_shape
from parallel.checkpoint.local_tier import is_local
from parallel.engines import choose
from parallel.engines.referenced import ReferencedEngine
from parallel.engines.settings import EngineSettings
from parallel.health.stragglers import Stragglers
from parallel.layout.layout import Layout
from parallel.layout.mesh import build_mesh
from parallel.parallelize import check_parameter_patterns, model_on_meta

ENDS = ("embed.", "head.")  # how the names of parameters of an objective's two ends begin


def pick_device(config: RunConfig, environment: ClusterEnvironment) -> torch.device:
    """The accelerator of this local rank, or the CPU. ConfigError: `run.device` asks for a GPU that is not there."""
    wanted = config.run.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "run.device = 'cuda', but torch finds no CUDA device here; `triaxial doctor` shows what it finds"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if environment.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {environment.local_rank} has no GPU of its own: this node has {torch.cuda.device_count()}. "
            f"Start as many processes per node as it has GPUs, or set run.device = 'cpu'"
        )
    device = torch.device("cuda", environment.local_rank)
    set_unless_set(GPU_MEMORY_SETTINGS)  # a launcher has set them; a process without one reads them at the next line
    torch.cuda.set_device(device)
    return device


def build_engine(
    config: RunConfig,
    layout: Layout,
    device: torch.device,
    start: RunStart,
    ledger: TimeLedger,
    *,
    objective: Objective,
    keep_reference: bool = True,
) -> Engine:
    """The engine with its weights: of the checkpoint, of another run, or of the seed. Collective over all ranks.

    If the objective has ends of its own, those that the other run lacks are initialised from the seed. An event of
    `start` names each of their parameters. If it learns relative to a reference model, a run that may resume must keep
    a copy of that model.
    """
    new_ends: tuple[str, ...] = ()
    if start.weights is not None and not has_usual_ends(config, objective):
        new_ends = missing_ends(config, objective, start.weights)
    settings, mesh = engine_settings(config, layout), build_mesh(layout, device)
    engine = choose.build_engine(
        settings,
        objective=objective,
        device=device,
        init_weights=start.checkpoint is None and (start.weights is None or new_ends),
        mesh=mesh,
    )
    loads = start.weights is not None or start.checkpoint is not None or isinstance(objective, ReferencedObjective)
    with ledger.span("start_up/loading") if loads else nullcontext():
        if start.weights is not None:
            missing = engine.checkpoints.shared.load_weights(start.weights, optional=new_ends)
            start.events.extend(
                ("started_from", f"{name} is initialised from the seed: {start.weights.path} has none of this shape")
                for name in missing
                if start.checkpoint is None
            )
        if start.checkpoint is not None:
            store = engine.checkpoints.local if is_local(start.checkpoint) else engine.checkpoints.shared
            store.load(start.checkpoint)
        if not isinstance(objective, ReferencedObjective):
            return engine
        folder = config.run.directory / REFERENCE if keep_reference else None
        reference = build_reference(settings, objective=objective, device=device, mesh=mesh, start=start, folder=folder)
        return ReferencedEngine(engine, reference, objective)


def missing_ends(config: RunConfig, objective: Objective, weights: Checkpoint) -> tuple[str, ...]:
    """The names of the parameters of the objective's ends that a run lacks in this shape. Every rank must call it."""
    ends, chain = model_on_meta(config.model, objective, range(0), first=True, last=True), with_bases(weights)
    return tuple(
        name
        for name, parameter in ends.named_parameters()
        if name.startswith(ENDS) and not any(has_shape(each, f"model.{name}", tuple(parameter.shape)) for each in chain)
    )


def has_usual_ends(config: RunConfig, objective: Objective) -> bool:
    """Return whether the objective's model has the ends of a language model: token embeddings and a vocabulary head."""
    with torch.device("meta"):
        front, head = objective.front(config.model), objective.head(config.model)
    return isinstance(front, Embedding) and isinstance(head, VocabularyHead)


def build_objective(config: RunConfig) -> Objective:
    """The objective of the recipe's [objective] section."""
    return config.objective.build(z_loss=config.train.z_loss)


def check_objective(config: RunConfig) -> None:
    """ConfigError if the model or the data do not fit the recipe.

    A corpus lacks a stream of the objective, a pattern of [optimizer] matches no parameter, or texts are wanted of a
    model that does not predict tokens.
    """
    objective = build_objective(config)
    config.data.check_streams(objective.streams, optional=objective.optional_streams)
    corpora = [corpus.name for corpus in config.data.validation]
    check_best_name(config.checkpoint, validation_names(corpora, objective.loss(compile=False)))
    check_parameter_patterns(config.model, objective, optimizer=config.optimizer, adapter=config.adapter)
    predicts_tokens = _predicts_tokens(config, objective)
    for key in ("sample_every_tokens", "few_shot_every_tokens"):
        if getattr(config.train, key) is not None and not predicts_tokens:
            raise ConfigError(
                f"train.{key} = {getattr(config.train, key)} is invalid: the objective of [objective] predicts no "
                f"tokens, so the model cannot write. Leave the key out"
            )


def _predicts_tokens(config: RunConfig, objective: Objective) -> bool:
    with torch.device("meta"):
        return isinstance(objective.head(config.model), VocabularyHead)


def engine_settings(config: RunConfig, layout: Layout) -> EngineSettings:
    return EngineSettings(
        model=config.model,
        parallel=config.parallel,
        layout=layout,
        optimizer=config.optimizer,
        micro_batch_size=config.batch.micro_batch_size,
        seed=config.run.seed,
        residual_dropout=config.train.residual_dropout,
        adapter=config.adapter,
    )


def build_run(config: RunConfig, saved_state: dict[str, object], *, peak_flops_per_s: float) -> Run:
    """The run of a recipe. `saved_state` goes into each checkpoint; `peak_flops_per_s` is that of all devices."""
    return Run(
        config=config.train,
        checkpoint=config.checkpoint,
        faults=config.faults,
        spike=config.spike,
        model=config.model,
        schedule=config.schedule,
        peak_learning_rate=config.optimizer.learning_rate,
        seq_len=config.data.seq_len,
        batch=config.batch.ramp,
        micro_batch_size=config.batch.micro_batch_size,
        peak_flops_per_s=peak_flops_per_s,
        log_every_steps=config.metrics.log_every_steps,
        replica_check_every_steps=config.health.replica_check_every_steps,
        directory=config.run.directory,
        local_checkpoints=local_directory(config),
        saved_state=saved_state,
        adapter=config.adapter,
    )


def watch_steps(config: RunConfig, layout: Layout, device: torch.device) -> Stragglers | None:
    """The detector of slow ranks, or None if the recipe turns it off or there are no ranks to compare."""
    every_steps = config.health.straggler_every_steps
    if every_steps == 0 or layout.tensor * layout.data == 1:
        return None
    return Stragglers(layout, device, every_steps=every_steps)


def open_data(config: RunConfig) -> tuple[TrainingData, dict[str, ValidationData]]:
    """The training data, and the validation corpora by name. ConfigError: files that cannot be read."""
    vocab_size = config.model.vocab_size
    with naming_the_maker():
        data = TrainingData(config.data, seed=config.run.seed, vocab_size=vocab_size)
        validation = {
            corpus.name: ValidationData(corpus, config.data, vocab_size=vocab_size) for corpus in config.data.validation
        }
    return data, validation


def check_data(
    config: RunConfig, data: TrainingData, validation: Mapping[str, ValidationData]
) -> list[tuple[EventKind, str]]:
    """Warnings of the objective about the corpora, to log. ConfigError: a corpus that the run cannot learn from."""
    objective = build_objective(config)
    corpora = (*data.files, *(corpus.files for corpus in validation.values()))
    warnings = [text for files in corpora for text in objective.check_corpus(files, config.model)]
    if isinstance(objective, MixtureObjective):
        warnings += objective.check_mixture(data.files, rows=config.batch.micro_batch_size)
    return [("warning", text) for text in warnings]


def check_tokenizer(config: RunConfig) -> Tokenizer:
    """The recipe's tokenizer. ConfigError: the model's vocabulary is too small, or another tokenizer made a corpus."""
    path = Path(config.data.tokenizer)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size} is smaller than the {tokenizer.vocab_size} pieces of "
            f"{path}; set model.vocab_size = {tokenizer.vocab_size}"
        )
    for corpus in (*config.data.train, *config.data.validation):
        token_corpus.check_tokenizer(Path(corpus.path), path=path, fingerprint=tokenizer.fingerprint)
    return tokenizer


def total_peak_flops_per_s(config: RunConfig, environment: ClusterEnvironment, device: torch.device) -> float:
    """The peak of all devices together, as stated in the recipe or measured. Every rank must call it.

    The main rank measures. Other ranks get 0.
    """
    if config.run.peak_flops_per_s is not None:
        return config.run.peak_flops_per_s * environment.world_size
    peak = 0.0
    if environment.rank == 0:
        peak = peak_flops_per_s(
            device,
            bf16=config.parallel.precision != "fp32",
            world_size=environment.world_size,
            local_world_size=environment.local_world_size,
        )
    wait_for_all()  # the first step must not wait for the measurement
    return peak


def open_metrics(config: RunConfig, run: Run, start: RunStart) -> MetricsWriter:
    """The metrics of the run, which the main rank writes."""
    return MetricsWriter(
        config.metrics,
        config.run.directory,
        run_config=as_dict(config),
        resume_step=start.step or None,
        total_steps=run.steps,
        total_tokens=run.batch.tokens_seen(run.steps),
    )
