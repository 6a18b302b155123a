"""Reading prompts and writing tokens on the reference engine, against the reference library on the same weights."""

from __future__ import annotations

import tempfile

from benchmarks.harness import Report, seconds


def run(report: Report) -> None:
    import torch
    import transformers

    import tsumugu as tg

    transformers.logging.set_verbosity_error()
    ours = tg.load_model("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        tg.save_model(ours, folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    prompt = torch.randint(100, 40000, (1, 64))
    long = torch.randint(100, 40000, (1, 128 if report.smoke else 512))
    tokens = 8 if report.smoke else 64
    batch = prompt.repeat(8, 1)

    def mine(ids: torch.Tensor, count: int) -> torch.Tensor:
        return tg.generate(ours, ids, max_new_tokens=count, min_new_tokens=count)

    def other(ids: torch.Tensor, count: int) -> torch.Tensor:
        return theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )

    assert torch.equal(mine(prompt, tokens), other(prompt, tokens)), "the tokens differ"
    for name, ids, count in (
        (f"first token after {long.shape[1]}", long, 1),
        (f"{tokens} tokens, batch 1", prompt, tokens),
        (f"{tokens} tokens, batch 8", batch, tokens),
    ):
        report.compare(
            f"SmolLM2-135M fp32, {name}",
            lambda ids=ids, count=count: seconds(lambda: mine(ids, count)),  # type: ignore[misc]
            lambda ids=ids, count=count: seconds(lambda: other(ids, count)),  # type: ignore[misc]
            peer_name="transformers",
            limit="arithmetic" if count == 1 else "memory bandwidth: 538 MB of weights for each step",
        )
