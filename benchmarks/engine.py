"""The quick engine against llama.cpp with weights of as many bits, and against the reference library on torch.

Each engine is a process of its own and works in turn. llama.cpp is llama-cpp-python where that is installed (built for
this machine), else xllamacpp.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Report, shallow
from benchmarks.workers import Worker

if TYPE_CHECKING:
    from tsumugu.models.base import Model

BITS = {"float32": ("none", "F32"), "8 bits": ("int8", "Q8_0"), "4 bits": ("int4", "Q4_0")}
BANDWIDTH = "memory bandwidth in float32; below that arithmetic and threads that meet at each operation"


def run(report: Report) -> None:
    import tsumugu as tg

    llama = peer_name()
    tokens, long = (8, 64) if report.smoke else (64, 512)
    with tempfile.TemporaryDirectory() as folder:
        model = tg.load_model("smollm2")
        files = written(Path(folder), shallow(model) if report.smoke else model)
        reference = Worker("transformers", files["hub"])
        for bits, (quantize, kind) in BITS.items():
            source = files["hub"] if report.smoke else "smollm2"
            ours, peer = Worker("ours", source, quantize), Worker(llama, files[kind])
            pairs = [(f"llama.cpp {kind}", peer)]
            if bits == "float32":
                assert ours.ask("text", tokens=tokens) == reference.ask("text", tokens=tokens), "the tokens differ"
                pairs.append(("transformers", reference))
            for name, other in pairs:
                for work, options in works(tokens, long):
                    verb = "prefill" if work.startswith("first") else "decode"
                    report.compare(
                        f"SmolLM2-135M {bits}, {work}",
                        lambda verb=verb, options=options, ours=ours: ours.ask(verb, **options),  # type: ignore[misc]
                        lambda verb=verb, options=options, other=other: other.ask(verb, **options),  # type: ignore[misc]
                        peer_name=name,
                        limit="arithmetic" if verb == "prefill" else BANDWIDTH,
                    )
            ours.close()
            peer.close()
        reference.close()


def peer_name() -> str:
    """The worker that runs llama.cpp."""
    return "llama" if importlib.util.find_spec("llama_cpp") else "xllama"


def works(tokens: int, long: int) -> list[tuple[str, dict[str, int]]]:
    return [
        (f"{tokens} tokens", {"tokens": tokens}),
        (f"first token after {long}", {"tokens": long}),
        (f"8 x {tokens} tokens", {"tokens": tokens, "rows": 8}),
    ]


def written(folder: Path, model: Model) -> dict[str, Path]:
    """A model with SmolLM2's tokenizer in the forms that the peers read.

    Q4_0 is as llama.cpp's own tool makes it: the embedding in Q8_0.
    """
    import gguf
    import numpy as np

    import tsumugu as tg

    tokenizer = tg.load_tokenizer("smollm2")
    files = {kind: folder / f"{kind}.gguf" for kind in ("F32", "Q8_0", "Q4_0")} | {"hub": folder / "hub"}
    tg.save_model(model, files["F32"], tokenizer=tokenizer, storage="F32")
    tg.save_model(model, files["Q8_0"], tokenizer=tokenizer, storage="Q8_0")
    tg.save_model(model, files["hub"], tokenizer=tokenizer)
    reader, writer = gguf.GGUFReader(files["F32"]), gguf.GGUFWriter(files["Q4_0"], "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if array else None)
    for tensor in reader.tensors:
        values = np.array(tensor.data).reshape(tuple(int(size) for size in reversed(tensor.shape)))
        kind = gguf.GGMLQuantizationType["Q8_0" if "token_embd" in tensor.name else "Q4_0"]
        if values.ndim == 2:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return files
