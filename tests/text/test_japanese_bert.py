"""Japanese BERT's tokenizers: the ids of the reference library, and for every token its place in the original text."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import BertJapaneseTokenizer

from tsumugu.core.errors import CheckpointError, InputError, MissingExtraError
from tsumugu.corpus.prepare import prepare
from tsumugu.text.gguf import to_gguf_metadata
from tsumugu.text.japanese import Mecab
from tsumugu.text.tokenizer import Tokenizer

TEXTS = [
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "メロスは激怒した。必ず、かの邪智暴虐の王を除かなければならぬと決意した。",
    "平成元年に東京都でガラスのコップを２個、１０００円で買いました。",
    "ラーメンとコーヒーを注文すると、Aさんは「ありがとうございます！」と言った。",
    "Python 3.11 and BERT: it's a café, naïve résumé.",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocabulary() -> list[str]:
    """Words, their characters, and pieces of them; many words are left out, so that they are cut or unknown."""
    mecab = Mecab("unidic-lite")
    words = [word for text in TEXTS for word in mecab.surfaces(unicodedata.normalize("NFKC", text))]
    letters = sorted({each for word in words for each in word.lower() + word} - set("無王注é"))
    return list(
        dict.fromkeys(
            [*SPECIAL, *words[::2], *letters, *(f"##{each}" for each in letters), "キ", "ロ", "キロ", "##ロ", "##った"]
        )
    )


Make = Callable[..., tuple[Tokenizer, Any]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A folder with a configuration, loaded by us and by the reference library."""
    found: dict[str, tuple[Tokenizer, Any]] = {}

    def load(**config: Any) -> tuple[Tokenizer, Any]:
        key = json.dumps(config, sort_keys=True)
        if key not in found:
            folder = tmp_path_factory.mktemp("japanese")
            write(folder, **config)
            found[key] = Tokenizer.from_folder(folder), BertJapaneseTokenizer.from_pretrained(folder)
        return found[key]

    return load


def write(folder: Path, **config: Any) -> Path:
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", "utf-8")
    named = {"tokenizer_class": "BertJapaneseTokenizer", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), "utf-8")
    return folder


TOHOKU = {
    "word_tokenizer_type": "mecab",
    "subword_tokenizer_type": "wordpiece",
    "mecab_kwargs": {"mecab_dic": "unidic_lite"},
}
CONFIGS = {
    "v1": {**TOHOKU, "do_lower_case": False, "mecab_kwargs": {"mecab_dic": "ipadic"}},
    "v2": {**TOHOKU, "do_lower_case": False},
    "v2-character": {**TOHOKU, "subword_tokenizer_type": "character", "do_lower_case": False},
    "lower": {**TOHOKU, "do_lower_case": True, "never_split": ["Python", "A"]},
    "as-it-is": {**TOHOKU, "mecab_kwargs": {"mecab_dic": "unidic_lite", "normalize_text": False}},
    "as-it-is-character": {
        **TOHOKU,
        "subword_tokenizer_type": "character",
        "mecab_kwargs": {"mecab_dic": "ipadic", "normalize_text": False},
    },
    "words": {**TOHOKU, "do_subword_tokenize": False},
    "basic": {"word_tokenizer_type": "basic", "do_lower_case": False, "never_split": ["it's"]},
    "basic-lower": {"word_tokenizer_type": "basic", "do_lower_case": True, "never_split": ["it's", "Python"]},
    "basic-character": {"word_tokenizer_type": "basic", "subword_tokenizer_type": "character", "do_lower_case": True},
    "no-words": {"do_word_tokenize": False},
    "no-words-character": {"do_word_tokenize": False, "subword_tokenizer_type": "character"},
}
# Half and full width, marks that compose, characters that NFKC makes longer, emoji, other scripts, white space.
ODD = [
    *"ﾊﾟｶﾞｳﾞﾞﾟＡａ０１％　㍻㌔㌢½①㈱Ⅳﬁ～〜ーｰ゛゜\u3099\u309a\u0301\u0327éİßΣς가\u1100\u1161\u11a8각नि\u093c",
    "か\u3099",
    "は\u309a",
]
ODD += [
    "😀",
    "👨‍👩‍👧",
    "🇯🇵",
    "葛\U000e0100",
    "\u200b",
    "\u2028",
    "\u00a0",
    "\u3000",
    "\t",
    "\n",
    "\r\n",
    "\x1f",
    "\ufeff",
    "\ufffd",
    "\ufdfa",
]
JAPANESE = st.lists(
    st.one_of(
        st.sampled_from([part for text in TEXTS for part in (text, text[:7], text[3:5])]),
        st.sampled_from(ODD),
        st.sampled_from([*SPECIAL, "[mask]", "##った", "``", "''", "1,", "it's", "Python"]),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
        st.text(st.characters(min_codepoint=0x3041, max_codepoint=0x30FF), max_size=6),
    ),
    max_size=8,
).map("".join)
MANY = settings(max_examples=120, deadline=None)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_ids_are_those_of_the_reference_library(make: Make, name: str) -> None:
    ours, theirs = make(**CONFIGS[name])

    @MANY
    @given(JAPANESE)
    @example("".join(ODD))
    @example("a" * 101 + "東" * 101)
    def holds(text: str) -> None:
        expected = theirs(text).input_ids
        assert ours(text).input_ids == expected
        assert ours.encode(text, add_special_tokens=False) == expected[1:-1]
        assert ours.decode(expected) == theirs.decode(expected)

    holds()


