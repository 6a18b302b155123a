"""Continuing texts: greedy, drawn, or by beams; one or many at once; all at the end or token by token."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.core.tensors import convert_tensor, format_of, to_numpy
from tsumugu.engines.session import end_session, open_session
from tsumugu.engines.session_scoring import log_probabilities
from tsumugu.generation.beam import beam_search
from tsumugu.generation.constrained import Guide, grammar_of
from tsumugu.generation.ends import Ends, Step, limit_of
from tsumugu.generation.options import GenerationOptions
from tsumugu.generation.sampling import Sampler
from tsumugu.generation.speculative import DraftModel, Guesser, PromptLookup, token_session
from tsumugu.text.tokenizer import Tokenizer

Rows = NDArray[np.int64]

DRAWING = ("temperature", "top_k", "top_p", "min_p")
"""Options that shape a draw, and so ask for one."""


def generate(
    model: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    tokenizer: Tokenizer | None = None,
    truncation: bool = False,
    max_length: int | None = None,
    pad_token_id: int | None = None,
    stream: bool = False,
    draft: Any = None,
    **options: Any,
) -> Any:
    """Continue each row of `input_ids`.

    Args:
        model: a decoder, or an encoder-decoder: it reads the rows and writes texts of their own.
        input_ids: `[batch, time]` of any tensor kind, or lists of token ids of any lengths.
        attention_mask: `[batch, time]`, zero where a token is padding (on either side).
        tokenizer: needed for `stop_strings`, `choices`, `regex` and `json_schema`.
        truncation: cut a prompt that is too long for the model on its left, where it would otherwise be refused.
        max_length: the same as `max_new_tokens`, with the longest prompt (or the start token) counted in.
        pad_token_id: fills rows that end early; the model's own, else its end token.
        stream: give an iterator instead, over the tokens of each step: an int for one row, else a list with one entry a
            row, None where a row has ended.
        draft: a smaller model with the same vocabulary: it guesses tokens, which the model checks all at once. The text
            stays the same.
        **options: see `GenerationOptions`.

    Returns:
        Tensors in, a tensor of the same kind out, `[batch * num_return_sequences, longest]`: the prompt as it came, the
        new tokens, padding. Lists in, lists out, without padding. Of an encoder-decoder the start token stands in the
        prompt's place.

    Raises:
        InputError: a prompt is empty or too long.
        ConfigError: an option is unknown or out of range.
    """
    kind = format_of(input_ids)
    given, prompts = _prompts(input_ids, attention_mask)
    config = model.config
    if reads_apart(model):
        given = beginnings(model, prompts)
    chosen = resolve_options(
        model, beginnings(model, prompts), options | ({} if max_length is None else {"max_length": max_length})
    )
    prompts = [fitting(prompt, config.max_positions, truncation) for prompt in prompts]
    if stream:
        return _streamed(model, prompts, chosen, tokenizer, draft)
    texts = complete(model, prompts, chosen, tokenizer, draft=draft)
    if kind is None:
        copies = np.repeat(np.arange(len(prompts)), chosen.num_return_sequences)
        return [[*given[row], *text] for row, text in zip(copies, texts, strict=True)]
    pad = next((each for each in (pad_token_id, config.pad_token_id, *chosen.ends) if each is not None), 0)
    longest = max(len(text) for text in texts)
    padded = np.array([[*text, *[pad] * (longest - len(text))] for text in texts], dtype=np.int64)
    front = np.repeat(np.asarray(given, dtype=np.int64), chosen.num_return_sequences, axis=0)
    result = np.concatenate((front, padded.reshape(len(texts), longest)), axis=1)
    return convert_tensor(result, kind)


def reads_apart(model: Any) -> bool:
    """Whether an encoder reads the prompts, so that texts do not begin with them."""
    return getattr(model.config, "decoder_start_token_id", None) is not None


def beginnings(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What each text begins with: its prompt, or the start token where an encoder reads that."""
    return [[model.config.decoder_start_token_id] if reads_apart(model) else list(prompt) for prompt in prompts]


def resolve_options(model: Any, prompts: Sequence[Sequence[int]], options: dict[str, Any]) -> GenerationOptions:
    """Checked options for texts that begin so.

    `max_length` and `min_length` become `max_new_tokens` and `min_new_tokens`, the model's own end is filled in, and
    who names an option of drawing, or several texts without beams, means drawing unless `do_sample` says otherwise.
    """
    options = dict(options)
    if options.get("num_beams", 1) == 1:
        several = options.get("num_return_sequences", 1) != 1
        options.setdefault("do_sample", several or any(name in options for name in DRAWING))
    longest = max(len(prompt) for prompt in prompts)
    max_length = options.pop("max_length", None)
    if max_length is not None:
        if max_length <= longest:
            raise InputError(f"the prompt has {longest} tokens already", where=f"max_length={max_length}")
        options.setdefault("max_new_tokens", max_length - longest)
    min_length = options.pop("min_length", None)
    if min_length is not None:
        options.setdefault("min_new_tokens", max(0, min_length - longest))
    if isinstance(options.get("json_schema"), Mapping):
        options["json_schema"] = json.dumps(options["json_schema"])
    if options.get("eos_token_id") is None:
        options["eos_token_id"] = getattr(model, "end_tokens", None) or getattr(model.config, "eos_token_id", None)
    return GenerationOptions.from_dict(options, where="generation")


