"""Chat templates, and small corpora of conversations, for tests."""

import json

from in_process import InThisProcess
from rich.console import Console

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TAGGED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_conversations(folder, records, tokenizer, **conversations):
    """Prepare the records with the real stages; return the corpus folder."""
    from data_prep.conversations.config import ConversationsConfig
    from data_prep.corpus.tokenize import TokenizerConfig
    from data_prep.dedup.fuzzy import FuzzyConfig
    from data_prep.execution.progress import ProgressBars
    from data_prep.inputs.config import InputConfig
    from data_prep.pipeline import prepare
    from data_prep.recipe import OutputConfig, PrepareConfig

    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = PrepareConfig(
        InputConfig((str(folder / "records.jsonl"),)),
        OutputConfig(folder / "corpus", validation_fraction=0.3, seed=1),
        TokenizerConfig(tokenizer),
        dedup_minhash=FuzzyConfig(enabled=False),
        conversations=ConversationsConfig(**conversations),
    )
    return prepare(recipe, n_workers=1, progress=ProgressBars(Console(quiet=True)), executor=InThisProcess).folder
