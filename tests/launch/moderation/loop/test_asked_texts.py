"""Texts that a language model was asked for; tests/launch/commands/moderate/test_generate.py asks a run."""

import json
from argparse import Namespace

from moderation_files import write_taxonomy

from gpt.moderation.loop.synthetic import synthetic_prompt
from gpt.moderation.taxonomy import read_taxonomy
from launch.moderation.loop.asked_texts import asked_texts


def test_answers_of_a_file_become_texts_and_copies_none(tmp_path):
    category = read_taxonomy(write_taxonomy(tmp_path)).categories[0]
    prompts = [synthetic_prompt(category, positive=True, seed=seed) for seed in (5, 6, 7)]
    texts = ["a boat sinks\nand more", "a boat sinks", "!!"]
    lines = [json.dumps({"prompt": p, "text": t}) + "\n" for p, t in zip(prompts, texts, strict=True)]
    (tmp_path / "answers.jsonl").write_text("".join(lines))
    args = Namespace(
        run=tmp_path / "answers.jsonl",
        n=3,
        seed=5,
        shots=5,
        negative=False,
        chat=False,
        temperature=1.0,
        top_p=0.95,
        max_new_tokens=20,
        device="cpu",
        dtype="float32",
    )
    assert asked_texts(args, category, []) == ["a boat sinks", None, None]
