"""Prompted tasks whose answer is a new text: a summary, a translation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tsumugu.core.errors import InputError
from tsumugu.corpus.token_bytes import token_texts
from tsumugu.generation.generate import complete, resolve_options
from tsumugu.tasks.prompting.base import ROWS_AT_ONCE, Prompted, vote, votes_of
from tsumugu.tasks.prompting.template import Prompt
from tsumugu.tasks.usual import WRITING

GENERATION = frozenset(
    {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "seed", "num_return_sequences"}
    | {"repetition_penalty", "frequency_penalty", "presence_penalty", "no_repeat_ngram_size"}
    | {"min_new_tokens", "num_beams", "length_penalty", "early_stopping"}
)
"""Options of generation that a line of text can be asked for with."""

LANGUAGE_NAMES = {
    "en": {"en": "English", "ja": "Japanese", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian"}
    | {"zh": "Chinese", "ko": "Korean", "pt": "Portuguese", "ru": "Russian", "ro": "Romanian"},
    "ja": {"en": "英語", "ja": "日本語", "de": "ドイツ語", "fr": "フランス語", "es": "スペイン語", "it": "イタリア語"}
    | {"zh": "中国語", "ko": "韓国語", "pt": "ポルトガル語", "ru": "ロシア語", "ro": "ルーマニア語"},
}
"""What languages are called in prompts; a name that is not here stands as it is."""


class PromptedWriting(Prompted):
    """A text made of a text: `[{"…_text"}]` for one, a list of mappings for several.

    Options of a call are those of `Prompted`, and of `GenerationOptions` those that concern drawing, beams, penalties
    and lengths, and:
        votes: draw so many texts and take the one that most agree on (1: no draw).
        max_length, min_length: other names of `max_new_tokens` and `min_new_tokens`, for what is read is not counted.

    Attributes:
        key: what the result is called, `…_text`; examples call their answer so, too.
    """

    key: ClassVar[str]
    length: ClassVar[int] = 96
    options = Prompted.common | GENERATION | {"votes"}
    usual: ClassVar[Mapping[str, str | None]] = {
        **WRITING,
        "max_length": "max_new_tokens",
        "min_length": "min_new_tokens",
        "return_text": None,
        "clean_up_tokenization_spaces": None,
    }

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and isinstance(result, Mapping) else result

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        read = [self._row(row, f"row {index}") for index, row in enumerate(rows)]
        asked = {key: value for key, value in options.items() if key in GENERATION}
        asked = {"max_new_tokens": self.length} | asked
        votes = votes_of(options)
        if votes > 1:
            if asked.get("num_beams", 1) > 1:
                raise InputError("beams are not drawn", where="votes", mend="choose num_beams=1, or votes=1")
            asked = {"temperature": 0.7, "seed": 0} | asked | {"num_return_sequences": votes}
        free = asked.get("num_beams", 1) > 1 or asked.get("min_new_tokens", 0) > 0
        found = (self._until_break if free else self._lines)(self._prompts(read, options), options, **asked)
        if votes == 1 and asked.get("num_return_sequences", 1) > 1:
            return [[{f"{self.key}_text": text} for text in texts] for texts in found]
        return [{f"{self.key}_text": vote(texts)[0]} for texts in found]

    def _until_break(self, prompts: Sequence[Prompt], options: Mapping[str, Any], **asked: Any) -> list[list[str]]:
        """As `_lines`, but no grammar holds the line together: the tokens with a line break are further ends."""
        ids = [self._ids(prompt, options) for prompt in prompts]
        asked["min_new_tokens"] = max(1, asked.get("min_new_tokens", 0))
        breaks = [at for at, each in enumerate(token_texts(self.tokenizer)) if b"\n" in each]
        found: list[list[str]] = []
        for at in range(0, len(ids), ROWS_AT_ONCE):
            some = ids[at : at + ROWS_AT_ONCE]
            ends = resolve_options(self.model, some, dict(asked)).ends
            resolved = resolve_options(self.model, some, {**asked, "eos_token_id": (*ends, *breaks)})
            texts = complete(self.model, some, resolved, self.tokenizer)
            plain = [self.tokenizer.decode(text, skip_special_tokens=True).strip() for text in texts]
            lines, count = [text.partition("\n")[0] for text in plain], resolved.num_return_sequences
            found += [lines[first : first + count] for first in range(0, len(lines), count)]
        return found

    def taught(self, text: str, answer: str, *, limit: int) -> tuple[list[int], int]:
        """What a model reads that learns to answer: the prompt, the answer as one line, and what ends a text.

        Args:
            text: what is asked about; it is cut at its end where all would be more than `limit` tokens.
            answer: the right one.
            limit: tokens at most.

        Returns:
            The tokens, and at which of them the answer begins.

        Raises:
            InputError: there is no room for the text, or nothing ends one.
        """
        line, end = " ".join(answer.split("\n")).strip(), self.tokenizer.eos_token_id
        if end is None:
            raise InputError("the tokenizer has no token that ends a text", where="model.source", mend="set eos_token")
        while True:
            (prompt,) = self._prompts([{self.fields[0]: text}], self.defaults)
            ids = self._ids(prompt, self.defaults)
            whole = self._with(prompt, ids, line, self.defaults)
            if whole[: len(ids)] != ids:  # a token lies across the two, and the model will be asked without it
                whole = [*ids, *self.tokenizer.encode(f"{prompt.lead}{line}", add_special_tokens=False)]
            whole = [*whole, end]
            if len(whole) <= limit:
                return whole, len(ids)
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            kept = len(offsets) - (len(whole) - limit)
            if kept < 1:
                mend = "raise data.max_length, or pass over such rows (data.skip)"
                raise InputError(f"the prompt and the answer fill {limit} tokens", mend=mend)
            text = text[: offsets[kept - 1][1]]

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        name = f"{cls.key}_text"
        texts = [each[name] for each in ([result] if isinstance(result, Mapping) else result)]
        return {name: texts[0] if len(texts) == 1 else texts}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        found = cls.record(result)[f"{cls.key}_text"]
        yield from [found] if isinstance(found, str) else found


class PromptedSummarization(PromptedWriting):
    """A summary, `[{"summary_text"}]`; options are those of `PromptedWriting`."""

    name = "summarization"
    template_name = "summarization"
    key: ClassVar[str] = "summary"
    answer_field: ClassVar[str] = "summary_text"


class PromptedTranslation(PromptedWriting):
    """A translation, `[{"translation_text"}]`; options are those of `PromptedWriting`, and:

    src_lang, tgt_lang: the languages, as codes ("en", "ja") or by name; also part of the task's name.
    """

    name = "translation"
    template_name = "translation"
    key: ClassVar[str] = "translation"
    answer_field: ClassVar[str] = "translation_text"
    options = PromptedWriting.options | {"src_lang", "tgt_lang"}

    def _values(self, options: Mapping[str, Any]) -> dict[str, Any]:
        names = LANGUAGE_NAMES[self._language(options)]
        given = {key: options.get(key) for key in ("src_lang", "tgt_lang")}
        if not all(isinstance(each, str) for each in given.values()):
            mend = "name the task translation_en_to_ja, or give src_lang and tgt_lang"
            raise InputError("the languages are not named", where="translation", mend=mend)
        return {key: names.get(str(code), code) for key, code in given.items()}
