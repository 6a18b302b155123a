"""Raw text to token ids on the disk, against `datasets.map` over the same tokenizer, and against a plain loop.

The text is Python's own library as JSON Lines, a function or so a document. Each side works in a fresh process and
leaves the imports out of its time, but not the start of its workers. All must give the same ids. Ours also drops exact
duplicates, of which there are none here, and keeps the counts and checksums.
"""

from __future__ import annotations

import json
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.harness import Report, child

OURS = """
import sys, time
from tsumugu.corpus.prepare import prepare
source, tokenizer, target, workers = sys.argv[1:]
began = time.perf_counter()
corpus = prepare([source], target, tokenizer=tokenizer, workers=int(workers))
print(time.perf_counter() - began)
print(corpus.tokens)
"""
DATASETS = """
import sys, time
import datasets, transformers
datasets.disable_progress_bars()
source, folder, target, workers = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
began = time.perf_counter()
raw = datasets.load_dataset("json", data_files=source, split="train", cache_dir=target)
def encode(batch):
    ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return {"ids": ids, "n": [len(each) for each in ids]}
done = raw.map(encode, batched=True, num_proc=int(workers), remove_columns=raw.column_names)
print(time.perf_counter() - began)
print(sum(done["n"]))
"""
LOOP = """
import json, sys, time
import numpy as np
import tokenizers
source, folder, target, workers = sys.argv[1:]
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
began = time.perf_counter()
tokens = 0
def batches():
    batch = []
    with open(source, encoding="utf-8") as lines:
        for line in lines:
            batch.append(json.loads(line)["text"])
            if len(batch) == 1000:
                yield batch
                batch = []
    yield batch
with open(target, "wb") as file:
    for batch in batches():
        for each in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            tokens += file.write(np.array(each.ids, np.uint16).tobytes()) // 2
print(time.perf_counter() - began)
print(tokens)
"""


def make(path: Path, size: int) -> int:
    """The sources of the standard library up to `size` characters; give how many they are."""
    library, seen, total = Path(sysconfig.get_paths()["stdlib"]), set(), 0
    with path.open("w", encoding="utf-8") as file:
        for source in sorted(library.rglob("*.py")):
            if "site-packages" in source.parts or total >= size:
                continue
            for part in source.read_text("utf-8", errors="replace").split("\n\n\n"):
                if len(part) > 100 and part not in seen and "<|" not in part:
                    seen.add(part)
                    file.write(json.dumps({"text": part.replace("\f", "").replace("\r", "")}) + "\n")
                    total += len(part)
    return total


def run(report: Report) -> None:
    """Compare whole preparations, two workers each."""
    import tsumugu as tg

    with tempfile.TemporaryDirectory() as folder:
        source, tokenizer = Path(folder) / "text.jsonl", Path(folder) / "tokenizer"
        size = make(source, 300_000 if report.smoke else 20_000_000)
        tg.load_tokenizer("smollm2").save(tokenizer)
        tokens: set[int] = set()
        count = 0

        def took(code: str, workers: int) -> float:
            nonlocal count
            count += 1
            arguments = [str(source), str(tokenizer), f"{folder}/result-{count}", str(workers)]
            printed = child("-c", code, *arguments, timeout=600)[1].split()
            tokens.add(int(printed[-1]))
            return float(printed[-2])

        what = f"prepare {size / 1e6:.1f} MB, 2 workers"
        ours = partial(took, OURS, 2)
        report.compare(
            what,
            ours,
            partial(took, DATASETS, 2),
            peer_name="datasets.map, num_proc=2",
            limit="tokenizers: the merges of byte pairs",
            rounds=3,
        )
        report.compare(
            what,
            ours,
            partial(took, LOOP, 0),
            peer_name="loop, 2 threads",
            limit="the same, and starting workers",
            rounds=3,
        )
        assert len(tokens) == 1, f"the sides count different tokens: {tokens}"
