"""`triaxial moderate generate model`: ask a language model for texts of a category."""

import argparse
from collections.abc import Sequence

from data_prep.conversations.conversation import Turn
from gpt.inference.sampling_settings import Sampling
from gpt.moderation.loop.synthetic import cleaned, synthetic_prompt
from gpt.moderation.taxonomy import Category
from launch.comparison.answers import ComparedSettings, answers_of
from launch.comparison.prompts import ComparedPrompt
from launch.generation.chat import ChatPrompt
from launch.generation.jobs import PromptLine
from launch.runs.saved_run import DTYPES, device_of


def asked_texts(args: argparse.Namespace, category: Category, known: Sequence[str]) -> list[str | None]:
    """Return the text of each of `args.n` answers, None for an answer without a usable or new one.

    `known`: labelled texts to show as examples. ConfigError: as for `answers_of`.
    """
    prompts = []
    for i in range(args.n):
        seed, shots = args.seed + i, args.shots if known else 0
        text = synthetic_prompt(
            category, positive=not args.negative, examples=known, shots=shots, chat=args.chat, seed=seed
        )
        where = f"prompt {i + 1}"
        chat = ChatPrompt((Turn("user", text),), where) if args.chat else None
        prompts.append(ComparedPrompt(text, PromptLine({"prompt": text}, where), chat))
    settings = ComparedSettings(
        Sampling(args.temperature, top_p=args.top_p),
        args.max_new_tokens,
        args.seed,
        stops=() if args.chat else ("\n",),
        device=device_of(args.device),
        dtype=DTYPES[args.dtype],
    )
    return cleaned(answers_of(args.run, prompts, settings), known=known)
