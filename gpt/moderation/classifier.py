"""Classifiers of texts: a taxonomy's categories from the hidden states of a text's tokens (arXiv 2208.03274)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt.data.sampling import CorpusFiles, Samples
from gpt.errors import ConfigError
from gpt.losses.base import Loss
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE, PADDING
from gpt.model.attention import Mask
from gpt.model.config import ModelConfig
from gpt.model.gpt import Embedding
from gpt.model.masks import AttentionMask, document_mask
from gpt.moderation.config import ClassifierConfig
from gpt.moderation.heads import CategoryHead
from gpt.moderation.loss import ClassifierLoss
from gpt.moderation.taxonomy import Taxonomy
from gpt.moderation.wdat import Critic, clip_critic
from gpt.token_files.corpus import describe_corpus
from gpt.token_files.label_states import (
    NEGATIVE,
    POSITIVE,
    UNKNOWN,
    States,
    decode_states,
    label_tokens,
    with_descendants,
)
from gpt.training.objective import positions_of

LABELS = "labels"  # the stream
_CHUNK = 1 << 20  # documents whose labels are looked at together


@dataclass(frozen=True)
class Classifier:
    """Learn the states of a text's labels. A corpus without the stream `labels` has none, as WDAT's target domain."""

    config: ClassifierConfig
    streams: ClassVar[tuple[str, ...]] = ()
    optional_streams: ClassVar[tuple[str, ...]] = (LABELS,)

    @property
    def taxonomy(self) -> Taxonomy:
        return self.config.read

    @property
    def n_categories(self) -> int:
        return len(self.config.read.ids)

    def batch(self, samples: Samples) -> Batch:
        """Inputs (n, t), and targets (n, t, c) int8: the states of the labels at the last token of each text, IGNORE
        elsewhere. Attention and positions restart at each text.

        With `parents`, a negative category makes its unknown descendants negative. Otherwise a child without labels
        would keep its first logit, and through the maximum its parent too.
        """
        if samples.segment_ids is None:
            raise _by_window()
        texts = torch.from_numpy(samples.segment_ids)
        segments = texts[:, :-1].contiguous()  # (n, t)
        is_last = (texts[:, 1:] != segments) & (segments != PADDING)
        row, column = is_last.nonzero(as_tuple=True)
        codes, of_texts = torch.from_numpy(samples.stream(LABELS, default=0)), []
        for back in range(label_tokens(self.n_categories)):
            at = (column - back).clamp(min=0)
            is_inside = (segments[row, at] == segments[row, column]) & (column >= back)
            of_texts.append(torch.where(is_inside, codes[row, at], 0))
        states = self._states(torch.stack(of_texts, dim=-1).numpy())
        targets = torch.full((*segments.shape, self.n_categories), IGNORE, dtype=torch.int8)
        targets[row, column] = torch.from_numpy(states)
        return Batch(
            torch.from_numpy(samples.tokens)[:, :-1].contiguous(),
            targets,
            positions=positions_of(segments),
            segment_ids=segments,
        )

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        """Warnings about categories without positive or negative labels. Reads the labels of all texts.

        ConfigError: it is sampled by window, a text does not fit, or its labels are of another taxonomy.
        """
        if not files.sampling.may_be_short:  # windows
            raise _by_window()
        borders = files.tokens.document_starts()
        _check_lengths(files, borders, n_ctx=model.n_ctx)
        warnings = self._check_taxonomy(files)
        counts = self._count_states(files, borders)
        return warnings + self._describe(files.name, counts, n_texts=int((np.diff(borders) > 0).sum()))

    def check_mixture(self, corpora: Sequence[CorpusFiles], *, rows: int) -> list[str]:
        """See gpt.training.objective.MixtureObjective. Only for domain adversarial training, which needs
        micro-batches with texts of both domains."""
        if not self.config.adversarial_weight:
            return []
        found = [self._domains(files) for files in corpora]
        for domain, words in enumerate(("with a known label", "without labels, the target domain")):
            if not any(one[domain] for one in found):
                raise ConfigError(
                    f"objective.adversarial_weight = {self.config.adversarial_weight:g} is invalid: no text of "
                    f"data.train is {words}, so there is nothing to adapt. Add a corpus of such texts, or set it to 0"
                )
        if rows == 1 and not any(all(one) for one in found):
            raise ConfigError(
                "batch.micro_batch_size = 1 is invalid with objective.adversarial_weight: a row has texts of one "
                "corpus, and no corpus has texts with labels and texts without, so no micro-batch has both domains "
                "and nothing is adapted. Use 2 or more"
            )
        return []

    def front(self, config: ModelConfig) -> nn.Module:
        return Embedding(config)

    def head(self, config: ModelConfig) -> nn.Module:
        own, critic = self.config, None
        if own.adversarial_weight:
            critic = Critic(config.d_model, hidden=own.critic_hidden, weight=own.adversarial_weight)
        return CategoryHead(
            config.d_model,
            self.n_categories,
            kind=own.head,
            hidden=own.hidden,
            dropout=own.head_dropout,
            n_queries=own.n_queries,
            critic=critic,
        )

    def loss(self, *, compile: bool) -> Loss:
        taxonomy, own = self.config.read, self.config
        return ClassifierLoss(
            taxonomy.ids,
            tuple(own.class_weights.get(category, 1.0) for category in taxonomy.ids),
            taxonomy.parents,
            constrain=own.parents,
            pooling=own.pooling,
            focal_gamma=own.focal_gamma,
            adversarial=own.adversarial_weight > 0,
        )

    def attention_mask(self, batch: Batch) -> Mask:
        if self.config.attention == "full":
            return AttentionMask("full", segment_ids=batch.segment_ids)
        return document_mask(batch.segment_ids)

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        """Clip the critic of WDAT."""
        clip_critic(parameters, self.config.critic_clip)

    def _states(self, codes: NDArray[np.int64]) -> States:
        """The states (n, c) of texts from the values (n, k) of their last tokens. ValueError: of other categories."""
        states = decode_states(codes, self.n_categories)
        return with_descendants(states, self.config.read.parents) if self.config.parents else states

    def _check_taxonomy(self, files: CorpusFiles) -> list[str]:
        """ConfigError if the labels were written with another version, other categories, parents or severities.

        Other words, such as a definition, are a warning.
        """
        described = (describe_corpus(files.tokens.prefix) or {}).get(LABELS)
        if not isinstance(described, dict):
            return []
        own = self.config.read
        if different := differences(described, own):
            raise ConfigError(
                f"corpus '{files.name}' has labels of another taxonomy than objective.taxonomy = '{own.label}': "
                f"{'; '.join(different)}. Prepare it with the taxonomy of the objective"
            )
        if described.get("digest") in (None, "", own.digest):
            return []
        return [
            f"corpus '{files.name}' was prepared with other titles, definitions, instructions or examples of taxonomy "
            f"'{own.label}'. If they change what is labelled, raise its version and migrate the labels"
        ]

    def _domains(self, files: CorpusFiles) -> tuple[bool, bool]:
        """Whether a corpus has texts with a known label, and texts without."""
        if LABELS not in files.streams:
            return False, True
        labelled = total = 0
        for states in self._state_chunks(files, files.tokens.document_starts()):
            labelled += int((states != UNKNOWN).any(-1).sum())
            total += len(states)
        return labelled > 0, labelled < total

    def _count_states(self, files: CorpusFiles, borders: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many texts have each state of each category, (3, c)."""
        counts = np.zeros((3, self.n_categories), dtype=np.int64)
        if LABELS not in files.streams:
            counts[UNKNOWN] = len(borders) - 1
            return counts
        for states in self._state_chunks(files, borders):
            counts += np.stack([(states == state).sum(0) for state in range(3)])
        return counts

    def _state_chunks(self, files: CorpusFiles, borders: NDArray[np.int64]) -> Iterator[States]:
        """The states (n, c) of the texts, some at a time. ConfigError: they are labels of another taxonomy."""
        stream, k = files.streams[LABELS], label_tokens(self.n_categories)
        for first in range(0, len(borders) - 1, _CHUNK):
            part = borders[first : first + _CHUNK + 1]
            codes = stream.read(int(part[0]), int(part[-1])).astype(np.int64)
            ends = part[1:][np.diff(part) >= k] - part[0]
            try:
                yield self._states(np.stack([codes[ends - 1 - back] for back in range(k)], axis=-1))
            except ValueError as error:
                raise ConfigError(
                    f"corpus '{files.name}', stream '{LABELS}': {error} of taxonomy '{self.config.read.label}'. "
                    f"Prepare it with the taxonomy of the objective"
                ) from None

    def _describe(self, name: str, counts: NDArray[np.int64], *, n_texts: int) -> list[str]:
        if not counts[UNKNOWN + 1 :].any():
            if self.config.adversarial_weight:
                return []  # the target domain
            raise ConfigError(
                f"corpus '{name}' has no known label in {n_texts:,} texts. Leave it out, or set "
                f"objective.adversarial_weight = 0.01 to use it as the target domain"
            )
        warnings = []
        for state, word in ((POSITIVE, "positive"), (NEGATIVE, "negative")):
            without = [one for one, count in zip(self.config.read.ids, counts[state], strict=True) if not count]
            if without:
                warnings.append(
                    f"corpus '{name}': no text is {word} in {', '.join(without)}, so these categories learn one answer "
                    f"or nothing from it"
                )
        return warnings