def test_pairs_batches_and_words(make: Make) -> None:
    ours, theirs = make(**CONFIGS["v2"])
    assert ours(TEXTS[0], TEXTS[1]).input_ids == theirs(TEXTS[0], TEXTS[1]).input_ids
    expected = theirs(TEXTS, padding=True, truncation=True, max_length=12, return_token_type_ids=True)
    found = ours(TEXTS, padding=True, truncation=True, max_length=12)
    assert dict(found) == dict(expected)
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    for strategy in ("only_first", "only_second"):
        expected = theirs(*zip(*pairs, strict=True), truncation=strategy, max_length=40, return_token_type_ids=True)
        assert dict(ours(pairs, truncation=strategy, max_length=40)) == dict(expected)
    words = ["吾輩は", "猫", "㌔", "である"]
    found = ours(words, is_split_into_words=True)
    assert found.input_ids == theirs(words, is_split_into_words=True).input_ids
    assert [each for each in dict.fromkeys(found.word_ids()) if each is not None] == [0, 1, 2, 3]
    rows = ours(TEXTS[0], truncation=True, max_length=8, stride=2, return_overflowing_tokens=True)
    spans = [rows.offsets(row)[1:-1] for row in range(len(rows.input_ids))]
    whole = ours(TEXTS[0]).offsets()[1:-1]
    assert spans[0] + [each for row in spans[1:] for each in row[2:]] == whole


@pytest.mark.parametrize("name", ["v1", "basic-lower", "v2-character"])
def test_a_call_gives_the_same_whether_places_are_asked_for_or_not(make: Make, name: str) -> None:
    """Places cost more than all the rest, and are found when they are looked at."""
    ours, _ = make(**CONFIGS[name])
    ways = st.fixed_dictionaries(
        {
            "padding": st.sampled_from([False, True, "max_length"]),
            "truncation": st.sampled_from([False, True, "only_first"]),
            "max_length": st.integers(3, 30),
            "add_special_tokens": st.booleans(),
            "padding_side": st.sampled_from(["left", "right"]),
            "pad_to_multiple_of": st.sampled_from([None, 8]),
            "return_length": st.booleans(),
        }
    )

    @MANY
    @given(st.lists(st.tuples(JAPANESE, JAPANESE), min_size=1, max_size=3), st.booleans(), ways)
    def holds(pairs: list[tuple[str, str]], paired: bool, way: dict[str, Any]) -> None:
        texts = pairs if paired else [first for first, _ in pairs]

        def called(**more: Any) -> Any:
            try:
                return ours(texts, **way, **more)
            except InputError as error:
                return str(error)

        quick, full = called(), called(return_offsets_mapping=True)
        if isinstance(full, str):
            assert quick == full
            return
        places = full.pop("offset_mapping")
        assert dict(quick) == dict(full)
        assert [quick.offsets(row) for row in range(len(texts))] == places
        assert [row.ids for row in quick.encodings] == quick.input_ids
        assert [row.attention_mask for row in quick.encodings] == quick.attention_mask

    holds()


# --- offsets


