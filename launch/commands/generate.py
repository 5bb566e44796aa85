"""`triaxial generate`: stream the text that a run's model writes after a prompt, or process a file of prompts."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpt.errors import escaped, one_line
from gpt.inference.cpu_model import packed
from gpt.inference.generation import Continuation
from gpt.inference.model import InferenceModel
from gpt.inference.sampling_settings import Sampling
from gpt.inference.text_stream import GeneratedText
from launch.config.run_arguments import DEFAULT_BATCH_TOKENS, is_first_process, starts_ranks
from launch.generation.jobs import GenerationJob, GenerationSettings, PromptLine, continue_batch, make_jobs
from launch.generation.prompt_file import batches_of, continue_jobs, read_lines, write_lines
from launch.runs.open_model import OpenedModel, opened_model, preview_model, start_ranks
from parallel.agreement import broadcast_object


@dataclass(frozen=True)
class GenerationRequest:
    """The prompts and the tokens that end their texts. Rank 0 reads them for all ranks."""

    jobs: list[GenerationJob]
    end_ids: tuple[int, ...]


def run(args: argparse.Namespace) -> int:
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty)
    if starts_ranks(args):
        return start_ranks(args)
    # Read the prompts first: an error must come before the weights are read.
    request = read_request(args) if is_first_process() else GenerationRequest([], ())
    with opened_model(args) as opened:
        request = broadcast_object(request, None)
        settings = GenerationSettings(
            sampling=sampling,
            stops=tuple(args.stop),
            end_ids=request.end_ids,
            batch_size=args.batch_size,
            batch_tokens=args.batch_tokens or DEFAULT_BATCH_TOKENS,
        )
        for note in opened.saved.notes if opened.is_main else ():
            print(one_line(note), file=sys.stderr)
        if args.input is None:
            model = packed(opened.model, rows=1)
            for number, job in enumerate(request.jobs):
                if args.num_samples > 1 and opened.is_main:
                    print(f"--- sample {number + 1} of {args.num_samples}, seed {job.seed}")
                stream(opened, model, job, settings)
        else:
            batches = batches_of(request.jobs, settings, data_size=opened.model.data_size)
            lines = continue_jobs(
                packed(opened.model, rows=max(map(len, batches), default=1)),
                opened.saved.tokenizer,
                request.jobs,
                settings,
                n_ctx=opened.saved.model_config.n_ctx,
                shows=opened.is_main,
            )
            if opened.is_main:
                write_lines(args.output, lines)
    return 0


def read_request(args: argparse.Namespace) -> GenerationRequest:
    """Read the prompts of --prompt or --input, from standard input for '-'."""
    if args.input is not None:
        lines = read_lines(args.input)
    else:
        lines = [PromptLine({"prompt": sys.stdin.read() if args.prompt == "-" else args.prompt})]
    seen = preview_model(args)
    jobs = make_jobs(
        lines,
        seen.tokenizer,
        seen.special,
        seen.model_config,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        num_samples=args.num_samples,
    )
    return GenerationRequest(jobs, seen.special.end_ids)


def stream(opened: OpenedModel, model: InferenceModel, job: GenerationJob, settings: GenerationSettings) -> None:
    """Write the prompt and the text after it, token by token, then a summary line on standard error.

    Every rank of a layout must call it; the main rank writes.
    """
    tokenizer = opened.saved.tokenizer
    text = GeneratedText(tokenizer, job.prompt, settings.stops)

    # A model may write control sequences, which a terminal would obey. Files and pipes get the text as it is.
    shown: Callable[[str], str] = escaped if sys.stdout.isatty() else str

    def write(characters: str) -> None:
        if opened.is_main:
            sys.stdout.write(shown(characters))
            sys.stdout.flush()

    def show(_: int, tokens: list[int]) -> bool:
        write(text.update(tokens))
        return text.stopped

    write(tokenizer.decode(job.prompt))
    started_at = time.perf_counter()
    (result,) = continue_batch(model, tokenizer, [job], settings, n_ctx=opened.saved.model_config.n_ctx, watch=show)
    elapsed_s = time.perf_counter() - started_at
    write(text.finish(result.tokens) + "\n")
    if opened.is_main:
        end = "stop text" if text.stopped else "end of document" if result.stopped else "length reached"
        print(describe(result, end=end, elapsed_s=elapsed_s), file=sys.stderr)


def describe(result: Continuation, *, end: str, elapsed_s: float) -> str:
    """Summarise a continuation in one line."""
    mean = sum(result.log_probs) / len(result.log_probs)
    speed = len(result.tokens) / elapsed_s
    return f"{len(result.tokens)} tokens, {end}, mean log-probability {mean:.3f} nats, {speed:.0f} tokens/s"
