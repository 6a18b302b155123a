"""From files to a model that answers: time and peak memory in a fresh process, against the reference library."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.harness import Report, child, shallow
from benchmarks.workers import PROMPT, THREADS, prompt

PEAK = "\nprint(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024)"
"""Linux's own high-water mark; what getrusage says is inherited from the parent."""
OURS = "import tsumugu as tg; m = tg.load_model({!r}); tg.generate(m, [[1, 2, 3]], max_new_tokens=1)" + PEAK
THEIRS = (
    "import torch, transformers; transformers.logging.set_verbosity_error()\n"
    "m = transformers.AutoModelForCausalLM.from_pretrained({!r}, dtype=torch.float32{})\n"
    "m.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=1, do_sample=False)" + PEAK
)


QUICK = (
    "import tsumugu as tg; m = tg.load_model({!r}, engine='auto', quantize='int8', threads={threads}); "
    "tg.generate(m, [{ids}], max_new_tokens=1)" + PEAK
)
LLAMA = (
    "import xllamacpp; p = xllamacpp.CommonParams(); p.model.path = {!r}; "
    "p.n_ctx, p.n_parallel, p.warmup = 640, 1, False; "
    "p.cpuparams.n_threads = p.cpuparams_batch.n_threads = {threads}\n"
    "xllamacpp.Server(p).handle_completions({{'prompt': {ids}, 'n_predict': 1, 'temperature': 0}})" + PEAK
)


def run(report: Report) -> None:
    import tsumugu as tg

    gguf = tg.pull("smollm2").path
    gguf = gguf if gguf.is_file() else next(gguf.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = tg.load_model(gguf), tg.load_tokenizer(gguf)
        if report.smoke:
            gguf = Path(folder, "shallow.gguf")
            tg.save_model(shallow(model), gguf, tokenizer=tokenizer, storage="Q8_0")
        tg.save_model(model, folder, tokenizer=tokenizer)
        peaks: dict[str, list[float]] = {}

        def timed(label: str, code: str) -> float:
            took, printed = child("-c", code, timeout=300)
            peaks.setdefault(label, []).append(float(printed.split()[-1]))
            return took

        report.compare(
            "cold start to first token, safetensors fp32",
            lambda: timed("ours", OURS.format(folder)),
            lambda: timed("theirs", THEIRS.format(folder, "")),
            peer_name="transformers",
            limit="importing torch",
        )
        report.compare(
            "cold start to first token, GGUF Q4_1 to fp32",
            lambda: timed("ours, GGUF", OURS.format(str(gguf))),
            lambda: timed("theirs, GGUF", THEIRS.format(str(gguf.parent), f", gguf_file={gguf.name!r}")),
            peer_name="transformers",
            limit="importing torch, then dequantising in NumPy",
            rounds=3,
        )
        small = Path(folder) / "small.gguf"
        tg.save_model(model, small, tokenizer=tokenizer, storage="Q8_0")
        settings = {"threads": THREADS, "ids": prompt(PROMPT)}
        child("-c", QUICK.format(folder, **settings), timeout=300)  # compiled once
        report.compare(
            "cold start to first token, 8 bits",
            lambda: timed("ours, 8 bits", QUICK.format(folder, **settings)),
            lambda: timed("llama.cpp, Q8_0", LLAMA.format(str(small), **settings)),
            peer_name="llama.cpp",
            limit="importing NumPy and the tokenizer; reading 140 MB",
        )
        for label, values in peaks.items():
            print(f"  peak memory, {label}: {max(values) / 1e6:.0f} MB (weights {_size(folder) / 1e6:.0f} MB)")


def _size(folder: str) -> int:
    return sum(each.stat().st_size for each in Path(folder).glob("*.safetensors"))
