"""Steps of training adapters, against the PEFT library over the reference library.

The same LLaMA with the same weights on both sides, the same batch, AdamW (fused), float32, in a plain loop of the same
steps; LoRA beside all matrices, and a prompt of 16 vectors. Both sides must begin with the same loss.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from benchmarks.harness import Report


def run(report: Report) -> None:
    """LLaMA of 6 x 384 (in the smoke mode 2 x 64)."""
    import torch
    import transformers
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    import tsumugu as tg

    layers, width, rows, length, steps = (2, 64, 2, 16, 2) if report.smoke else (6, 384, 8, 128, 6)
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=width // 64, intermediate_size=4 * width, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config)
    ids = torch.randint(8192, (rows, length))
    methods: dict[str, tuple[Any, Any]] = {
        "LoRA of rank 8": (
            tg.LoraConfig(rank=8),
            LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"),
        ),
        "a prompt of 16": (
            tg.PromptTuningConfig(tokens=16),
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16),
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        for name, (mine, its) in methods.items():
            ours = tg.add_adapter(tg.load_model(folder), mine).train()
            theirs = get_peft_model(transformers.LlamaForCausalLM.from_pretrained(folder), its).train()
            if isinstance(mine, tg.LoraConfig):
                difference = float(abs(ours(ids, labels=ids).loss - theirs(input_ids=ids, labels=ids).loss).detach())
                assert difference < 1e-4, difference
            report.compare(
                f"LLaMA {layers}x{width}, {name}, a step of {rows}x{length}",
                lambda model=ours: _steps(model, ids, steps),
                lambda model=theirs: _steps(model, ids, steps),
                peer_name="PEFT",
                limit="arithmetic: matrix products of the model itself",
            )


def _steps(model: Any, ids: Any, steps: int) -> float:
    """The median step's seconds."""
    import torch

    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    taken = []
    for _ in range(steps):
        began = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])
