"""Entities: how many of them were found exactly, as seqeval counts.

seqeval is a judge in the tests and no dependency: it is built from source, reads tags only, and is slow to import.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from tsumugu.data.labelled.tags import tags_to_spans
from tsumugu.evaluation.metrics import Array, check_pairs

Entity = tuple[Hashable, ...]
"""What must be equal, the label last: ``(start, end, label)``."""


def entity_counts(
    references: Sequence[Iterable[Entity]], predictions: Sequence[Iterable[Entity]], labels: Sequence[str]
) -> Array:
    """What each text adds to entities found, predicted and marked of each label, `[texts, 3 * (labels + 1)]`.

    Their sums go to `precision_recall_f1`. An entity counts once, and is found when all of it is equal. Predicted
    labels that are none of `labels` count under the last place, which is added for them.
    """
    check_pairs(references, predictions)
    places = {label: at for at, label in enumerate(labels)}
    rows = np.zeros((len(references), 3, len(labels) + 1))
    for row, marked, found in zip(rows, references, predictions, strict=True):
        gold, guessed = set(marked), set(found)
        for part, entities in enumerate((gold & guessed, guessed, gold)):
            for entity in entities:
                row[part, places.get(str(entity[-1]), -1)] += 1
    return rows.reshape(len(references), -1)


def tags_to_entities(sequences: Iterable[Sequence[str]], scheme: str | None = None) -> list[list[Entity]]:
    """The entities of sequences of tags; see `tags_to_spans` for the schemes."""
    return [[(span.start, span.end, span.label) for span in tags_to_spans(tags, scheme)] for tags in sequences]
