"""Divide documents into training and validation, and order them, by their ids alone."""

from dataclasses import dataclass

from data_prep.documents.shards import keyed_hash, parent_id


@dataclass(frozen=True)
class SplitConfig:
    """The division and order of documents. Both use hashes of the ids with `seed`, and do not depend on the shards."""

    validation_fraction: float
    seed: int

    def is_validation(self, document_id: str) -> bool:
        """Return whether the document goes to the validation split; pieces of one document go together."""
        return self.draw(document_id) < self.validation_fraction * 2**64

    def draw(self, document_id: str) -> int:
        """The number from 0 to 2^64 - 1 that decides the document's split."""
        return keyed_hash(parent_id(document_id), key=f"validation {self.seed}")

    def order(self, document_id: str) -> int:
        """The document's position in its split, as a sorting key in 0 to 2^64 - 1."""
        return keyed_hash(document_id, key=f"shuffle {self.seed}")
