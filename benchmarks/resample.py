"""Bootstrap intervals of macro F1, beside scikit-learn's F1 on each resample."""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Report, seconds
from tsumugu.evaluation.metrics import class_counts, encode, precision_recall_f1
from tsumugu.evaluation.resampling import Measure, bootstrap


def run(report: Report) -> None:
    """Both draw the same number of resamples of the same predictions, and count classes anew for each."""
    import sklearn.metrics

    examples, resamples = (200, 20) if report.smoke else (2000, 200)
    generator = np.random.default_rng(0)
    labels = [f"label {at}" for at in range(7)]
    gold = generator.choice(labels, examples)
    guessed = np.where(generator.random(examples) < 0.7, gold, generator.choice(labels, examples))

    def ours() -> float:
        rows = class_counts(encode(gold.tolist(), guessed.tolist(), labels), len(labels))
        return bootstrap(
            Measure("f1", rows, lambda sums: precision_recall_f1(sums, "macro")[2]), resamples=resamples
        ).value

    def theirs() -> float:
        for _ in range(resamples):
            drawn = generator.integers(0, examples, examples)
            sklearn.metrics.f1_score(gold[drawn], guessed[drawn], average="macro")
        return 0.0

    report.compare(
        f"{resamples} resamples of {examples} predictions",
        lambda: seconds(ours),
        lambda: seconds(theirs),
        peer_name="scikit-learn",
        limit="drawing numbers",
    )
