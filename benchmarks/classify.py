"""Labels for texts, tokens and answers, against the reference library's pipelines on the same weights; lengths vary."""

from __future__ import annotations

import tempfile

from benchmarks.embed import sentences
from benchmarks.harness import Report, seconds


def run(report: Report) -> None:
    import torch
    import transformers

    import tsumugu as tg

    texts = sentences(9 if report.smoke else 120)
    tokenizer = tg.load_tokenizer("minilm")
    limit = {"truncation": True, "max_length": 256}
    for task, head in (("text-classification", "for texts"), ("token-classification", "for tokens")):
        torch.manual_seed(0)
        model = tg.load_model("minilm", task=task, strict=False)
        with tempfile.TemporaryDirectory() as folder:
            tg.save_model(model, folder, tokenizer=tokenizer)
            ours = tg.pipeline(task, model=folder, engine="auto")
            theirs = transformers.pipeline(task, model=folder, device="cpu")
        options = limit if task == "text-classification" else {}
        mine, other = ours(texts[:8]), theirs(texts[:8], **options)
        assert [_labels(each) for each in mine] == [_labels(each) for each in other], "the labels differ"
        for size in (1, 8, 32):

            def peer(size: int = size, theirs: transformers.Pipeline = theirs, options: dict = options) -> float:
                return seconds(lambda: theirs(texts, batch_size=size, **options))

            report.compare(
                f"MiniLM-L6, {len(texts)} texts, labels {head}",
                lambda ours=ours: seconds(lambda: ours(texts)),
                peer,
                peer_name=f"transformers, batches of {size}",
                limit="arithmetic of the matrix products",
                rounds=3,
            )


def _labels(answer: object) -> list[str]:
    answers = answer if isinstance(answer, list) else [answer]
    return [each.get("label", each.get("entity")) for each in answers]
