"""What prompted tasks share: examples, prompts, a prefix that is read once, and answers that are scored or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.engines.session import Scorer, open_scorer, read_prefix, weights_of
from tsumugu.generation.constrained import grammar_of, quoted
from tsumugu.generation.generate import resolve_options, steps
from tsumugu.tasks.base import Task
from tsumugu.tasks.prompting.template import LANGUAGES, Prompt, PromptTemplate
from tsumugu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tsumugu.engines.onnx_model import OnnxModel
    from tsumugu.models.base import Model

ROWS_AT_ONCE = 16
"""Texts that are written side by side."""
ROOM = 256
"""Tokens that a prompt which is cut leaves for its answer; a quarter of what the model reads where that is less."""
CHOOSE = ("first", "similar", "random")
CONTENT_FREE = ("", "N/A", "[MASK]")
"""Texts that say nothing. Source: Zhao et al. 2021, section 5."""

LINE = "answer: /[^\\s][^\\n]*/"
"""A line of any text."""

Example = Mapping[str, Any]


@dataclass
class Written:
    """What a model wrote.

    Attributes:
        text: without special tokens and the white space around it.
        tokens: all of them.
        logs: the log probability that the model gave each token, as far as it was asked.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logs: list[float] = field(default_factory=list)


class Prompted(Task):
    """A task that a decoder solves because it is asked to.

    A model that was tuned for it says in config.json (`task_specific_params`) what it was asked with.

    Options of a call, beside the task's own:
        examples: rows with their answers that stand in the prompt: mappings, or a file of labelled data.
        shots: how many of them; all when left out.
        choose: `first`; `random`, the same for all rows; or `similar`: those most like the row, by an encoder, the
            nearest last.
        seed: of that chance (0).
        embedder: which encoder (minilm).
        language: of the prompt, en or ja.
        template: a template, its file, or a folder of templates, in place of the package's.
        chat: ask in the model's chat format; False.
        truncation: cut the end of a row's longest text where the prompt would be too long for the model (False).

    Attributes:
        template_name: what the task's template is called.
        fields: what of a row the template needs; the first is what examples are compared by.
        answer_field: what examples call their answer.
    """

    template_name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]] = ("text",)
    answer_field: ClassVar[str] = "label"
    heads: ClassVar[tuple[str, ...]] = ("causal-lm",)
    head: ClassVar[str | None] = "causal-lm"
    loads: ClassVar[str | None] = "causal-lm"
    engines: ClassVar[tuple[str, ...]] = ("torch", "onnx", "native")
    sorts: ClassVar[bool] = True
    common: ClassVar[frozenset[str]] = frozenset(
        {"examples", "shots", "choose", "seed", "embedder", "language", "template", "chat", "truncation"}
    )

    def __init__(self, model: Model | OnnxModel, tokenizer: Tokenizer, **options: Any) -> None:
        options.setdefault("batch_size", 64)
        tuned = (model.usage.get("task_specific_params") or {}).get(self.name)
        known = tuned.items() if isinstance(tuned, Mapping) else ()
        super().__init__(model, tokenizer, **{key: each for key, each in known if key in self.options} | options)
        self._scorer: tuple[Any, Scorer] | None = None
        self._prefix: tuple[Any, Any] | None = None
        self._vectors: tuple[Any, Any] | None = None
        self._given: tuple[str, list[dict[str, Any]]] | None = None

    @property
    def window(self) -> int:
        return self.batch_size or ROWS_AT_ONCE

    def _row(self, given: Any, where: str) -> dict[str, str]:
        """An input as the texts that its fields hold."""
        row = {self.fields[0]: given} if isinstance(given, str) else given
        if not isinstance(row, Mapping) or not all(isinstance(row.get(name), str) for name in self.fields):
            wanted = " and ".join(self.fields)
            raise InputError(f"expected {wanted} as text", where=where, mend=f"give a mapping with {wanted}")
        return dict(row)

    def _language(self, options: Mapping[str, Any]) -> str:
        """The language of the prompt."""
        language = str(options.get("language", "en"))
        if language not in LANGUAGES:
            mend = did_you_mean(language, LANGUAGES)
            raise InputError(f"there are no templates in {language!r}", where="language", mend=mend)
        return language

    def _answer(self, example: Example, options: Mapping[str, Any]) -> str:
        """The answer of an example as the prompt writes it."""
        return str(example[self.answer_field])

    def _values(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the template gets beside the items."""
        return {}

    def _prompts(self, rows: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> list[Prompt]:
        """The prompt of each row."""
        template = PromptTemplate.find(
            self.template_name, language=self._language(options), given=options.get("template")
        )
        values = self._values(options)
        limit = self.longest - min(ROOM, self.longest // 4)
        prompts = []
        for row, shown in zip(rows, self._shown(rows, options), strict=True):
            prompt = template.render([*shown, row], **values)
            while options.get("truncation") and (over := len(self._ids(prompt, options)) - limit) > 0:
                row = self._shorter(row, over)
                prompt = template.render([*shown, row], **values)
            prompts.append(prompt)
        return prompts

    def _shorter(self, row: Mapping[str, Any], tokens: int) -> dict[str, Any]:
        """A row whose longest text has lost so many tokens at its end."""
        name = max((each for each in row if isinstance(row[each], str)), key=lambda each: len(row[each]))
        offsets = self.tokenizer(row[name], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) <= tokens:
            said = f"the prompt is too long for a model that reads {self.longest} tokens"
            raise InputError(said, where="prompt", mend="give fewer or shorter examples")
        return {**row, name: row[name][: offsets[len(offsets) - tokens - 1][1]]}

    def _shown(self, rows: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        """For each row the examples that stand before it."""
        given = self._examples(options.get("examples"))
        examples = []
        for index, example in enumerate(given):
            where = f"examples[{index}]"
            row = self._row(example, where)
            if self.answer_field not in row:
                raise InputError(f"there is no {self.answer_field}", where=where)
            examples.append({**row, "answer": self._answer(row, options)})
        shots = options.get("shots")
        count = len(examples) if shots is None else int(shots)
        if count < 0 or count > len(examples):
            raise InputError(f"{count} of {len(examples)} examples cannot be shown", where="shots")
        how = options.get("choose", "first")
        if how not in CHOOSE:
            raise InputError(f"examples are not chosen by {how!r}", where="choose", mend=did_you_mean(str(how), CHOOSE))
        if how == "random":
            order = np.random.default_rng(int(options.get("seed") or 0)).permutation(len(examples))
            examples = [examples[place] for place in order]
        if how != "similar" or count == len(examples) == 0:
            return [examples[:count]] * len(rows)
        nearest = self._nearest(examples, rows, count, options.get("embedder", "minilm"))
        return [[examples[place] for place in places] for places in nearest]

    def _examples(self, given: Any) -> list[Example]:
        """Examples as they were handed in, or out of a file, which is read once."""
        if not isinstance(given, str | Path):
            return list(given or ())
        if self._given is None or self._given[0] != str(given):
            from tsumugu.tasks.prompting.examples import read_examples

            self._given = (str(given), read_examples(self, given))
        return list(self._given[1])

    def _nearest(
        self, examples: Sequence[Example], rows: Sequence[Mapping[str, str]], count: int, embedder: str
    ) -> list[list[int]]:
        """For each row the places of the examples most like it, the nearest last.

        Source: Liu et al. 2022, What Makes Good In-Context Examples for GPT-3?, section 3.
        """
        from tsumugu.tasks.sentence_embedding import SentenceEmbedding

        key = (embedder, tuple(str(each[self.fields[0]]) for each in examples))
        if self._vectors is None or self._vectors[0] != key:
            encoder = SentenceEmbedding.load(embedder)
            self._vectors = (key, (encoder, encoder.encode(key[1], normalize=True)))
        encoder, known = self._vectors[1]
        found = encoder.encode([row[self.fields[0]] for row in rows], normalize=True) @ known.T
        return [np.argsort(near, kind="stable")[len(near) - count :].tolist() for near in found]

    def _ids(self, prompt: Prompt, options: Mapping[str, Any]) -> list[int]:
        """The tokens of a prompt."""
        if not options.get("chat"):
            return self.tokenizer.encode(prompt.context)
        messages = [{"role": "user", "content": prompt.context}]
        return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def _with(self, prompt: Prompt, ids: list[int], answer: str, options: Mapping[str, Any]) -> list[int]:
        """The tokens of a prompt and an answer; without chat a token may lie across the two."""
        if options.get("chat"):
            return ids + self.tokenizer.encode(answer, add_special_tokens=False)
        return self.tokenizer.encode(f"{prompt.context}{prompt.lead}{answer}")

    def _likelihoods(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[str]],
        options: Mapping[str, Any],
        *,
        beyond: Iterable[Prompt] = (),
    ) -> list[list[list[float]]]:
        """The log probability of each token of each answer.

        What all prompts, and those `beyond`, begin with is read once and kept for the next call.
        """
        stems, proposed = [], []
        for prompt, mine in zip(prompts, answers, strict=True):
            ids = self._ids(prompt, options)
            wholes = [self._with(prompt, ids, answer, options) for answer in mine]
            cut = min(len(common([ids, whole])) for whole in wholes)
            cut = max(1, min(cut, *(len(whole) - 1 for whole in wholes)))
            stems.append(ids[:cut])
            proposed.append([whole[cut:] for whole in wholes])
        shared = common([*stems, *(self._ids(each, options) for each in beyond)])
        shared = shared[: min(len(stem) for stem in stems) - 1]
        key = shared, weights_of(self.model)
        if self._scorer is None or self._scorer[0] != key:
            self._scorer = (key, open_scorer(self.model, prefix=shared))
        return self._scorer[1].score([stem[len(shared) :] for stem in stems], proposed)

    def _write(
        self,
        prompts: Sequence[Prompt],
        options: Mapping[str, Any],
        *,
        answers: Sequence[str] | None = None,
        scored: bool = False,
        **generation: Any,
    ) -> list[list[Written]]:
        """What the model writes for each prompt: one line, `num_return_sequences` texts each.

        Args:
            answers: for each prompt rules of a grammar, one of them called `answer`, that what is written must follow;
                any text that is not empty when left out.
            scored: keep the log probability of each token.
        """
        ids = [self._ids(prompt, options) for prompt in prompts]
        shared = common(ids)[: min(map(len, ids)) - 1]
        key = shared, weights_of(self.model)
        if self._prefix is None or self._prefix[0] != key:
            self._prefix = (key, read_prefix(self.model, shared))
        leads = ["" if options.get("chat") else prompt.lead for prompt in prompts]
        rules = [LINE] * len(prompts) if answers is None else answers
        grammars = [_line(answer, lead) for answer, lead in zip(rules, leads, strict=True)]
        found: list[list[Written]] = []
        for start in range(0, len(ids), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            asked = resolve_options(self.model, ids[some], dict(generation))
            count = asked.num_return_sequences
            texts = [Written() for _ in ids[some] for _ in range(count)]
            for step in steps(
                self.model,
                ids[some],
                asked,
                self.tokenizer,
                grammars=grammars[some],
                prefix=self._prefix[1],
                scored=scored,
            ):
                for place, row in enumerate(step.rows):
                    texts[row].tokens.append(int(step.tokens[place]))
                    texts[row].logs += step.logs[place : place + 1]
            for text in texts:
                text.text = self.tokenizer.decode(text.tokens, skip_special_tokens=True).strip()
            found += [texts[at : at + count] for at in range(0, len(texts), count)]
        return found

    def _lines(self, prompts: Sequence[Prompt], options: Mapping[str, Any], **how: Any) -> list[list[str]]:
        """The texts of `_write`."""
        return [[each.text for each in mine] for mine in self._write(prompts, options, **how)]

    def _log_likelihoods(
        self, prompts: Sequence[Prompt], written: Sequence[Sequence[Written]], options: Mapping[str, Any]
    ) -> list[list[float]]:
        """The log probability of each text that was written, and scored, as the answer.

        It is known already where its tokens are those that were written; else all of the row's are read once more.
        """
        found: list[list[float]] = []
        again = []
        for row, (prompt, mine) in enumerate(zip(prompts, written, strict=True)):
            ids, sums = self._ids(prompt, options), []
            for each in mine:
                whole = self._with(prompt, ids, each.text or " ", options)
                tokens, count = whole[len(ids) :], len(whole) - len(ids)
                if whole[: len(ids)] == ids and tokens and each.tokens[:count] == tokens and len(each.logs) >= count:
                    sums.append(sum(each.logs[:count]))
            found.append(sums)
            if len(sums) < len(mine):
                again.append(row)
        if again:
            texts = [[each.text or " " for each in written[row]] for row in again]
            logs = self._likelihoods([prompts[row] for row in again], texts, options)
            for row, scores in zip(again, logs, strict=True):
                found[row] = [sum(each) for each in scores]
        return found


def common(rows: Sequence[list[int]]) -> list[int]:
    """What all rows begin with."""
    first, last = min(rows), max(rows)
    count = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:count]


def _line(answer: str, lead: str) -> str:
    """The grammar of a line that holds an answer after the white space that it begins with."""
    start = f"{quoted(lead)} answer" if lead else "answer"
    found = grammar_of(lark=f'start: {start} "\\n"?\n{answer}')
    assert found is not None
    return found


def votes_of(options: Mapping[str, Any]) -> int:
    """How many answers are drawn.

    Raises:
        InputError: fewer than one.
    """
    count = int(options.get("votes", 1))
    if count < 1:
        raise InputError(f"{count} answers are none", where="votes", mend="at least 1")
    return count


def vote(texts: Sequence[str]) -> tuple[str, float]:
    """The text that most agree on, white space and case aside, and their share; of equals the first.

    Source: Wang et al. 2023, Self-Consistency Improves Chain of Thought Reasoning, section 2.
    """
    counts = Counter(" ".join(text.split()).casefold() for text in texts)
    key, count = counts.most_common(1)[0]
    return next(text for text in texts if " ".join(text.split()).casefold() == key), count / len(texts)