def spans(tokenizer: Tokenizer, text: str) -> list[tuple[str, int, int]]:
    encoded = tokenizer(text, add_special_tokens=False)
    return [(token, *span) for token, span in zip(encoded.tokens(), encoded.offsets(), strict=True)]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_token_knows_its_place(make: Make, name: str) -> None:
    ours, _ = make(**CONFIGS[name])

    def plain(text: str) -> str:
        text = unicodedata.normalize("NFKC", text)
        if CONFIGS[name].get("do_lower_case"):
            text = unicodedata.normalize("NFD", text.lower())
            text = "".join(each for each in text if unicodedata.category(each) != "Mn")
        text = "".join(each for each in text if each not in "\ufffd\x1f" and unicodedata.category(each)[0] != "C")
        return unicodedata.normalize("NFKC", text)

    @MANY
    @given(JAPANESE)
    @example("".join(ODD))
    def holds(text: str) -> None:
        found = spans(ours, text)
        for _, start, end in found:
            assert 0 <= start < end <= len(text)
        for (_, start, end), (_, after, last) in pairwise(found):
            assert start <= after
            assert end <= last
            # They share a place only where what stands there was rewritten, and then cut.
            assert end <= after or plain(text[after:end]) != text[after:end]
        for at, (token, start, end) in enumerate(found):
            if token in SPECIAL:
                continue
            token = token.removeprefix("##") if text[start:end] != token else token
            others = found[max(0, at - 1) : at] + found[at + 1 : at + 2]
            alone = all(last <= start or end <= first for _, first, last in others)
            assert plain(token) == plain(text[start:end]) if alone else plain(token) in plain(text[start:end])

    holds()


def test_what_the_dictionary_does_not_skip_is_covered(make: Make) -> None:
    ours, _ = make(**CONFIGS["v2"])

    @MANY
    @given(JAPANESE)
    def holds(text: str) -> None:
        covered = {at for _, start, end in spans(ours, text) for at in range(start, end)}
        for at, each in enumerate(text):
            if at not in covered:
                assert unicodedata.normalize("NFKC", each).strip() == "" or each in "\x1c\x1d\x1e\x1f", (at, each)

    holds()


def test_places_where_lengths_change(make: Make) -> None:
    ours, _ = make(**CONFIGS["v2-character"])
    text = "㌔ﾊﾟか\u3099½"
    assert spans(ours, text) == [
        ("キ", 0, 1),
        ("ロ", 0, 1),
        ("[UNK]", 1, 3),
        ("が", 3, 5),
        ("1", 5, 6),
        ("[UNK]", 5, 6),
        ("2", 5, 6),
    ]
    encoded = ours("x", f"ab {text}")
    assert encoded.char_to_token(0, 3, 1) == encoded.tokens().index("キ")
    assert encoded.token_to_chars(encoded.tokens().index("が")) == (6, 8)
    assert encoded.sequence_ids()[:3] == [None, 0, None]
    ours, _ = make(**CONFIGS["lower"])
    assert spans(ours, "İa")[0][1:] in {(0, 1), (0, 2)}
    ours, _ = make(**CONFIGS["basic-lower"])
    assert [each[1:] for each in spans(ours, "e\u0301x, naï")] == [(0, 3), (3, 4), (5, 6), (6, 7), (7, 8)]


def test_words_of_tokens(make: Make) -> None:
    ours, _ = make(**CONFIGS["v2-character"])
    text = "[MASK]東京都 で[SEP]猫"
    encoded = ours(text)
    words = encoded.word_ids()
    assert words[0] is words[-1] is None
    assert [each for each in words if each is not None] == sorted(each for each in words if each is not None)
    for word in set(words) - {None}:
        first, last = encoded.word_to_tokens(word)
        assert words[first:last] == [word] * (last - first)
    for at, each in enumerate(text):
        token = encoded.char_to_token(at)
        assert (token is None) == (each == " ")
        if token is not None:
            start, end = encoded.token_to_chars(token)
            assert start <= at < end


# --- added tokens, special tokens