def differences(described: Mapping[str, Any], taxonomy: Taxonomy) -> list[str]:
    """The differences between the taxonomy and the section `labels` of a corpus.json, in words. Absent values pass."""
    found = []
    if (version := described.get("taxonomy", taxonomy.label)) != taxonomy.label:
        found.append(f"it is '{version}'")
    if (ids := described.get("categories", list(taxonomy.ids))) != list(taxonomy.ids):
        return [*found, f"the categories are {ids}, not {list(taxonomy.ids)}"]
    for key, word in (("parents", "parent"), ("severities", "severity")):
        given = described.get(key)
        if not isinstance(given, dict):
            continue
        for one in taxonomy.categories:
            wanted = one.parent if key == "parents" else one.severity
            if given.get(one.id) != wanted:
                found.append(f"the {word} of {one.id} is {given.get(one.id) or 'none'}, not {wanted or 'none'}")
    return found


def _check_lengths(files: CorpusFiles, borders: NDArray[np.int64], *, n_ctx: int) -> None:
    """ConfigError if the end of a text, where its labels are, would be cut off."""
    lengths, seq_len = np.diff(borders), files.sampling.seq_len
    longest = int(lengths.max(initial=0))
    if longest > min(seq_len, n_ctx):
        key = "data.seq_len" if seq_len <= n_ctx else "model.n_ctx"
        raise ConfigError(
            f"{key} = {min(seq_len, n_ctx)} is invalid: in corpus '{files.name}', document {lengths.argmax()} is a "
            f"text of {longest} tokens, and its labels are at its end. Use {longest} or more, or prepare the texts "
            f"with labels.max_tokens = {min(seq_len, n_ctx)}"
        )


def _by_window() -> ConfigError:
    return ConfigError(
        "data.sampling = 'window' is invalid for a classifier: a row must hold whole texts. Use 'packed' or 'document'"
    )
