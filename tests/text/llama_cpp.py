"""llama.cpp as the judge: its own server on the loopback, asked for token ids."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from pathlib import Path

import tsumugu as tg
from tsumugu.core.registry import FAMILIES
from tsumugu.text.tokenizer import Tokenizer


class Judge:
    """A model in llama.cpp; only its tokenizer is used."""

    def __init__(self, path: Path) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = 64, 1, False
        self._server = xllamacpp.Server(parameters)
        self._connection = http.client.HTTPConnection(self._server.listening_address.removeprefix("http://"))

    def ids(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": add_special, "parse_special": parse_special}).encode()
        try:
            response = self._asked(body)
        except (ConnectionError, http.client.HTTPException):
            # The server closes a connection that was silent for five seconds, as on a busy machine.
            self._connection.close()
            response = self._asked(body)
        answer = json.loads(response.read())
        assert response.status == 200, answer
        found: list[int] = answer["tokens"]
        return found

    def _asked(self, body: bytes) -> http.client.HTTPResponse:
        self._connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
        return self._connection.getresponse()


def differing(tokenizer: Tokenizer, judge: Judge, texts: Iterable[str]) -> list[str]:
    """The texts that get other ids, special tokens in them read as such or as plain text."""
    return [
        text
        for text in texts
        for parse in (True, False)
        if tokenizer(text, add_special_tokens=parse, split_special_tokens=not parse).input_ids
        != judge.ids(text, add_special=parse, parse_special=parse)
    ]


def tiny_model(tokenizer: Tokenizer, path: Path) -> Path:
    """A LLaMA of one layer with random weights around a tokenizer, as a GGUF file."""
    family = FAMILIES["llama"]
    config = family.config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        intermediate_size=32,
        max_positions=64,
        tie_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    tg.save_model(family.build(config, "causal-lm"), path, tokenizer=tokenizer)
    return path