@pytest.mark.parametrize("name", ["v2", "basic-lower", "v2-character"])
def test_added_tokens(tmp_path: Path, name: str) -> None:
    write(tmp_path, **CONFIGS[name])
    ours, theirs = Tokenizer.from_folder(tmp_path), BertJapaneseTokenizer.from_pretrained(tmp_path)
    added = [AddedToken("東京都"), AddedToken("<a>", lstrip=True, rstrip=True), AddedToken("<ab>", single_word=True)]
    ours.add_tokens(added)
    theirs.add_tokens(added)
    ours.add_special_tokens({"additional_special_tokens": ["<S>"]})
    theirs.add_special_tokens({"extra_special_tokens": ["<S>"]})
    assert len(ours) == len(theirs)
    parts = ["東京都", "<a>", "<ab>", " ", "で", "<S>", "猫 ", "[MASK]", "\u3000", "<"]

    @MANY
    @given(st.lists(st.sampled_from(parts), max_size=7).map("".join))
    def holds(text: str) -> None:
        assert ours(text).input_ids == theirs(text).input_ids
        for token, start, end in spans(ours, text):
            assert text[start:end] == token or token not in (*SPECIAL[2:], "<S>", "<a>", "<ab>")

    holds()


@pytest.mark.parametrize("name", CONFIGS)
def test_special_tokens_may_be_plain_text(make: Make, name: str) -> None:
    ours, _ = make(**CONFIGS[name])
    special = set(ours.all_special_ids) - {ours.unk_token_id}
    for text in ("[CLS]", "猫 [SEP] 犬", "[MASK]", "[PAD]x"):
        for ids in (
            ours.encode(text, add_special_tokens=False, split_special_tokens=True),
            ours(text, add_special_tokens=False, split_special_tokens=True).input_ids,
        ):
            assert ids
            assert not special & set(ids)


# --- files


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_it_loads_in_both(make: Make, tmp_path: Path, name: str) -> None:
    ours, theirs = make(**CONFIGS[name])
    ours.save(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "ours" / "tokenizer.json").exists()  # it would give other ids
    again = [Tokenizer.from_folder(tmp_path / each) for each in ("ours", "theirs")]
    back = BertJapaneseTokenizer.from_pretrained(tmp_path / "ours")
    for text in [*TEXTS, "".join(ODD), "[MASK] it's Python"]:
        expected = theirs(text).input_ids
        assert back(text).input_ids == expected
        assert all(each(text).input_ids == expected for each in again)
        assert all(each(text).offsets() == ours(text).offsets() for each in again)


