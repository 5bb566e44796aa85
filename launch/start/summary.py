"""Say in a few lines what was found and what was chosen."""

from collections.abc import Iterator

from gpt.telemetry.screen import counted
from launch.start.corpus_choice import CorpusChoice
from launch.start.look import Survey
from launch.start.model_choice import Training

_NAMED = 3


def describe_survey(survey: Survey, choice: CorpusChoice) -> Iterator[str]:
    """Yield a line for each finding: files, what is no text, encodings, fields, languages, documents."""
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in survey.kinds.items())
    sizes = f"{_size(survey.file_bytes)}: about {_size(survey.text_bytes)} of text"
    yield f"found {counted(survey.files, 'file')} ({kinds}), {sizes}"
    if survey.not_text:
        names = ", ".join(path.name for path in survey.not_text[:_NAMED])
        more = f" and {len(survey.not_text) - _NAMED:,} more" if len(survey.not_text) > _NAMED else ""
        yield f"  left out, no text: {counted(len(survey.not_text), 'file')} ({names}{more})"
    if survey.recoded:
        names = ", ".join(path.name for path in survey.recoded[:_NAMED])
        yield f"  not UTF-8: {counted(len(survey.recoded), 'file')} ({names}), read as {survey.encoding}"
    if survey.fields:
        yield f"  fields with text: {', '.join(survey.fields[:8])}; used: {survey.text_field}"
    if survey.id_field != "id":
        yield "  all documents have one id: ids are taken from the texts (input.id_field)"
    if choice.languages:
        yield "  languages: " + ", ".join(
            f"{code or 'not detected'} {share:.0%}" for code, share in list(choice.languages.items())[:4]
        )
    cut = f", separated by {choice.separator!r}" if choice.separator else ""
    if choice.split_bytes:
        cut = f", cut from long texts at paragraphs, {choice.split_bytes:,} bytes or more each"
    yield f"  about {counted(choice.documents, 'document')}{cut}; {choice.validation_fraction:.1%} for validation"
    kept = "only exact copies are dropped" if choice.preset == "curated" else "all filters for web pages"
    yield (
        f"corpus ({choice.preset}: {kept}): a vocabulary of {choice.vocab_size:,}, "
        f"{choice.bytes_per_token:.1f} bytes a token, about {choice.tokens:,} tokens"
    )


def describe_choice(training: Training) -> Iterator[str]:
    """Yield the model, its training and the reasons."""
    model = training.model
    yield (
        f"model: {model.parameters:,} parameters: {counted(model.n_layers, 'layer')}, width {model.d_model}, "
        f"{counted(model.n_heads, 'head')}, context {model.n_ctx}"
    )
    time = (
        "" if training.tokens_per_s is None else f", about {_time(training.total_tokens / training.tokens_per_s)} here"
    )
    yield (
        f"training: {training.total_tokens:,} tokens, "
        f"{counted(training.total_tokens // training.batch_tokens, 'step')}, "
        f"{training.epochs:.1f} epochs{time}; learning rate {training.learning_rate:g}"
    )
    yield from (f"  {line}" for line in training.why)


def _size(n_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
