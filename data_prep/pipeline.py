"""Run the stages in their order, from a recipe's inputs to its corpus folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.conversations.chat_format import choose_format
from data_prep.conversations.check import check_conversations, reading_lines
from data_prep.conversations.corpus import render_conversations
from data_prep.conversations.read import READ, read_task
from data_prep.corpus.upload import check_target, upload_corpus
from data_prep.decontamination.decontaminate import REPORT, decontaminate, summary
from data_prep.decontamination.evaluation_sets import check_sets
from data_prep.dedup import exact, fuzzy
from data_prep.dedup.exact import COPY
from data_prep.dedup.fuzzy import NEAR_COPY
from data_prep.documents.counts import Counts
from data_prep.documents.losses import losses_in, reading_facts, sum_of_losses
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.shares import Share
from data_prep.execution.workers import Executor, LocalWorkers
from data_prep.execution.workspace import SHARE_TIMEOUT_S, Workspace
from data_prep.extraction.extract import extract_stage, extract_task
from data_prep.extraction.page_text import load_libraries
from data_prep.filters.language import language_stage
from data_prep.filters.moderation import ModerationStage, check_moderation
from data_prep.filters.pareto import CLASSIFY
from data_prep.filters.pii import PII
from data_prep.filters.quality import QUALITY
from data_prep.filters.quality_classifier import load_model
from data_prep.inputs.config import form_of
from data_prep.inputs.find import check_inputs, find_inputs, left_out, local_inputs, name_left_out, name_linked
from data_prep.inputs.input_lists import ANSWERS, Answers, encode_answers, expand_lists
from data_prep.labels.corpus import check_label_files, check_label_paths, naming_the_reader
from data_prep.labels.read import READ as READ_LABELS
from data_prep.labels.read import label_read_task
from data_prep.readers.python_docs import CRAWL, CrawlTask
from data_prep.readers.remote_files import RemoteFile
from data_prep.recipe import PrepareConfig
from data_prep.write_corpus import write_corpus
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer

_CRAWL_FILES = 8  # fixed: it decides the content of the demo's crawl


@dataclass(frozen=True)
class PreparedCorpus:
    """The result of a run: rows of the final table, findings of the stages, the corpus folder and its description."""

    counts: list[Counts]
    facts: dict[str, list[dict[str, Any]]]  # stage: facts of its tasks
    seconds: dict[str, tuple[int, float]]  # stage: (tasks, seconds of work)
    folder: Path
    description: dict[str, Any]
    quarantined: dict[str, list[tuple[Path, int]]] = field(default_factory=dict)  # stage: files of failed documents


def prepare(
    config: PrepareConfig,
    *,
    n_workers: int | None,
    progress: ProgressBars,
    executor: Callable[[int | None], Executor] = LocalWorkers,
    share: Share | None = None,
    share_timeout_s: float = SHARE_TIMEOUT_S,
    on_error: Callable[[ShardRun], None] = lambda run: None,
    moderation: ModerationStage | None = None,
) -> PreparedCorpus:
    """Run every stage that is not finished yet and publish the corpus; ConfigError if no document is left.

    `executor`, `share`: as for `Workspace`. `on_error`: called with the finished stages before an error is raised.
    `moderation`: scores documents if the recipe has [moderation].
    """
    found = check(config)
    check_moderation(config.moderation, moderation)
    with Workspace(
        config.output.work_folder,
        n_workers=n_workers,
        progress=progress,
        executor=executor,
        share=share,
        share_timeout_s=share_timeout_s,
        keep_intermediate=config.output.keep_intermediate,
        quarantine=config.quarantine,
    ) as workspace:

        def steps() -> PreparedCorpus:
            run = ShardRun(workspace)
            try:
                return run_stages(run, config, found, moderation)
            except (ConfigError, RuntimeError):
                on_error(run)
                raise

        return workspace.run_whole(steps)


def check(config: PrepareConfig, *, known: Answers | None = None) -> list[Path | RemoteFile]:
    """Return the input files, none for the built-in source. ConfigError: a mistake that can be seen before any stage.

    `known`: as for `find_inputs`.
    """
    paths = (*config.input.paths, *expand_lists(config.input.path_lists, config.input.path_base))
    if config.labels is not None:
        check_label_paths(paths, config.input)
    found = find_inputs(paths, known=known, endings=config.input.endings, without=_own_folders(config))
    if config.conversations is not None:
        check_conversations(found, config.input, config.conversations)
    elif config.labels is not None:
        check_label_files(found, config.input)
    else:
        check_inputs(found, config.input)
    _check_tokenizer(config)
    _check_other_corpora(config)
    check_sets(config.decontaminate.sets, where="decontaminate.sets")  # report a wrong file now
    if config.classify.model is not None:
        load_model(config.classify.model)
    load_libraries(config.extract)
    if config.output.url is not None:
        check_target(config.output.url)
    return found


def run_stages(
    run: ShardRun, config: PrepareConfig, found: list[Path | RemoteFile], moderation: ModerationStage | None = None
) -> PreparedCorpus:
    """Run all stages in their order and publish the corpus; with a plan as `run.workspace`, only plan that."""
    workspace = run.workspace
    shards = _read(run, config, found)
    against = config.dedup.against
    if config.dedup_exact.enabled:
        find = partial(exact.find_copies, run, config.dedup_exact, shards, against=against)
        copies = workspace.find(find, shards, size=0)
        shards = run.map(exact.REMOVAL, COPY, shards, extra_inputs=copies)
    if config.dedup_minhash.enabled:
        find = partial(fuzzy.find_near_copies, run, config.dedup_minhash, shards, against=against)
        copies = workspace.find(find, shards, size=0)
        shards = run.map(fuzzy.REMOVAL, NEAR_COPY, shards, extra_inputs=copies)
    if config.decontaminate.sets:
        shards = workspace.find(partial(decontaminate, run, config.decontaminate, shards), shards, size=1)
    if moderation is not None:
        shards = run.map(moderation.stage, config.moderation.rule, shards, shared_inputs=moderation.files)
    if config.pii.enabled:
        shards = run.map(PII, config.pii, shards)
    if config.conversations is not None:
        assert config.tokenizer.path is not None, "PrepareConfig checks it"
        shards = render_conversations(run, config.conversations, config.tokenizer.path, shards)
    more = {REPORT: summary(run.facts[REPORT][-1])} if REPORT in run.facts else {}
    if losses := losses_in(reading_facts(run.facts)):
        more["unread"] = sum_of_losses(losses)
    description = write_corpus(run, config, shards, more=more)
    run.finish()
    if config.output.url is not None:
        workspace.run_once(partial(upload_corpus, config.output.corpus_folder, config.output.url))
    return PreparedCorpus(run.counts, run.facts, run.seconds, config.output.corpus_folder, description, run.quarantined)


def _read(run: ShardRun, config: PrepareConfig, found: list[Path | RemoteFile]) -> Shards:
    """Read the input files: conversations, labelled texts, or texts that pass the filters for web text."""
    sources = _sources(run, config, found)
    named = run.named(sources, partial(form_of, endings=config.input.endings))
    if config.conversations is not None:
        shards = run.map(READ, read_task(config.input, config.conversations), named)
        for line in reading_lines(run.facts.get(READ.name, [])):
            run.workspace.say(line)
        return shards
    if config.labels is not None:
        with naming_the_reader():
            return run.map(READ_LABELS, label_read_task(config.input, config.labels), named)
    shards = run.map(extract_stage(config.extract), extract_task(config.input, config.extract), named)
    if config.language.enabled:
        shards = run.map(language_stage(config.language), config.language, shards)
    if config.quality.rules:
        shards = run.map(QUALITY, config.quality, shards)
    if config.classify.model is not None:
        shards = run.map(
            CLASSIFY, config.classify.rule, shards, extra_inputs=dict.fromkeys(shards, config.classify.model)
        )
    return shards


def _sources(run: ShardRun, config: PrepareConfig, found: list[Path | RemoteFile]) -> list[Path]:
    """Return the input files of tasks, and name the files that are left out."""
    if config.input.source == "python-docs":
        configs = {f"python-docs-{i:05d}": CrawlTask(i, _CRAWL_FILES) for i in range(_CRAWL_FILES)}
        return run.make(CRAWL, configs, ending=".warc.gz")
    if any(isinstance(file, RemoteFile) for file in found):
        run.workspace.write_note(ANSWERS, encode_answers(found))
    if others := left_out(config.input, without=_own_folders(config)):
        run.workspace.say(name_left_out(others))
    if links := name_linked(config.input, without=_own_folders(config)):
        run.workspace.say(links)
    return local_inputs(found, run.workspace.stubs)


def _own_folders(config: PrepareConfig) -> tuple[Path, Path]:
    """The folders that a run writes, which are no input of it if they are in a folder of inputs."""
    return config.output.corpus_folder, config.output.work_folder


def _check_other_corpora(config: PrepareConfig) -> None:
    """Check the corpora to compare with now, not at the step that needs them."""
    against, own = config.dedup.against, config.output.work_folder
    if config.dedup_exact.enabled:
        exact.find_others(config.dedup_exact, against, own=own)
    if config.dedup_minhash.enabled:
        fuzzy.find_others(config.dedup_minhash, against, own=own)


def _check_tokenizer(config: PrepareConfig) -> None:
    if config.tokenizer.path is None:
        return
    if config.conversations is not None:
        choose_format(config.conversations, config.tokenizer.path)
    size, wanted = load_tokenizer(config.tokenizer.path).vocab_size, config.tokenizer.vocab_size
    if wanted is not None and wanted != size:
        raise ConfigError(
            f"tokenizer.vocab_size = {wanted} is invalid: {config.tokenizer.path} has {size} tokens. Remove vocab_size"
        )