def complete(
    model: Any,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    tokenizer: Tokenizer | None = None,
    *,
    grammars: Sequence[str] | None = None,
    prefix: Any = None,
    draft: Any = None,
) -> list[list[int]]:
    """The new tokens of each text, `num_return_sequences` for each prompt in turn, with what ended them.

    Args:
        grammars: the shape of each prompt's texts, as `constrained.grammar_of` gives it, in place of the options' one.
        prefix: what all prompts begin with, as `read_prefix` gives it.
        draft: a smaller model that guesses tokens.
    """
    if draft is not None and options.num_beams > 1:
        raise InputError("beams are not guessed", where="draft", mend="choose num_beams=1")
    begun = beginnings(model, prompts)
    if options.num_beams > 1:
        room = _room(model, begun, options)
        session = open_session(model, batch=len(prompts) * options.num_beams, capacity=room)
        limits = [limit_of(model, text, options) for text in begun]
        found = beam_search(session, prompts, options, begun=begun, vocab=model.config.vocab_size, limits=limits)
        return [list(text.tokens) for texts in found for text in texts]
    texts: list[list[int]] = [[] for _ in range(len(prompts) * options.num_return_sequences)]
    for step in steps(model, prompts, options, tokenizer, grammars=grammars, prefix=prefix, draft=draft):
        for row, token in zip(step.rows, step.tokens, strict=True):
            texts[row].append(int(token))
    return texts