def test_config_json_may_name_the_class(tmp_path: Path) -> None:
    """As in the first of these checkpoints."""
    write(tmp_path, **CONFIGS["v1"])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    del config["tokenizer_class"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    named = {"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}
    (tmp_path / "config.json").write_text(json.dumps(named), "utf-8")
    assert Tokenizer.from_folder(tmp_path).tokenize(TEXTS[0])[:3] == ["吾輩", "は", "猫"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a SentencePiece model of its own."""
    folder = tmp_path_factory.mktemp("pieces")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS * 20, "1,000 2,345,678"] * 3),
        model_writer=written,
        vocab_size=180,
        minloglevel=3,
        user_defined_symbols=["[PAD]", "[CLS]", "[SEP]", "[MASK]"],
        hard_vocab_limit=False,
    )
    (folder / "spiece.model").write_bytes(written.getvalue())
    config = {"subword_tokenizer_type": "sentencepiece", "do_word_tokenize": False}
    named = {"tokenizer_class": "BertJapaneseTokenizer", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), "utf-8")
    return folder


def test_sentencepiece(pieces: Path, tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(pieces)
    theirs = BertJapaneseTokenizer(
        "vocab.txt", str(pieces / "spiece.model"), do_word_tokenize=False, subword_tokenizer_type="sentencepiece"
    )
    ours.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)

    @MANY
    @given(JAPANESE)
    @example(" 1,000 猫 2,345,678, ``x''")
    def holds(text: str) -> None:
        expected = theirs(text).input_ids
        assert ours(text).input_ids == again.encode(text) == expected
        found = spans(ours, text)
        assert all(0 <= start <= end <= len(text) for _, start, end in found)
        assert all(a[1] <= b[1] and a[2] <= b[2] for a, b in pairwise(found))

    holds()
    text = " 吾輩は  猫である"
    assert "".join(text[start:end] for _, start, end in spans(ours, text)).replace(" ", "") == "吾輩は猫である"


def test_a_corpus_is_prepared_with_one(make: Make, tmp_path: Path) -> None:
    ours, _ = make(**CONFIGS["v2"])
    lines = [*TEXTS, "㍻ ﾊﾟ [SEP] 猫"]
    (tmp_path / "raw.txt").write_text("\n".join(lines), "utf-8")
    corpus = prepare([tmp_path / "raw.txt"], tmp_path / "corpus", tokenizer=ours, document="line", workers=2)
    expected = [ours.encode(each, add_special_tokens=False, split_special_tokens=True) for each in lines]
    assert [corpus.document(at).tolist() for at in range(len(corpus))] == expected
    assert corpus.tokenizer().encode(TEXTS[0]) == ours.encode(TEXTS[0])


def test_many_threads_may_use_one(make: Make) -> None:
    ours, _ = make(**CONFIGS["v1"])
    texts = [text * repeat for repeat in (1, 3, 9) for text in TEXTS] * 6
    expected = [ours.encode(each) for each in texts]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ours.encode, texts)) == expected


# --- what is wrong


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mecab_kwargs": {"mecab_dic": "jumandic"}}, "there is no dictionary 'jumandic' for MeCab"),
        ({"mecab_kwargs": {"mecab_dic": "unidic-lit"}}, "did you mean 'unidic-lite'?"),
        ({"mecab_kwargs": {"mecab_option": "-o /tmp/file"}}, "mecab_option holds '-o'; allowed: -d, --dicdir"),
        ({"mecab_kwargs": {"mecab_option": "--output=x"}}, "mecab_option holds '--output'"),
        ({"mecab_kwargs": {"mecab_option": "'"}}, "cannot be read (No closing quotation)"),
        ({"mecab_kwargs": []}, "mecab_kwargs is [], which is no dict"),
        ({"do_lower_case": "yes"}, "do_lower_case is 'yes', which is no bool"),
        ({"word_tokenizer_type": "sudachi"}, "word_tokenizer_type 'sudachi' is not supported; known: basic, mecab"),
        ({"subword_tokenizer_type": "bpe"}, "subword_tokenizer_type 'bpe' is not supported; known: wordpiece,"),
        ({"subword_tokenizer_type": "sentencepiece"}, "there is no spiece.model"),
        ({"unk_token": "<unk>"}, "the vocabulary has no '<unk>'"),
    ],
)
def test_a_broken_configuration_is_named(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    write(tmp_path, **{**TOHOKU, **config})
    with pytest.raises(CheckpointError) as raised:
        Tokenizer.from_folder(tmp_path)
    assert said in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    (write(tmp_path, **TOHOKU) / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"there is no vocab\.txt; copy or download it again"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("fugashi", "finding Japanese words with MeCab needs fugashi; pip install 'tsumugu[ja]'"),
        ("ipadic", "finding Japanese words with MeCab needs ipadic; pip install 'tsumugu[ja]'"),
        ("unidic", "finding Japanese words with MeCab needs unidic; pip install unidic && python -m unidic download"),
    ],
)
def test_what_is_not_installed_is_named_with_the_mend(tmp_path: Path, module: str, said: str) -> None:
    dictionary = module if module != "fugashi" else "ipadic"
    write(tmp_path, **{**TOHOKU, "mecab_kwargs": {"mecab_dic": dictionary}})
    code = f"import sys; sys.modules[{module!r}] = None; import tsumugu as tg\n"
    code += f"try: tg.load_tokenizer({str(tmp_path)!r})\n"
    code += "except tg.TsumuguError as error: print(type(error).__name__, error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().split(" ", 1) == [
        MissingExtraError.__name__ if module != "unidic" else InputError.__name__,
        said if module != "unidic" else f"dictionary: {said}",
    ]


def test_a_dictionary_that_is_no_dictionary(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MeCab does not start"):
        Mecab(None, f'-d "{tmp_path}" -r /dev/null')
    with pytest.raises(InputError, match="there is no dictionary 'neologd'"):
        Mecab("neologd")


def test_texts_that_are_none(make: Make) -> None:
    ours, _ = make(**CONFIGS["v2"])
    with pytest.raises(InputError, match=r"text\[1\]: expected text, found None"):
        ours(["猫", None])
    with pytest.raises(InputError, match=r"character 1 is the lone surrogate U\+DCFF"):
        ours.encode("猫\udcff")


def test_other_formats_cannot_say_it(make: Make) -> None:
    ours, _ = make(**CONFIGS["v2"])
    with pytest.raises(CheckpointError, match=r"llama\.cpp does not ask MeCab for words"):
        to_gguf_metadata(ours)
