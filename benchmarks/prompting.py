"""Classifying by prompt with what is shared read once, against one pass over everything for each text and label.

Then the same on the quick engine, against torch: in float32, and in the bits that the file has.
"""

from __future__ import annotations

import random

from benchmarks.harness import Report, seconds

EXAMPLES = [
    ("a gripping story , told with warmth and wit .", "positive"),
    ("dull , lifeless and far too long .", "negative"),
    ("the cast is wonderful and the jokes land .", "positive"),
    ("i checked my watch every five minutes .", "negative"),
    ("one of the best films of the year .", "positive"),
    ("it has nothing to say and says it loudly .", "negative"),
    ("a small film with a big heart .", "positive"),
    ("the script is a mess .", "negative"),
]
WORDS = """
    the a this film story plot cast script scene music ending is was feels looks seems never always quite rather
    warm dull bright slow moving empty clever flat funny sad long short and but with without of in about for , .
""".split()  # noqa: SIM905  (words in a row are easier to read than in a column)
NAIVE = 10
"""The slow way is taken for one text in so many, and its time multiplied."""


def run(report: Report) -> None:
    import numpy as np
    import torch

    import tsumugu as tg

    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(6, 36))) for _ in range(20 if report.smoke else 1000)]
    examples = [{"text": text, "label": label} for text, label in EXAMPLES]
    model, tokenizer = tg.load_model("smollm2"), tg.load_tokenizer("smollm2")
    labels = (" negative", " positive")
    prompt = "Say whether each text is negative or positive.\n\n"
    prompt += "".join(f"Text: {text}\nSentiment: {label}\n\n" for text, label in EXAMPLES)
    some = texts[:: 5 if report.smoke else NAIVE]

    @torch.inference_mode()
    def alone() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """The log probability of each label of each of `some`, sixteen prompts with their labels at a time."""
        whole = [tokenizer.encode(f"{prompt}Text: {text}\nSentiment:{label}") for text in some for label in labels]
        found = []
        for start in range(0, len(whole), 16):
            rows = whole[start : start + 16]
            ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
            for place, row in enumerate(rows):
                ids[place, : len(row)] = torch.tensor(row)
            # Both labels are one token, so that only the logits before it are made.
            before = torch.tensor([len(row) - 2 for row in rows])
            logs = model(ids, logits_to_keep=before).logits[:, 0].log_softmax(-1)
            found += [float(logs[place, row[-1]]) for place, row in enumerate(rows)]
        return np.array(found).reshape(len(some), 2)

    def shared() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        return tg.pipeline("sentiment-analysis", model, tokenizer).scores(texts, examples=examples)  # type: ignore[attr-defined]

    found: dict[str, np.ndarray[tuple[int, int], np.dtype[np.float64]]] = {}
    report.compare(
        f"SmolLM2-135M, {len(texts)} texts, 8 examples, 2 labels",
        lambda: seconds(lambda: found.update(ours=shared())),
        lambda: seconds(lambda: found.update(theirs=np.exp(alone()))) * len(texts) / len(some),
        peer_name="each label alone",
        limit="arithmetic: the tokens that are read",
        rounds=1,
    )
    ours, theirs = found["ours"][:: len(texts) // len(some)], found["theirs"]
    difference = float(np.abs(ours - theirs / theirs.sum(1, keepdims=True)).max())
    assert difference <= 1e-5, f"the scores differ by {difference}"
    print(f"{'':44} greatest difference of a score: {difference:.1e}", flush=True)
    some = texts[: 20 if report.smoke else 200]
    slow = tg.pipeline("sentiment-analysis", model, tokenizer)
    for name, quantize in (("float32", None), ("as many bits as the file", "auto")):
        quick = tg.pipeline("sentiment-analysis", "smollm2", engine="auto", quantize=quantize)
        report.compare(
            f"SmolLM2-135M, {len(some)} texts, quick engine, {name}",
            lambda: seconds(lambda: found.update(ours=quick.scores(some, examples=examples))),  # type: ignore[attr-defined]  # noqa: B023
            lambda: seconds(lambda: found.update(theirs=slow.scores(some, examples=examples))),  # type: ignore[attr-defined]
            peer_name="torch",
            limit="arithmetic: the tokens that are read",
            rounds=3,
        )
        difference = float(np.abs(found["ours"] - found["theirs"]).max())
        assert quantize or difference <= 1e-4, f"the scores differ by {difference}"
        same = float((found["ours"].argmax(1) == found["theirs"].argmax(1)).mean())
        print(f"{'':44} greatest difference of a score: {difference:.1e}; same label: {same:.3f}", flush=True)