def steps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    tokenizer: Tokenizer | None = None,
    *,
    grammars: Sequence[str] | None = None,
    prefix: Any = None,
    draft: Any = None,
    scored: bool = False,
) -> Iterator[Step]:
    """Write all texts side by side, one token a step. A text that ends leaves the batch and costs nothing more.

    A text of a given shape that runs out of tokens is closed without the model: its last steps hold it alone. Where
    tokens are guessed, texts are written one after another, and not `scored`, which gives each step its `logs`.

    Raises:
        InputError: stop strings or a shape without a tokenizer, or a shape that is none.
    """
    if options.stops and tokenizer is None:
        raise InputError("stop strings need a tokenizer", where="stop_strings", mend="pass tokenizer=")
    guide = guide_of(model, len(prompts), options, tokenizer, grammars)
    if draft is None and not options.prompt_lookup:
        return _steps(model, prompts, options, tokenizer, guide, prefix, scored=scored)
    if draft is not None and draft.config.vocab_size != model.config.vocab_size:
        what = f"a draft with {draft.config.vocab_size} tokens for a model with {model.config.vocab_size}"
        raise InputError(what, where="draft", mend="choose a draft with the same tokenizer")
    samples = options.num_return_sequences
    if options.seed is None:
        options = replace(options, seed=secrets.randbits(63))

    def written() -> Iterator[Step]:
        for number in range(len(prompts) * samples):
            own = None if guide is None else guide.alone(number)
            numbers = (number, number % samples)
            yield from _guessed(model, prompts[number // samples], numbers, options, tokenizer, own, draft)

    return written()


def guide_of(
    model: Any,
    prompts: int,
    options: GenerationOptions,
    tokenizer: Tokenizer | None,
    grammars: Sequence[str] | None = None,
) -> Guide | None:
    """What gives the texts of some prompts their shape, if they are to have one."""
    shape = grammar_of(choices=options.choices, regex=options.regex, json_schema=options.json_schema)
    each = [shape] * prompts if grammars is None and shape is not None else grammars
    if each is None:
        return None
    if tokenizer is None:
        raise InputError("a shape needs a tokenizer", where="generation", mend="pass tokenizer=")
    repeated = [grammar for grammar in each for _ in range(options.num_return_sequences)]
    return Guide(tokenizer, repeated, vocab=model.config.vocab_size, ends=options.ends)


def _steps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    tokenizer: Tokenizer | None,
    guide: Guide | None,
    prefix: Any,
    *,
    scored: bool,
) -> Iterator[Step]:
    samples = options.num_return_sequences
    begun = beginnings(model, prompts)
    repeated = [text for text in begun for _ in range(samples)]
    rows = np.repeat(np.arange(len(prompts)), samples)
    session = open_session(model, batch=len(rows), capacity=_room(model, begun, options), prefix=prefix)
    logits = session.start(prompts)
    if samples > 1:
        logits = logits[rows]
        session.select(rows)
    sampler = Sampler(options, repeated, [*range(samples)] * len(prompts), logits.shape[-1], guide)
    ends = Ends(model, repeated, options, tokenizer, guide)
    active = np.arange(len(rows))
    for step in range(options.max_new_tokens):
        tokens = sampler.pick(logits, step)
        logs = log_probabilities(logits, list(enumerate(tokens))) if scored else ()
        ended, found = ends.after(active, tokens, step, logs)
        if ended.all():
            end_session(session)
        yield from found
        if ended.all():
            return
        if ended.any():
            going = np.flatnonzero(~ended)
            active, tokens = active[going], tokens[going]
            session.select(going)
            sampler.select(going)
            if guide is not None:
                guide.select(going)
        logits = session.step(tokens)


def _guessed(
    model: Any,
    prompt: Sequence[int],
    numbers: tuple[int, int],
    options: GenerationOptions,
    tokenizer: Tokenizer | None,
    guide: Guide | None,
    draft: Any,
) -> Iterator[Step]:
    """One text, several tokens at a time; `numbers`: its own among all texts, and among those of its prompt."""
    text, vocab = list(prompt), model.config.vocab_size
    limit, count = limit_of(model, text, options), options.draft_tokens if draft is not None else options.prompt_lookup
    session = token_session(model, capacity=len(text) + limit)
    sampler = Sampler(options, [text], [numbers[1]], vocab, guide)
    guesser: Guesser = PromptLookup() if draft is None else DraftModel(draft, sampler, len(text) + limit)
    ends = Ends(model, {numbers[0]: text}, options, tokenizer, guide)
    active, step = np.array([numbers[0]]), 0
    guesses: list[int] = []
    logits = session.start([text])
    while True:
        for place in range(len(guesses) + 1):
            tokens = sampler.pick(logits[place : place + 1], step)
            ended, found = ends.after(active, tokens, step)
            if ended.all():
                session.forget(np.array([len(guesses) - place]))
                end_session(session)
            yield from found
            if ended.all():
                return
            text.append(int(tokens[0]))
            step += 1
            if place < len(guesses) and guesses[place] != tokens[0]:
                break
        session.forget(np.array([len(guesses) - place]))
        guesses = guesser.guess(text, step, min(count, limit - step - 1)) if limit - step > 1 else []
        logits = session.extend([[text[-1], *guesses]], every=True)


def _streamed(
    model: Any, prompts: list[list[int]], options: GenerationOptions, tokenizer: Tokenizer | None, draft: Any
) -> Iterator[int | list[int | None]]:
    if options.num_beams > 1:
        raise InputError("beams are known only at the end", where="stream", mend="choose num_beams=1")
    return _tokens(steps(model, prompts, options, tokenizer, draft=draft), len(prompts) * options.num_return_sequences)


def _tokens(steps: Iterator[Step], rows: int) -> Iterator[int | list[int | None]]:
    for step in steps:
        if rows == 1:
            yield int(step.tokens[0])
            continue
        current: list[int | None] = [None] * rows
        for row, token in zip(step.rows, step.tokens, strict=True):
            current[row] = int(token)
        yield current


def _prompts(input_ids: Any, attention_mask: Any) -> tuple[list[list[int]], list[list[int]]]:
    """The rows as they came, and without padding."""
    if format_of(input_ids) is None:
        lists = [input_ids] if input_ids and isinstance(input_ids[0], int | np.integer) else input_ids
        rows = [[int(token) for token in row] for row in lists]
    else:
        array = to_numpy(input_ids)
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
            found = f"{array.dtype} of shape {list(array.shape)}"
            raise InputError(f"expected whole numbers of shape [batch, time], found {found}", where="input_ids")
        rows = np.atleast_2d(array).tolist()
    if not rows:
        raise InputError("there is no prompt", where="input_ids")
    real = rows
    if attention_mask is not None:
        mask = np.atleast_2d(to_numpy(attention_mask))
        if [len(row) for row in rows] != [mask.shape[1]] * len(mask):
            raise InputError(f"shape {list(mask.shape)} is not that of input_ids", where="attention_mask")
        real = [
            [token for token, kept in zip(row, keep, strict=True) if kept] for row, keep in zip(rows, mask, strict=True)
        ]
    for index, row in enumerate(real):
        if not row:
            raise InputError(f"prompt {index} is empty", where="input_ids", mend="give at least one token")
    return rows, real


def fitting(prompt: list[int], context: int, truncation: bool) -> list[int]:
    """The prompt, if the model can read it and write at least one token; else cut on its left, or refused."""
    if len(prompt) < context:
        return prompt
    if truncation:
        return prompt[-(context - 1) :]
    raise InputError(
        f"the prompt has {len(prompt)} tokens and the model reads {context} at most, the answer included",
        where="input_ids",
        mend="shorten it, or pass truncation=True to drop its beginning",
    )


def _room(model: Any, begun: Sequence[Sequence[int]], options: GenerationOptions) -> int:
    return min(max(map(len, begun)) + options.max_new_tokens, int(model.config.max_positions))
