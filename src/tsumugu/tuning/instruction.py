"""Instruction tuning: a decoder learns to answer as the assistant of a conversation does, and nothing else of it.

Source: Ouyang et al. 2022, InstructGPT, section 3.5 (supervised fine-tuning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.data.labelled.examples import Examples
from tsumugu.objectives.base import IGNORE
from tsumugu.tasks.batching import padded
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.text.turns import PLAIN, Turns, encode_turns
from tsumugu.tuning.base import Row, TaskObjective
from tsumugu.tuning.writing import token_loss

if TYPE_CHECKING:
    from torch import Tensor

    from tsumugu.models.base import Model
    from tsumugu.tuning.recipe import DataSection, LossSection


class InstructionTuning(TaskObjective):
    """The tokens of the assistant's turns, each after all before it, with the token that ends a turn."""

    name: ClassVar[str] = "instruction-tuning"
    kind: ClassVar[str] = "conversation"
    head: ClassVar[str] = "causal-lm"
    solver: ClassVar[str | None] = None
    term: ClassVar[str] = "token"

    def __init__(self, model: Model, tokenizer: Tokenizer, data: DataSection, loss: LossSection) -> None:
        super().__init__(model, tokenizer, data, loss)
        need_template(tokenizer)

    def rows(self, examples: Examples) -> list[Row]:
        found = []
        for example in examples:
            for turns in encode_turns(self.tokenizer, example.messages, where=f"example {example.id}"):
                row = self.shortened(turns, example.id)
                if row is not None:
                    found.append(Row(row.ids, targets_of(row)))
        if not found:
            raise InputError(f"no answer begins within {self.max_length} tokens", where=examples.source)
        return found

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        targets = padded([row.answer for row in rows], IGNORE, width)
        return {"targets": targets}, {"token": int((targets != IGNORE).sum())}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"token": token_loss(model, inputs, self.loss.label_smoothing)}

    def shortened(self, turns: Turns, name: str) -> Turns | None:
        """The first `max_length` tokens; None where no answer is left and rows may be passed over.

        Raises:
            InputError: no answer is left.
        """
        return shortened(turns, self.max_length, skip=self.data.skip, where=f"example {name}")


def shortened(turns: Turns, limit: int, *, skip: bool, where: str) -> Turns | None:
    """The first `limit` tokens; None where no answer is left and `skip` allows it.

    Raises:
        InputError: no answer is left.
    """
    cut = Turns(turns.ids[:limit], turns.own[:limit])
    if any(cut.own[1:]):
        return cut
    if skip:
        return None
    mend = "raise data.max_length, or pass over such rows (data.skip)"
    raise InputError(f"no answer begins within {limit} tokens", where=where, mend=mend)


def targets_of(turns: Turns) -> list[int]:
    """What each position is to predict: the next token where that is the assistant's own."""
    following = zip(turns.ids[1:], turns.own[1:], strict=True)
    return [token if own else IGNORE for token, own in following] + [IGNORE]


def need_template(tokenizer: Tokenizer) -> None:
    """Give a tokenizer without a chat template a plain one, which is saved with the model.

    Raises:
        ConfigError: it has no token that ends an answer.
    """
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise ConfigError("the tokenizer has no token that ends a text", where="model.source", mend="set eos_token")
        tokenizer.chat_template = PLAIN
