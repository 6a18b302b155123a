"""The tokenizer: text to token ids and back, over the `tokenizers` library.

Argument names and results are the usual ones of the field. The backend is shared and never changed by a call,
so one tokenizer may serve many threads. Neither torch nor numpy is loaded until tensors are asked for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tokenizers

from tsumugu.core.errors import InputError
from tsumugu.text.chat import ChatTemplates, RenderedChat
from tsumugu.text.encoding import Encoding, Limits, as_tensor, legal_side, pad, plan_limits, truncated
from tsumugu.text.inputs import Inputs, explain, read_ids, read_inputs
from tsumugu.text.special import SpecialTokens
from tsumugu.text.stream import StreamDecoder, clean_up

if TYPE_CHECKING:
    from tsumugu.core.tensors import TensorFormat
    from tsumugu.text.japanese_bert import Japanese

_NOWHERE = "\U0010ffff"


class Tokenizer(SpecialTokens):
    """Text to token ids and back.

    Args:
        backend: the `tokenizers.Tokenizer` that does the work; it is kept, and its own truncation and padding are
            switched off.
        special_tokens: role ("bos", "eos", "unk", "sep", "pad", "cls", "mask") to token.
        additional_special_tokens: further tokens that `skip_special_tokens` leaves out.
        model_max_length: how many tokens the model takes, or None when unknown.
        padding_side: "right" or "left".
        truncation_side: where too long texts are cut.
        chat_template: a Jinja template, or several by name.
        token_type_ids: whether the model tells the texts of a pair apart by type ids.
        clean_up_tokenization_spaces: whether `decode` removes the spaces before punctuation that word pieces leave.
        config: further entries of tokenizer_config.json, kept for `save`.
        japanese: divides texts in the backend's place, by MeCab.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        additional_special_tokens: Iterable[str] = (),
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        chat_template: str | Mapping[str, str] | None = None,
        token_type_ids: bool = False,
        clean_up_tokenization_spaces: bool = False,
        config: Mapping[str, Any] | None = None,
        japanese: Japanese | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        super().__init__(backend, special_tokens or {}, additional_special_tokens)
        self.model_max_length = model_max_length
        self.padding_side: str = legal_side(padding_side, where="padding_side")
        self.truncation_side: str = legal_side(truncation_side, where="truncation_side")
        self.token_type_ids = token_type_ids
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.config: dict[str, Any] = dict(config or {})
        self.chat_template = chat_template
        type_id = self.config.get("pad_token_type_id", 0)
        self._pad_type_id = type_id if isinstance(type_id, int) else 0
        self.japanese = japanese
        self._encoders: dict[bool, tuple[int, Any]] = {}
        self._raw: dict[tuple[bool, int], tokenizers.Tokenizer] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, path: str | Path) -> Self:
        """Read a checkpoint folder (or one tokenizer file of it).

        Raises:
            CheckpointError: there is no tokenizer in it, or a file is broken.
        """
        from tsumugu.text.folder import read_folder

        return cls(**read_folder(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """Build from the key-values of a GGUF file; ids are those of llama.cpp.

        Raises:
            CheckpointError: the metadata hold no tokenizer, an unknown one, or contradict themselves.
        """
        from tsumugu.text.gguf_read import read_gguf

        return cls(**read_gguf(metadata))

    def save(self, folder: str | Path) -> list[Path]:
        """Write the files that other libraries load to the same ids; give the paths written."""
        from tsumugu.text.folder import write_folder

        return write_folder(self, Path(folder))

    # --- text to ids

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | TensorFormat | None = None,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool = True,
        return_overflowing_tokens: bool = False,
        return_length: bool = False,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        is_split_into_words: bool = False,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
    ) -> Encoding:
        """Encode one text, one pair, or a batch of either.

        Args:
            text: a str; a list of str; a list of (first, second) pairs; with `is_split_into_words` a list of words
                or a list of such lists.
            text_pair: the second texts, in the form of `text`.
            padding: False, True or "longest", "max_length".
            truncation: False, True or "longest_first", "only_first", "only_second". Left out, texts are cut if
                `max_length` is given without padding.
            max_length: tokens per row, special tokens included; left out, the model's.
            return_tensors: "pt", "tf", "jax", "np"; None for lists (of one text: without the batch dimension).
            return_overflowing_tokens: what truncation cuts off becomes further rows; the key
                overflow_to_sample_mapping says of which text.
            split_special_tokens: take special tokens that stand in the text for plain text.
            stride: how many tokens an overflowing row repeats.

        Returns:
            input_ids, attention_mask and what else is asked for, each `[batch, time]`; offset_mapping
            `[batch, time, 2]` in characters of the original text.

        Raises:
            InputError: what was handed in is no text (the index is named) or is not valid Unicode (the position is),
                or the arguments contradict each other.
        """
        inputs = read_inputs(text, text_pair, split=is_split_into_words)
        limits = plan_limits(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            multiple_of=pad_to_multiple_of,
            padding_side=padding_side or self.padding_side,
            truncation_side=self.truncation_side,
            model_max_length=self.model_max_length,
        )
        backend = self._encoder(plain=split_special_tokens)

        def encodings() -> list[tokenizers.Encoding]:
            found = self._encode_rows(backend, inputs, limits, add_special_tokens=add_special_tokens)
            if return_overflowing_tokens:
                origin[:] = [i for i, row in enumerate(found) for _ in range(1 + len(row.overflowing))]
                found = [each for row in found for each in (row, *row.overflowing)]
            return self._padded(found, limits)

        origin = list(range(len(inputs.texts)))
        more = return_offsets_mapping or return_special_tokens_mask or return_overflowing_tokens or stride
        quick = None
        if self.japanese is not None and not more:
            try:
                quick = backend.quickly(inputs.texts, inputs.split, limits, add_special_tokens)
            except TypeError:
                raise explain(inputs) from None
        rows: list[Any] = encodings() if quick is None else self._padded(quick, limits)
        data: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
        if self.token_type_ids if return_token_type_ids is None else return_token_type_ids:
            data["token_type_ids"] = [row.type_ids for row in rows]
        if return_attention_mask:
            data["attention_mask"] = [row.attention_mask for row in rows]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if return_offsets_mapping:
            data["offset_mapping"] = [row.offsets for row in rows]
        if return_length:
            data["length"] = [len(row.ids) for row in rows]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = origin
        if return_tensors is not None:
            data = {key: as_tensor(key, value, return_tensors) for key, value in data.items()}
        elif not inputs.batched and not return_overflowing_tokens:
            data = {key: value[0] for key, value in data.items()}
        return Encoding(data, rows if quick is None else encodings)

    def encode(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        *,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        split_special_tokens: bool = False,
    ) -> list[int]:
        """The token ids of one text or pair. Quicker than a call, because offsets are left out."""
        inputs = read_inputs(text, text_pair, split=False)
        if inputs.batched:
            raise InputError("encode takes one text or pair", where="text", mend="call the tokenizer for several")
        if truncation or max_length is not None:
            encoded = self(
                text,
                text_pair,
                add_special_tokens=add_special_tokens,
                truncation=truncation,
                max_length=max_length,
                split_special_tokens=split_special_tokens,
            )
            return list(encoded.input_ids)
        backend = self._encoder(plain=split_special_tokens)
        try:
            return list(backend.encode_batch_fast(inputs.texts, False, add_special_tokens)[0].ids)
        except TypeError:
            raise explain(inputs) from None

    def tokenize(self, text: str, text_pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of one text as the vocabulary spells them."""
        return self(text, text_pair, add_special_tokens=add_special_tokens).tokens()

    def _encode_rows(
        self, backend: tokenizers.Tokenizer, inputs: Inputs, limits: Limits, *, add_special_tokens: bool
    ) -> list[tokenizers.Encoding]:
        """One encoding per text or pair, truncated but not padded."""
        try:
            rows: list[tokenizers.Encoding] = backend.encode_batch(inputs.texts, inputs.split, add_special_tokens)
        except TypeError:
            raise explain(inputs) from None
        limit = len(max(rows, key=len, default=())) if limits.max_length is None else limits.max_length
        long = [index for index, row in enumerate(rows) if len(row) > limit]
        if not long:
            return rows
        # What is cut gets its special tokens after that; offsets must not be trimmed before and after.
        raw = self._untrimming(backend)
        texts = [inputs.texts[index] for index in long]
        seconds: list[Any] = [None] * len(long)
        if inputs.paired:
            nothing: Any = [] if inputs.split else ""
            seconds = raw.encode_batch([(nothing, each[1]) for each in texts], inputs.split, False)
            texts = [each[0] for each in texts]
        firsts = raw.encode_batch(texts, inputs.split, False)
        for index, first, second in zip(long, firsts, seconds, strict=True):
            rows[index] = truncated(backend, first, second, limits, add_special_tokens=add_special_tokens)
        return rows

    def _padded(self, rows: list[Any], limits: Limits) -> list[Any]:
        if limits.pad_to is not None:
            pad_id, pad_token = self._padding()
            pad(rows, limits, pad_id=pad_id, pad_token=pad_token, type_id=self._pad_type_id)
        return rows

    def _padding(self) -> tuple[int, str]:
        token, token_id = self.pad_token, self.pad_token_id
        if token is None or token_id is None:
            raise InputError(
                "this tokenizer has no padding token",
                where="padding",
                mend="set one first: tokenizer.pad_token = tokenizer.eos_token",
            )
        return token_id, token

    def _encoder(self, *, plain: bool) -> Any:
        """What encodes texts; if `plain`, special tokens in a text are plain text. Built when first needed."""
        if self.japanese is None and not plain:
            return self.backend
        added = len(self.backend.get_added_tokens_decoder())
        with self._lock:
            known = self._encoders.get(plain)
            if known is not None and known[0] == added:
                return known[1]
            if self.japanese is None:
                encoder: Any = _without_special_tokens(self.backend)
            else:
                special = frozenset(self.all_special_tokens)
                encoder = self.japanese.backend(self.backend, self.unk_token or "", special, plain=plain)
            self._encoders[plain] = (added, encoder)
            return encoder

    def _untrimming(self, backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        """One that leaves spaces in offsets; `backend` itself unless its last step takes them out."""
        last = backend.post_processor
        if last is None or b'"trim_offsets":true' not in last.__getstate__():
            return backend
        key = (backend is self.backend, len(backend.get_added_tokens_decoder()))
        with self._lock:
            if key not in self._raw:
                raw = tokenizers.Tokenizer.from_str(backend.to_str())
                raw.post_processor = None
                raw.encode_special_tokens = backend.encode_special_tokens
                self._raw[key] = raw
            return self._raw[key]

    # --- ids to text

    def decode(
        self,
        ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of token ids (a list, or a tensor of any format of shape `[time]`; or one id).

        Ids that the vocabulary does not have are left out. Bytes that are no UTF-8 become U+FFFD.
        """
        text: str = self.backend.decode(read_ids(ids), skip_special_tokens=skip_special_tokens)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return clean_up(text) if clean and self._cleans else text

    def batch_decode(
        self,
        batch: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The texts of several rows of ids, `[batch, time]`."""
        rows = batch.tolist() if hasattr(batch, "tolist") else batch
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in rows]

    def stream(self, skip_special_tokens: bool = False) -> StreamDecoder:
        """A decoder that takes ids one by one and gives out text as soon as it is final."""
        clean = self.clean_up_tokenization_spaces and self._cleans
        return StreamDecoder(self.backend, skip_special_tokens=skip_special_tokens, clean=clean)

    @property
    def _cleans(self) -> bool:
        """Cleaning was made for word pieces; of byte-pair tokens it would remove real spaces."""
        return not isinstance(self.backend.model, tokenizers.models.BPE)

    # --- chat

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The chat template, or several by name; None when the checkpoint brought none."""
        return self._chat.source

    @chat_template.setter
    def chat_template(self, template: str | Mapping[str, str] | None) -> None:
        self._chat = ChatTemplates(template)

    def render_chat(self, messages: Any, **options: Any) -> RenderedChat:
        """One conversation as its template writes it, and where generation blocks wrote; see `ChatTemplates.render`."""
        (found,) = self._chat.render(messages, special_tokens=self.special_tokens_map, **options).chats
        return found

    def apply_chat_template(
        self,
        messages: Any,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: str | TensorFormat | None = None,
        tools: Sequence[Any] | None = None,
        *,
        chat_template: str | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        **variables: Any,
    ) -> Any:
        """Write a conversation (or a list of them) as the text the model was trained on.

        Args:
            messages: dicts with "role" and "content"; content is text or a list of text parts.
            add_generation_prompt: end with the words that open the assistant's turn.
            tokenize: give token ids; otherwise the text.
            tools: JSON schemas of functions.
            chat_template: the name of one of several templates, or a template; left out, the checkpoint's own.
            continue_final_message: leave the last message open, so that the model goes on with it.
            return_dict: give an `Encoding` instead of the ids alone.
            return_assistant_tokens_mask: with `return_dict`, add assistant_masks: 1 where a generation block of the
                template wrote the token.
            variables: further variables of the template.

        Raises:
            InputError: a message is malformed, the template refuses the conversation, breaks, or runs too long.
        """
        rendered = self._chat.render(
            messages,
            special_tokens=self.special_tokens_map,
            template=chat_template,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        texts = [each.text for each in rendered.chats]
        if not tokenize:
            return texts if rendered.batched else texts[0]
        encoded = self(
            texts if rendered.batched else texts[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        if return_assistant_tokens_mask:
            masks = [
                each.mask(row.offsets, row.special_tokens_mask)
                for each, row in zip(rendered.chats, encoded.encodings, strict=True)
            ]
            encoded["assistant_masks"] = (
                as_tensor("assistant_masks", masks, return_tensors)
                if return_tensors is not None
                else (masks if rendered.batched else masks[0])
            )
        return encoded if return_dict else encoded["input_ids"]


def _without_special_tokens(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    state = json.loads(backend.to_str())
    if state["model"]["type"] == "Unigram":
        # Its pieces match any text that is spelt like them, special or not: respell the special ones.
        pieces, added = state["model"]["vocab"], state["added_tokens"]
        inside = [each for each in added if each["special"] and each["id"] < len(pieces)]
        for each in inside:
            pieces[each["id"]][0] = f"{_NOWHERE}{each['content']}"
        state["added_tokens"] = [each for each in added if each not in inside]
    plain = tokenizers.Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    return plain
