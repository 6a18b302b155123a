"""Fill-mask: what stands behind the mask token of a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tsumugu.core.errors import InputError
from tsumugu.tasks.base import Task


class FillMask(Task):
    """The likeliest tokens at each mask.

    A text with one mask gives a list of `{"score", "token", "token_str", "sequence"}`, likeliest first; with several
    masks, one such list for each, in order, whose `sequence` keeps the other masks and the special tokens. A list of
    one text gives what the text gives, as in the usual pipeline.

    Options of a call:
        top_k: how many tokens for each mask (5).
        targets: score only these words; a word of several tokens is refused.
        tokenizer_kwargs: options of the tokenizer, such as truncation and max_length.
    """

    name = "fill-mask"
    engines = ("torch", "onnx", "native")
    options = frozenset({"top_k", "targets", "tokenizer_kwargs"})
    heads = ("pretraining",)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        results = super().__call__(inputs, **options)
        return results[0] if isinstance(inputs, list) and len(inputs) == 1 else results

    @torch.inference_mode()
    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        mask = self.tokenizer.mask_token_id
        if mask is None:
            raise InputError("the tokenizer has no mask token", where="tokenizer", mend="use a masked language model")
        more = dict(options.get("tokenizer_kwargs") or {})
        if more.get("truncation") is True:
            more.setdefault("max_length", self.longest)
        encoded = self.tokenizer(rows, **{**more, "padding": True, "return_tensors": "pt"})
        ids: Tensor = encoded["input_ids"]
        logits = self.model(**encoded).logits
        candidates = self._targets(options.get("targets"))
        count = int(options.get("top_k", 5))
        if count < 1:
            raise InputError(f"{count} answers are none", where="top_k", mend="at least 1")
        results: list[Any] = []
        for row, text in enumerate(rows):
            places = (ids[row] == mask).nonzero()[:, 0]
            if len(places) == 0:
                raise InputError(
                    f"there is no {self.tokenizer.mask_token} in {_short(text)!r}",
                    where="text",
                    mend="put it where a word is missing",
                )
            real = ids[row][encoded["attention_mask"][row].bool()].tolist()
            # With other masks left, the text is shown as it was read, as in the usual pipeline.
            plain = len(places) == 1
            answers = [
                self._answers(logits[row, place], real, int(place), candidates, count, plain=plain) for place in places
            ]
            results.append(answers[0] if len(answers) == 1 else answers)
        return results

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        for answers in result if result and isinstance(result[0], list) else [result]:
            for answer in answers:
                yield f"{answer['score']:.4f}  {answer['token_str']}\t{answer['sequence']}"

    def _answers(
        self, logits: Tensor, ids: list[int], place: int, candidates: Tensor | None, count: int, *, plain: bool
    ) -> list[dict[str, Any]]:
        probabilities = logits.float().softmax(-1)
        if candidates is not None:
            probabilities = probabilities[candidates]
        scores, tokens = probabilities.topk(min(count, len(probabilities)))
        if candidates is not None:
            tokens = candidates[tokens]
        answers = []
        for score, token in zip(scores.tolist(), tokens.tolist(), strict=True):
            filled = [*ids[:place], token, *ids[place + 1 :]]
            answers.append(
                {
                    "score": score,
                    "token": token,
                    "token_str": self.tokenizer.decode([token]),
                    "sequence": self.tokenizer.decode(filled, skip_special_tokens=plain),
                }
            )
        return answers

    def _targets(self, targets: str | list[str] | None) -> Tensor | None:
        if targets is None:
            return None
        words = [targets] if isinstance(targets, str) else targets
        tokens = []
        for word in words:
            known = self.tokenizer.encode(word, add_special_tokens=False)
            direct = self.tokenizer.convert_tokens_to_ids(word)
            if direct is not None and direct != self.tokenizer.unk_token_id:
                tokens.append(direct)
            elif len(known) == 1 and known[0] != self.tokenizer.unk_token_id:
                tokens.append(known[0])
            else:
                raise InputError(f"{word!r} is not one token of this model", where="targets")
        if not tokens:
            raise InputError("there is no word to choose from", where="targets")
        return torch.tensor(list(dict.fromkeys(tokens)))


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
