"""What may be asked of generation, in the words that the usual libraries have for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tsumugu.core.config import Config, limits


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(Config):
    """How a text is continued. The default is greedy: the likeliest token each time.

    Attributes:
        max_new_tokens: how many tokens to write at most; a text ends earlier where the model's context is full.
        min_new_tokens: no end before so many.
        do_sample: draw from the distribution instead of taking its maximum; implied, unless given, by temperature,
            top_k, top_p, min_p, or several texts without beams.
        temperature: logits are divided by it; 0 is greedy.
        top_k: only the k likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together have this probability (nucleus).
        min_p: only tokens at least this fraction as likely as the likeliest.
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt and the text.
        frequency_penalty: taken off a logit for each time the token was written.
        presence_penalty: taken off once, if the token was written at all.
        no_repeat_ngram_size: no run of so many tokens comes twice, the prompt counted in; 0 for no such rule.
        seed: of the draws. A text depends on its own prompt, the seed and its number among `num_return_sequences`, not
            on what else is in the batch. None draws a fresh seed.
        num_beams: beams for each prompt; 1 is no beam search.
        length_penalty: a beam's score is its log probability over its length to this power.
        early_stopping: True ends as soon as there are `num_beams` finished texts; False when no better one is likely;
            "never" when no better one is possible.
        num_return_sequences: texts for each prompt.
        eos_token_id: what ends a text; the model's own when None.
        stop_strings: text that ends a text; it stays in the tokens.
        choices: the text is one of these; this, `regex` and `json_schema` need a tokenizer, and one of them holds.
        regex: the whole text matches this regular expression, in Rust's dialect.
        json_schema: the text is JSON that fits this schema, given as JSON.
        prompt_lookup: tokens that are guessed at once where the text repeats itself, which stays the same; 0 for none.
        draft_tokens: tokens that a draft model guesses at once.

    Source: nucleus: Holtzman et al. 2020, section 3.1; repetition penalty: Keskar et al. 2019, CTRL, section 4.1;
    min-p: Nguyen et al. 2024, section 3; runs that may not repeat: Paulus et al. 2018, section 2.5; length penalty: Wu
    et al. 2016, section 7, in its simple form.
    """

    max_new_tokens: int = limits(256, low=1)
    min_new_tokens: int = limits(0, low=0)
    do_sample: bool = False
    temperature: float = limits(1.0, low=0.0)
    top_k: int = limits(0, low=0)
    top_p: float = limits(1.0, low=0.0, high=1.0)
    min_p: float = limits(0.0, low=0.0, high=1.0)
    repetition_penalty: float = limits(1.0, low=1e-3)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = limits(0, low=0)
    seed: int | None = limits(None, low=0)
    num_beams: int = limits(1, low=1)
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = limits(1, low=1)
    eos_token_id: int | tuple[int, ...] | None = None
    stop_strings: str | tuple[str, ...] | None = None
    choices: tuple[str, ...] | None = None
    regex: str | None = None
    json_schema: str | None = None
    prompt_lookup: int = limits(0, low=0)
    draft_tokens: int = limits(5, low=1)

    def check(self) -> None:
        if self.num_beams > 1 and self.do_sample:
            self.refuse("do_sample", "beams are not drawn", mend="choose num_beams=1 or do_sample=False")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            self.refuse("num_return_sequences", f"more than the {self.num_beams} beams")
        if self.num_beams == 1 and self.num_return_sequences > 1 and not self.samples:
            self.refuse(
                "num_return_sequences", "greedy search finds one text", mend="choose do_sample=True or num_beams"
            )
        if self.min_new_tokens > self.max_new_tokens:
            self.refuse("min_new_tokens", f"more than max_new_tokens ({self.max_new_tokens})")
        if "" in self.stops:
            self.refuse("stop_strings", "an empty text would stop everything")
        if self.num_beams > 1 and self.stops:
            self.refuse("stop_strings", "beams end at end tokens only", mend="choose num_beams=1 or eos_token_id")
        if self.num_beams > 1 and self.prompt_lookup:
            self.refuse("prompt_lookup", "beams are not guessed", mend="choose num_beams=1")
        if self.shaped:
            if self.num_beams > 1:
                self.refuse("num_beams", "beams do not follow a shape", mend="choose num_beams=1")
            if self.min_new_tokens or self.stops:
                name = "min_new_tokens" if self.min_new_tokens else "stop_strings"
                self.refuse(name, "a shape says by itself where a text may end")

    @property
    def shaped(self) -> bool:
        """Whether texts must have a given shape."""
        return any(each is not None for each in (self.choices, self.regex, self.json_schema))

    @property
    def samples(self) -> bool:
        return self.do_sample and self.temperature > 0

    @property
    def ends(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop_strings is None:
            return ()
        return (self.stop_strings,) if isinstance(self.stop_strings, str) else self.stop_strings

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
