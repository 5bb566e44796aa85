"""The new locations of the modules of version 0.1. Only a failed import loads this file; see `gpt/__init__.py`."""


def raise_if_moved(name: str) -> None:
    """Raise ModuleNotFoundError with the new module if version 0.1 had `name`: `gpt.train`, or `gpt.model.GPT`."""
    moves = dict(line.split(" ", 1) for line in MOVES.split("\n") if line)
    package, _, last = name.rpartition(".")
    if name in moves:
        moved = f"{name} moved to {_either(moves[name])} in 0.2; import it from there"
    elif any(line.startswith(f"{package} ") and last in line.split()[1:] for line in NAMES.split("\n")):
        moved = f"{package} is a package since 0.2; import {last} from {_either(moves[package])}"
    else:
        return
    raise ModuleNotFoundError(moved)  # with `name=name`, Python would replace the message in `from PACKAGE import NAME`


def _either(modules: str) -> str:
    """ "a", "a or b", "a, b or c"."""
    return " or ".join(modules.rsplit(", ", 1))


# The public names of the modules of 0.1 that are packages now.
NAMES = """
data_prep.corpus CORPUS_FILE VERSION SPLITS TOKEN_FILE shard_names entropy_nats publish read_corpus describe seal
data_prep.documents Document Write write_shard read_shard encode_line keyed_hash content_id piece_id parent_id
data_prep.documents whole_text
data_prep.readers ENDINGS READING InputConfig find_inputs local_inputs kind_of read_records
gpt.convert.hugging_face COMPANIONS Verification export verify read_ours write_configs
gpt.evaluation.few_shot TaskScore few_shot_scores
gpt.model LayerCache Angles Embedding Attention GeluMLP SwiGLUMLP Block GPT rotary_angles rotate
gpt.token_files token_dtype TokenFileWriter TokenFile shard_prefixes make_sums compare_sums sampled_digest
gpt.tokenizer Tokenizer load_tokenizer tokenizer_files SentencePieceTokenizer HuggingFaceTokenizer train_sentencepiece
launch.config RunSection RunConfig read_run_config layout_of as_dict from_dict changed_keys
launch.parity DEFAULT_TOLERANCES RESULTS add_arguments run run_all check_arguments wanted_layouts named_layout
launch.parity workload_of device_type other_splits check_devices task make_room conclude replace_file
parallel.checkpoint save find_latest discard_after verify load read_state tensor_metadata read_tensors
parallel.health HealthConfig
parallel.inference load_layout_model
parallel.layout Schedule V_SHAPED SEVERAL_STAGES ZERO_BUBBLE ParallelConfig BatchConfig Layout
parallel.layout resolve_layout check_device
"""

