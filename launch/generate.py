"""`triaxial generate`: continues a prompt with a run's model and streams the text; trains nothing, writes no file."""

import argparse
import sys
import time

from gpt.errors import ConfigError
from gpt.generation import Continuation, Sampling, check_prompts, generate
from gpt.tokenizer import Tokenizer
from launch.loading import LoadedRun, add_device_arguments, add_run_arguments, load_for_command

_DEFAULT_NEW_TOKENS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what to continue; '-' reads standard input")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"stop after N tokens (default: {_DEFAULT_NEW_TOKENS}, or fewer where the model's context ends)",
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest tokens that make up P")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    parser.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="texts; sample i has seed + i (default: 1)"
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.num_samples < 1:
        raise ConfigError(f"--num-samples {args.num_samples} must be at least 1")
    loaded = load_for_command(args)
    saved = loaded.saved
    for note in saved.notes:
        print(note, file=sys.stderr)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    tokens = saved.tokenizer.encode(prompt) or [saved.tokenizer.end_of_document_id]
    length = new_tokens(args.max_new_tokens, room=saved.model_config.n_ctx - len(tokens))
    check_prompts(
        [tokens], n_ctx=saved.model_config.n_ctx, max_new_tokens=length, vocab_size=saved.model_config.vocab_size
    )
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    for sample in range(args.num_samples):
        if args.num_samples > 1:
            print(f"--- sample {sample + 1} of {args.num_samples}, seed {args.seed + sample}")
        started_at = time.perf_counter()
        result = stream(loaded, tokens, length=length, sampling=sampling, seed=args.seed + sample)
        print(describe(result, elapsed_s=time.perf_counter() - started_at), file=sys.stderr)
    return 0


def stream(loaded: LoadedRun, prompt: list[int], *, length: int, sampling: Sampling, seed: int) -> Continuation:
    """Write the prompt and, token by token, what follows it."""
    saved = loaded.saved
    printed = Printed(saved.tokenizer, prompt)

    def show(_: int, tokens: list[int]) -> bool:
        printed.update(tokens)
        return False

    (result,) = generate(
        loaded.model,
        [prompt],
        n_ctx=saved.model_config.n_ctx,
        max_new_tokens=length,
        sampling=sampling,
        seed=seed,
        stop_ids=(saved.tokenizer.end_of_document_id,),
        n_ids=saved.tokenizer.vocab_size,
        watch=show,
    )
    printed.finish(result.tokens)
    return result


def new_tokens(asked: int | None, *, room: int) -> int:
    """The number asked for, which must fit; without one, what fits of the default."""
    return asked if asked is not None else max(1, min(_DEFAULT_NEW_TOKENS, room))


class Printed:
    """Writes a growing text to standard output; a character whose bytes are not all there yet waits for them."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.length = 0
        self.update([])

    def update(self, tokens: list[int]) -> None:
        """Write what is new in the text of prompt and tokens."""
        self._write(self._text(tokens).rstrip("\ufffd"))

    def finish(self, tokens: list[int]) -> None:
        """Write the rest as it is, and a newline."""
        self._write(self._text(tokens) + "\n")

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode([*self.prompt, *tokens])

    def _write(self, text: str) -> None:
        sys.stdout.write(text[self.length :])
        sys.stdout.flush()
        self.length = max(self.length, len(text))


def describe(result: Continuation, *, elapsed_s: float) -> str:
    """One line on a continuation."""
    mean = sum(result.log_probs) / len(result.log_probs)
    speed = len(result.tokens) / elapsed_s
    end = "end of document" if result.stopped else "length reached"
    return f"{len(result.tokens)} tokens, {end}, mean log-probability {mean:.3f} nats, {speed:.0f} tokens/s"
