"""Special tokens and the vocabulary: the part of a tokenizer that is a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, overload

import tokenizers

from tsumugu.core.errors import InputError, did_you_mean

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class _Token:
    """``tokenizer.bos_token`` and its kin: the token of a role, or None. Setting one adds it where it is new."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name.removesuffix("_token")

    @overload
    def __get__(self, instance: None, owner: type) -> _Token: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> str | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> _Token | str | None:
        return self if instance is None else instance._roles.get(self.role)

    def __set__(self, instance: SpecialTokens, value: str | None) -> None:
        instance._set_role(self.role, value)


class _TokenId:
    """``tokenizer.bos_token_id`` and its kin: the id of a role's token, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name.removesuffix("_token_id")

    @overload
    def __get__(self, instance: None, owner: type) -> _TokenId: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> int | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> _TokenId | int | None:
        return self if instance is None else instance._role_ids.get(self.role)

    def __set__(self, instance: SpecialTokens, value: int | None) -> None:
        token = None if value is None else instance.backend.id_to_token(value)
        if value is not None and token is None:
            raise InputError(f"the vocabulary has no id {value}", where=f"{self.role}_token_id")
        instance._set_role(self.role, token)


class SpecialTokens:
    """A vocabulary, the tokens that play a role in it, and the others that are special.

    Tokens that are named but missing from the vocabulary are added to it, at its end.
    """

    bos_token, eos_token, unk_token, sep_token = _Token(), _Token(), _Token(), _Token()
    pad_token, cls_token, mask_token = _Token(), _Token(), _Token()
    bos_token_id, eos_token_id, unk_token_id, sep_token_id = _TokenId(), _TokenId(), _TokenId(), _TokenId()
    pad_token_id, cls_token_id, mask_token_id = _TokenId(), _TokenId(), _TokenId()

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], additional: Iterable[str]
    ) -> None:
        self.backend = backend
        self._roles: dict[str, str] = {}
        self._role_ids: dict[str, int] = {}
        self.additional_special_tokens = list(dict.fromkeys(additional))
        for role, token in special_tokens.items():
            if role not in ROLES:
                raise InputError(f"{role!r} is not a role", where="special_tokens", mend=did_you_mean(role, ROLES))
            self._set_role(role, token)
        self._add(self.additional_special_tokens)

    def _set_role(self, role: str, token: str | None) -> None:
        if token is None:
            self._roles.pop(role, None)
            self._role_ids.pop(role, None)
            return
        self._add([token])
        self._roles[role] = token
        index = self.backend.token_to_id(token)
        assert index is not None
        self._role_ids[role] = index

    def _add(self, tokens: Iterable[str]) -> None:
        """Make tokens special that are not yet. Words that are added tokens already keep how they match."""
        added = {each.content: each for each in self.backend.get_added_tokens_decoder().values()}
        missing = [each for each in tokens if each not in added or not added[each].special]
        if missing:
            self.backend.add_special_tokens([tokenizers.AddedToken(each, special=True) for each in missing])

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """``{"bos_token": …}`` for every role that has a token."""
        return {f"{role}_token": self._roles[role] for role in ROLES if role in self._roles}

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens with a role, then the additional ones, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        found = map(self.backend.token_to_id, self.all_special_tokens)
        return [each for each in found if each is not None]

    def add_tokens(self, tokens: str | Iterable[str], special_tokens: bool = False) -> int:
        """Add tokens that the vocabulary lacks; give how many were new. The model's embeddings must grow to fit."""
        tokens = [tokens] if isinstance(tokens, str) else list(tokens)
        if special_tokens:
            return int(self.backend.add_special_tokens(tokens))
        return int(self.backend.add_tokens(tokens))

    def add_special_tokens(self, tokens: Mapping[str, Any]) -> int:
        """Add tokens by role: ``{"pad_token": "[PAD]", "additional_special_tokens": ["<a>"]}``; count the new ones."""
        before = len(self)
        for key, value in tokens.items():
            if key in ("additional_special_tokens", "extra_special_tokens"):
                self._add(value)
                self.additional_special_tokens = list(dict.fromkeys([*self.additional_special_tokens, *value]))
            elif key.removesuffix("_token") in ROLES:
                self._set_role(key.removesuffix("_token"), value)
            else:
                known = [f"{role}_token" for role in ROLES] + ["additional_special_tokens"]
                raise InputError(f"{key!r} is not a role", where="add_special_tokens", mend=did_you_mean(key, known))
        return len(self) - before

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens one text (or a pair) is given."""
        return int(self.backend.num_special_tokens_to_add(pair))

    @property
    def vocab_size(self) -> int:
        """Tokens of the base vocabulary, without those added later; `len` counts these too."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self.backend.token_to_id(token) is not None

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The ids of tokens; unknown ones get the unknown token's id, or None when there is no such token."""
        if isinstance(tokens, str):
            found: int | None = self.backend.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(each) for each in tokens]

    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> Any:
        """The tokens of ids as the vocabulary spells them; None for an id that it does not have."""
        if isinstance(ids, int):
            token: str | None = self.backend.id_to_token(ids) if 0 <= ids < 1 << 32 else None
            return token
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.convert_ids_to_tokens(int(each)) for each in ids if int(each) not in skipped]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text of tokens as the vocabulary spells them."""
        tokens = list(tokens)
        return str(self.backend.decoder.decode(tokens)) if self.backend.decoder is not None else " ".join(tokens)