# Old module, new module; several where a module was split, the largest part first.
MOVES = """
data_prep.archive_bytes data_prep.readers.archive_bytes
data_prep.archive_formats data_prep.readers.archive_formats
data_prep.c4 data_prep.filters.c4
data_prep.child_process data_prep.execution.child_process
data_prep.compare data_prep.dedup.compare
data_prep.components data_prep.dedup.clusters
data_prep.compressed data_prep.readers.compressed
data_prep.copies data_prep.dedup.copies
data_prep.corpus data_prep.corpus.corpus
data_prep.corpus_shards data_prep.corpus.shards
data_prep.corpus_upload data_prep.corpus.upload
data_prep.counts data_prep.documents.counts
data_prep.decontaminate data_prep.decontamination.decontaminate
data_prep.dedup_exact data_prep.dedup.exact
data_prep.dedup_index data_prep.dedup.index
data_prep.dedup_minhash data_prep.dedup.fuzzy
data_prep.documents data_prep.documents.shards
data_prep.engine data_prep.execution.workspace
data_prep.evaluation_sets data_prep.decontamination.evaluation_sets
data_prep.explain data_prep.reports.explain
data_prep.extract data_prep.extraction.extract
data_prep.files data_prep.execution.files, data_prep.documents.arrays
data_prep.fineweb data_prep.filters.fineweb
data_prep.frames data_prep.execution.child_frames
data_prep.gopher data_prep.filters.gopher
data_prep.http_messages data_prep.readers.http_messages
data_prep.known_grams data_prep.decontamination.known_grams
data_prep.language data_prep.filters.language
data_prep.logistic data_prep.quality_training.logistic
data_prep.manifest data_prep.execution.manifest
data_prep.minhash data_prep.dedup.minhash
data_prep.ngrams data_prep.decontamination.ngrams
data_prep.overlap data_prep.decontamination.overlap
data_prep.overlap_tables data_prep.reports.table
data_prep.page_child data_prep.extraction.page_child
data_prep.page_sandbox data_prep.extraction.page_sandbox
data_prep.page_text data_prep.extraction.page_text
data_prep.pareto data_prep.filters.pareto
data_prep.parquet_child data_prep.readers.parquet_child
data_prep.parquet_files data_prep.readers.parquet_files
data_prep.pii data_prep.filters.pii
data_prep.plan_report data_prep.reports.plan
data_prep.progress data_prep.execution.progress
data_prep.punctuation data_prep.documents.word_split
data_prep.python_docs data_prep.readers.python_docs
data_prep.python_docs_render data_prep.readers.python_docs_render
data_prep.quality data_prep.filters.quality
data_prep.quality_classifier data_prep.filters.quality_classifier
data_prep.quality_sample data_prep.quality_training.sample
data_prep.ray_workers data_prep.execution.ray_workers
data_prep.readers data_prep.readers.readers
data_prep.records data_prep.documents.records
data_prep.remote_files data_prep.readers.remote_files
data_prep.report data_prep.reports.table
data_prep.report_page data_prep.reports.page
data_prep.shard_runs data_prep.execution.shard_runs
data_prep.shares data_prep.execution.shares
data_prep.signatures data_prep.dedup.signatures
data_prep.sorted_rows data_prep.dedup.sorted_rows
data_prep.stages data_prep.execution.tasks
data_prep.tokenize data_prep.corpus.tokenize
data_prep.tokenizer_training data_prep.corpus.tokenizer_training
data_prep.traces data_prep.documents.traces
data_prep.train_quality data_prep.quality_training.train
data_prep.verify data_prep.corpus.verify
data_prep.web_archives data_prep.readers.web_archives
data_prep.word_split data_prep.documents.word_split
data_prep.words data_prep.documents.words
data_prep.work data_prep.execution.tasks
data_prep.workers data_prep.execution.workers
gpt.attention gpt.model.attention, gpt.model.cpu_attention
gpt.batch_ramp gpt.training.schedule
gpt.byte_pair_tokenizer gpt.tokenizer.byte_pair
gpt.cached_model gpt.inference.model, gpt.inference.kv_cache
gpt.checkpoint_config gpt.training.config
gpt.config gpt.model.config
gpt.console gpt.telemetry.console
gpt.convert.hugging_face gpt.convert.hugging_face.export
gpt.convert.hugging_face_config gpt.convert.hugging_face.config
gpt.convert.hugging_face_source gpt.convert.hugging_face.source
gpt.convert.hugging_face_tokenizer gpt.convert.hugging_face.tokenizer
gpt.convert.logits gpt.convert.hugging_face.logits
gpt.convert.megatron_config gpt.convert.megatron.config
gpt.convert.megatron_names gpt.convert.megatron.names
gpt.convert.megatron_source gpt.convert.megatron.source
gpt.convert.names gpt.convert.hugging_face.names, gpt.convert.weights
gpt.convert.partial_folder gpt.files.atomic
gpt.convert.pickle_as_data gpt.convert.torch_formats.pickle_as_data
gpt.convert.safetensors_files gpt.files.safetensors
gpt.convert.torch_archive gpt.convert.torch_formats.torch_archive
gpt.convert.torch_dist_files gpt.convert.torch_formats.dcp_reader
gpt.convert.torch_dist_writer gpt.convert.torch_formats.dcp_writer
gpt.damage gpt.training.batches
gpt.data_order gpt.data.order
gpt.dataset gpt.data.dataset, gpt.data.config, gpt.data.sampling
gpt.engine gpt.training.engine
gpt.evaluation.answer_settings gpt.evaluation.few_shot.answer_settings
gpt.evaluation.clean_subset gpt.evaluation.few_shot.clean_subset
gpt.evaluation.few_shot gpt.evaluation.few_shot.scores
gpt.evaluation.gpt3_problems gpt.evaluation.few_shot.gpt3_problems
gpt.evaluation.gpt3_tasks gpt.evaluation.few_shot.gpt3_tasks
gpt.evaluation.harness gpt.evaluation.few_shot.harness
gpt.evaluation.normalised gpt.evaluation.few_shot.normalised
gpt.evaluation.open_tasks gpt.evaluation.few_shot.tasks
gpt.evaluation.prefix_tree gpt.evaluation.batching.forward_plan
gpt.evaluation.probe gpt.training.few_shot_probe
gpt.evaluation.published_problems gpt.evaluation.few_shot.published_problems
gpt.evaluation.scoring gpt.evaluation.batching.scoring
gpt.evaluation.shared_prompts gpt.evaluation.batching.shared_prefix
gpt.evaluation.shares gpt.evaluation.batching.data_parallel
gpt.evaluation.text_pieces gpt.evaluation.text_windows
gpt.event_log gpt.telemetry.event_log
gpt.faults gpt.training.config
gpt.generated_text gpt.inference.text_stream
gpt.generation gpt.inference.generation
gpt.goodput gpt.telemetry.goodput
gpt.heartbeat gpt.health.watchers
gpt.initialisation gpt.model.initialisation
gpt.line_file gpt.files.line_file
gpt.loop_state gpt.training.run
gpt.loss gpt.losses.next_token, gpt.losses.base, gpt.losses.linear_cross_entropy
gpt.memory gpt.telemetry.metrics
gpt.metrics gpt.telemetry.metrics
gpt.mixture gpt.data.mixture
gpt.model gpt.model.gpt, gpt.model.rope
gpt.optimizer gpt.training.optimizer
gpt.own_files gpt.files.atomic
gpt.packed_model gpt.inference.cpu_model
gpt.run gpt.training.run
gpt.run_saver gpt.training.saver
gpt.samples gpt.training.samples
gpt.sampling gpt.inference.sampling, gpt.inference.sampling_settings
gpt.scaling_law gpt.evaluation.scaling_law
gpt.schedule gpt.training.schedule
gpt.skipped_data gpt.data.skipped
gpt.special_tokens gpt.tokenizer.special_tokens
gpt.spikes gpt.health.spikes, gpt.training.config
gpt.step_data gpt.training.batches
gpt.step_watch gpt.health.watchers
gpt.stop_signals gpt.health.watchers
gpt.stored_tokens gpt.token_files.bin_reader
gpt.time_ledger gpt.telemetry.time_ledger
gpt.token_corpus gpt.token_files.corpus
gpt.token_files gpt.token_files.files
gpt.token_index gpt.token_files.index
gpt.token_scores gpt.inference.token_scores
gpt.token_sums gpt.token_files.checksums
gpt.tokenizer gpt.tokenizer.tokenizers
gpt.train gpt.training.loop, gpt.training.run
gpt.train_config gpt.training.config
gpt.validation gpt.training.validation
gpt.wandb_run gpt.telemetry.wandb
launch.build launch.training.build
launch.checkpoint_room launch.training.checkpoint_space
launch.cluster launch.processes.environment, launch.processes.rank_process
launch.config launch.config.run_config
launch.convert launch.commands.convert, launch.commands.arguments.convert
launch.convert_hugging_face launch.conversion.hugging_face
launch.convert_megatron launch.conversion.megatron
launch.convert_plain launch.conversion.plain
launch.convert_progress launch.processes.terminal
launch.convert_size launch.conversion.dry_run
launch.convert_triaxial launch.conversion.rewrite
launch.converted_run launch.runs.imported_run
launch.data_audit launch.commands.data.audit, launch.commands.arguments.data_audit
launch.demo launch.commands.demo
launch.determinism launch.processes.determinism
launch.doctor launch.commands.doctor
launch.dry_run launch.planning.dry_run
launch.dry_run_options launch.planning.options
launch.evaluate launch.commands.evaluate, launch.commands.arguments.evaluate
launch.evaluate_text launch.evaluation.texts
launch.evaluation_record launch.evaluation.wandb_record
launch.evaluation_tables launch.evaluation.tables
launch.failures launch.processes.failures
launch.fast_tier launch.training.local_tier
launch.few_shot_arguments launch.evaluation.few_shot_arguments
launch.generate launch.commands.generate, launch.commands.arguments.generate
launch.generate_file launch.generation.prompt_file
launch.generate_jobs launch.generation.jobs
launch.hardware launch.training.hardware
launch.launcher_signals launch.processes.local_launch
launch.layout_loading launch.runs.open_model
launch.loading launch.runs.saved_run
launch.local_launch launch.processes.local_launch
launch.local_ranks launch.processes.local_ranks
launch.machine_facts launch.processes.machine_facts
launch.mixture launch.commands.data.mixture
launch.parity launch.commands.parity, launch.commands.arguments.parity
launch.parity_ranks launch.parity.ranks
launch.parity_report launch.parity.report, launch.parity.plot
launch.prepare launch.commands.data.prepare
launch.prepare_checksum launch.commands.data.checksum
launch.prepare_overlap launch.commands.data.overlap
launch.prepare_train_quality launch.commands.data.train_quality
launch.prepare_verify launch.commands.data.verify
launch.recipe launch.config.recipe
launch.redaction launch.processes.failures
launch.report launch.commands.report
launch.report_facts launch.reports.facts
launch.report_page launch.reports.page
launch.report_plots launch.reports.plots, launch.reports.axes
launch.report_scaling launch.reports.scaling
launch.report_style launch.reports.style, data_prep.reports.style
launch.report_tables launch.reports.tables
launch.restarts launch.processes.restarts
launch.resume launch.training.resume
launch.run_history launch.runs.history
launch.run_lock launch.processes.run_lock
launch.run_position launch.runs.history
launch.run_report launch.training.summary
launch.scaling_picture launch.reports.scaling_plot
launch.scaling_runs launch.reports.scaling_runs
launch.start_from launch.training.start_from
launch.start_up launch.processes.rendezvous
launch.terminal launch.processes.terminal
launch.train launch.commands.train
launch.train_rank launch.training.train_rank
parallel.checkpoint parallel.checkpoint.find, parallel.checkpoint.load, parallel.checkpoint.save
parallel.checkpoint_background parallel.checkpoint.background
parallel.checkpoint_estimate parallel.checkpoint.estimate
parallel.checkpoint_fast parallel.checkpoint.local_tier
parallel.checkpoint_files parallel.checkpoint.manifest, parallel.checkpoint.index, parallel.checkpoint.files
parallel.checkpoint_folders parallel.checkpoint.folders
parallel.checkpoint_plan parallel.checkpoint.plan
parallel.checkpoint_ranks parallel.agreement
parallel.checkpoint_save parallel.checkpoint.save
parallel.checkpoint_storage parallel.checkpoint.load, parallel.checkpoint.plan
parallel.checkpoint_stream parallel.checkpoint.stream
parallel.collectives parallel.planner.traffic
parallel.dry_run parallel.planner.dry_run
parallel.generation parallel.inference.model
parallel.gradients parallel.axes.gradients
parallel.hang_evidence parallel.health.process_evidence, parallel.health.collective_record
parallel.hang_folder parallel.health.reports
parallel.hang_monitor parallel.health.monitor, parallel.health.hang_response
parallel.hang_verdict parallel.health.verdict
parallel.health parallel.health.config
parallel.heartbeat parallel.health.heartbeat
parallel.inference parallel.inference.model
parallel.initialisation parallel.axes.initialisation
parallel.layout parallel.layout.layout, parallel.layout.config
parallel.layout_choices parallel.planner.search
parallel.memory parallel.planner.memory
parallel.mesh parallel.layout.mesh
parallel.pipeline_parallel parallel.axes.pipeline_parallel
parallel.recomputation parallel.axes.recomputation
parallel.replica_check parallel.health.replica_check
parallel.split parallel.layout.split
parallel.stage parallel.axes.stage, parallel.parallelize
parallel.stragglers parallel.health.stragglers
parallel.tensor_parallel parallel.axes.tensor_parallel
parallel.watchdog parallel.health.watchdog
parallel.weight_digests parallel.health.weight_digests
"""
