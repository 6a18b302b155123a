"""Engines at work in processes of their own: each answers a line of JSON with seconds, and sleeps until the next.

`python -m benchmarks.workers NAME ARGUMENT…` is one of them; `Worker` talks with it. Threads of one engine cannot
disturb another's that way, and each gets the environment that it is best in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROMPT = 64
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = int(os.environ.get("TSUMUGU_BENCH_THREADS", CORES))
clock = time.process_time if THREADS == 1 else time.perf_counter
"""One thread is measured by its own time, so that what else runs on the machine counts for little."""


def prompt(length: int, seed: int = 0) -> list[int]:
    """The same ids for everybody, below the size of all vocabularies that are measured."""
    return [1000 + (7919 * (place + 31 * seed)) % 20000 for place in range(length)]


def with_kernels(folder: Path) -> Path:
    """A home of its own that shares the user's kernels: compiling them takes ten seconds, and they fit all models."""
    from tsumugu.hub.home import home

    kept, shared = home() / "native", folder / "native"
    kept.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not shared.exists():
        shared.symlink_to(kept)
    return folder


class Worker:
    """A child process that runs one engine; `ask` gives what it answers.

    Args:
        name: a key of `ENGINES`; `arguments` are what that takes.
        threads: that it computes on.
        home: where it keeps what it compiles; the user's cache when left out.
    """

    def __init__(self, name: str, *arguments: object, threads: int = THREADS, home: Path | None = None) -> None:
        # llama.cpp's threads meet hundreds of times for a token: asleep in between they would be several times slower.
        env = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        env["TSUMUGU_BENCH_THREADS"] = str(threads)
        if home is not None:
            env["TSUMUGU_HOME"] = str(with_kernels(home))
        command = [sys.executable, "-m", "benchmarks.workers", name, *map(str, arguments)]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )

    def ask(self, work: str, **options: Any) -> Any:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps({"work": work, **options}) + "\n")
        self.child.stdin.flush()
        while line := self.child.stdout.readline():
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"{self.child.args} left without an answer")

    def close(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.child.wait(60)


class Ours:
    """The compiled engine."""

    def __init__(self, source: str, quantize: str, group: str = "0") -> None:
        import tsumugu as tg

        kind = None if quantize == "none" else quantize
        self.seed = 0
        self.model = tg.load_model(source, engine="auto", quantize=kind, group=int(group), threads=THREADS)

    def decode(self, tokens: int, rows: int = 1, length: int = PROMPT) -> float:
        session = self.model.open_session(batch=rows, capacity=length + tokens)
        logits = session.start([prompt(length, row) for row in range(rows)])
        began = clock()
        for _ in range(tokens):
            logits = session.step(logits.argmax(-1))
        return clock() - began

    def prefill(self, tokens: int) -> float:
        session = self.model.open_session(batch=1, capacity=tokens)
        self.seed += 1  # what was read before would not be read again
        text = prompt(tokens, self.seed)
        began = clock()
        session.start([text])
        return clock() - began

    def text(self, tokens: int) -> list[int]:
        import tsumugu as tg

        return tg.generate(self.model, [prompt(PROMPT)], max_new_tokens=tokens, min_new_tokens=tokens)[0][PROMPT:]


class Transformers:
    """The reference library on torch."""

    def __init__(self, folder: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(THREADS)
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def _write(self, tokens: int, rows: int, length: int) -> float:
        ids = self.torch.tensor([prompt(length, row) for row in range(rows)])
        began = clock()
        self.ids = self.model.generate(
            ids,
            attention_mask=self.torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return clock() - began

    def decode(self, tokens: int, rows: int = 1, length: int = PROMPT) -> float:
        first = self._write(1, rows, length)
        return self._write(tokens + 1, rows, length) - first

    def prefill(self, tokens: int) -> float:
        ids = self.torch.tensor([prompt(tokens)])
        with self.torch.inference_mode():
            began = clock()
            self.model(ids, use_cache=True, logits_to_keep=1)
            return clock() - began

    def text(self, tokens: int) -> list[int]:
        self._write(tokens, 1, PROMPT)
        return list(self.ids[0, PROMPT:].tolist())


class Llama:
    """llama.cpp by llama-cpp-python: its C interface, without a sampler."""

    def __init__(self, path: str, rows: str = "8", room: str = "640") -> None:
        import llama_cpp

        self.lib = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = int(rows) * int(room), int(rows)
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def _run(self, items: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Tokens with position, row and whether logits are wanted; gives the likeliest for those."""
        import numpy as np

        batch = self.batch
        batch.n_tokens = len(items)
        for index, (token, position, row, wanted) in enumerate(items):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, row, wanted
        assert self.lib.llama_decode(self.context, batch) == 0
        chosen = [index for index, item in enumerate(items) if item[3]]
        return [
            int(np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, index), shape=(self.vocab,)).argmax())
            for index in chosen
        ]

    def _start(self, rows: int, length: int) -> list[int]:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        return [self._read(prompt(length, row), row) for row in range(rows)]

    def _read(self, ids: list[int], row: int) -> int:
        """Read a prompt, as much at once as the context takes; the likeliest next token."""
        items = [(token, place, row, place == len(ids) - 1) for place, token in enumerate(ids)]
        *_, last = [self._run(items[begin : begin + 512]) for begin in range(0, len(items), 512)]
        return last[0]

    def decode(self, tokens: int, rows: int = 1, length: int = PROMPT) -> float:
        last = self._start(rows, length)
        began = clock()
        for step in range(tokens):
            last = self._run([(token, length + step, row, True) for row, token in enumerate(last)])
        return clock() - began

    def prefill(self, tokens: int) -> float:
        began = clock()
        self._start(1, tokens)
        return clock() - began


class XLlama:
    """llama.cpp by xllamacpp: its server; several rows are several requests at once."""

    def __init__(self, path: str, rows: str = "8", room: str = "640") -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = path
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = int(rows) * int(room), int(rows), False
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = THREADS
        self.server = xllamacpp.Server(parameters)

    def _asked(self, length: int, tokens: int, row: int = 0) -> dict[str, float]:
        asked = {"prompt": prompt(length, row), "n_predict": tokens, "temperature": 0}
        found = self.server.handle_completions(asked | {"ignore_eos": True, "cache_prompt": False})
        return dict((found if isinstance(found, dict) else json.loads(found))["timings"])

    def _written(self, rows: int, length: int, tokens: int) -> float:
        began = clock()
        with ThreadPoolExecutor(rows) as pool:
            list(pool.map(lambda row: self._asked(length, tokens, row), range(rows)))
        return clock() - began

    def decode(self, tokens: int, rows: int = 1, length: int = PROMPT) -> float:
        if rows == 1 and THREADS > 1:
            return self._asked(length, tokens)["predicted_ms"] / 1000
        first = self._written(rows, length, 1)
        return self._written(rows, length, tokens + 1) - first

    def prefill(self, tokens: int) -> float:
        began = clock()
        found = self._asked(tokens, 1)["prompt_ms"]
        return clock() - began if THREADS == 1 else found / 1000


ENGINES = {"ours": Ours, "transformers": Transformers, "llama": Llama, "xllama": XLlama}


def main() -> None:
    name, *arguments = sys.argv[1:]
    engine = ENGINES[name](*arguments)
    for line in sys.stdin:
        asked = json.loads(line)
        print("answer", json.dumps(getattr(engine, asked.pop("work"))(**asked)), flush=True)


if __name__ == "__main__":
    main()
