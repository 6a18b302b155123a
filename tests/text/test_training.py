"""Tokenizers trained on the spot: the reference library gives the same ids, the same texts the same files."""

from __future__ import annotations

import json
import pydoc_data.topics
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.corpus import CODE, JAPANESE, varied_texts

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.text import japanese
from tsumugu.text.layouts import LAYOUTS
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.text.training import _parts, train_tokenizer

NOVEL = [
    "朝早く、猫は川のほとりを歩いていました。水の上には白い霧がかかり、遠くで汽車の音がしました。",
    "「どこへ行くのですか」と犬がたずねました。猫は答えずに、橋を渡って町へ向かいました。",
    "町ではパン屋がもう店を開けていて、あたたかいにおいがしていました。",
    "コーヒーをいれる人、新聞を読む人、学校へ急ぐ子供たち。",
    "猫は毎日この道を歩き、同じ人に会い、同じ魚をもらうのでした。",
]
ENGLISH = list(pydoc_data.topics.topics.values())[::8]
TEXTS = [*ENGLISH, *NOVEL * 10, *JAPANESE * 10, *CODE]
TRIED = varied_texts(300)
EVERY = [pytest.param(family, kind, id=f"{family}-{kind}") for family in LAYOUTS for kind in LAYOUTS[family].kinds]


def trained(family: str, kind: str | None = None, texts: Any = TEXTS, size: int = 1000, **more: Any) -> Tokenizer:
    return train_tokenizer(texts, family=family, kind=kind, vocab_size=size, **more)


@pytest.mark.parametrize(("family", "kind"), EVERY)
def test_the_reference_library_gives_the_same_ids(family: str, kind: str, tmp_path: Path) -> None:
    ours = trained(family, kind, special_tokens=["<|sep|>"])
    assert len(ours) == ours.vocab_size
    assert (len(ours) == 1000) == (kind != "character")  # there are not so many characters
    ours.save(tmp_path)
    for config in (None, {"model_type": family}):
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        back = Tokenizer.from_folder(tmp_path)
        texts = [*TRIED, "a <|sep|> b", "".join(ours.all_special_tokens)]
        for second in ([], [texts[::-1]]):
            found = ours(texts, *second, return_offsets_mapping=True)
            wanted = theirs(texts, *second, return_offsets_mapping=True)
            assert dict(back(texts, *second, return_offsets_mapping=True)) == dict(found)
            assert sorted(found) == sorted(wanted)
            assert all(found[key] == wanted[key] for key in wanted)
        rows = found.input_ids
        for skip in (True, False):
            assert ours.batch_decode(rows, skip) == theirs.batch_decode(rows, skip_special_tokens=skip)
        assert dict(theirs.special_tokens_map).items() >= ours.special_tokens_map.items()
        assert back.special_tokens_map == ours.special_tokens_map
        assert len(theirs) == len(back) == len(ours)


FRAMES = {
    "bert": ("[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]", [0, 0, 0, 1, 1]),
    "roberta": ("<s> a </s>", "<s> a </s> </s> b </s>", None),
    "gpt2": ("a", "a b", None),
    "llama": ("<s> a", "<s> a <s> b", None),
    "t5": ("a </s>", "a </s> b </s>", None),
}


@pytest.mark.parametrize("family", FRAMES)
def test_every_family_has_its_frame_and_its_first_ids(family: str) -> None:
    tokenizer = trained(family, size=700)
    one, two, types = FRAMES[family]
    for tokens, wanted in ((tokenizer("a").tokens(), one), (tokenizer("a", "b").tokens(), two)):
        assert " ".join(tokens).replace("▁", "").split() == wanted.split()
    assert tokenizer("a", "b").get("token_type_ids") == types
    order = LAYOUTS[family].order
    assert tokenizer.convert_ids_to_tokens(range(len(order))) == list(order)
    assert tokenizer.pad_token_id is not None
    if family == "t5":
        assert tokenizer.convert_ids_to_tokens([699, 600]) == ["<extra_id_0>", "<extra_id_99>"]
        assert tokenizer.additional_special_tokens[0] == "<extra_id_0>"
        assert tokenizer.decode(tokenizer.encode("a <extra_id_5> b"), skip_special_tokens=True).split() == ["a", "b"]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "character"])
def test_the_same_texts_give_the_same_files(kind: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        trained("bert", kind, (each for each in TEXTS)).save(tmp_path / name)
    files = sorted(each.name for each in (tmp_path / "one").iterdir())
    assert "tokenizer.json" in files
    assert files == sorted(each.name for each in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("kind", ["bpe", "unigram", "character"])
@pytest.mark.parametrize("language", ["ja", "en"])
def test_text_comes_back_as_it_went_in(kind: str, language: str) -> None:
    tokenizer = trained("llama", kind, language=language)
    for text in TRIED:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
        assert tokenizer.unk_token_id not in tokenizer.encode(text)


def test_llama_can_become_a_gguf_file() -> None:
    from tsumugu.text.pretokenizers import name_of

    backend = trained("llama", "bpe").backend
    assert name_of(backend.pre_tokenizer, ignore_merges=backend.model.ignore_merges) == "llama-bpe"


def test_nothing_rare_is_lost_to_bytes_and_nothing_known_is_unknown() -> None:
    tokenizer = trained("t5", "unigram", NOVEL * 10, language="ja", size=800)
    assert tokenizer.decode(tokenizer.encode("猫𠮷鯨"), skip_special_tokens=True) == "猫𠮷鯨"
    assert [each for each in tokenizer.tokenize("鯨") if each.startswith("<0x")] == ["<0xE9>", "<0xAF>", "<0xA8>"]
    bert = trained("bert", "wordpiece", NOVEL * 10, language="ja", size=800)
    assert bert.unk_token_id not in [each for text in NOVEL for each in bert.encode(text)]


def test_an_unknown_character_does_not_take_its_neighbours_along() -> None:
    bert = trained("bert", "wordpiece", NOVEL * 10, language="ja", size=800)
    tokens = bert.tokenize("猫は鯨を歩いていました")
    assert tokens.count("[UNK]") == 1
    assert tokens[: tokens.index("[UNK]")] == bert.tokenize("猫は")


def test_the_language_is_found_or_told() -> None:
    assert not trained("t5", texts=NOVEL * 10).tokenize("猫")[0].startswith("▁")
    assert trained("t5", texts=ENGLISH).tokenize("the")[0].startswith("▁")
    assert trained("t5", texts=NOVEL * 10, language="en").tokenize("猫")[0].startswith("▁")


def test_lowercase_leaves_the_marks_of_kana() -> None:
    for kind in ("wordpiece", "bpe", "unigram"):
        tokenizer = trained("bert", kind, [*NOVEL * 10, "がぎぐ パン PAN GAME"], lowercase=True, language="ja")
        text = tokenizer.decode(tokenizer.encode("がぎぐ パン GAME"), skip_special_tokens=True)
        assert text.replace(" ", "") == "がぎぐパンgame"
        assert tokenizer.encode("PAN GAME") == tokenizer.encode("pan game")


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "character"])
def test_offsets_with_nfkc_are_those_of_the_text_as_it_was(kind: str) -> None:
    texts = [*NOVEL * 10, *JAPANESE * 10, *ENGLISH[:2]]
    tokenizer = trained("bert", kind, texts, nfkc=True, language="ja")
    text = "ＡＢＣ　ｺｰﾋｰ㌔１２３、ﾈｺは 川"
    plain = tokenizer.encode(unicodedata.normalize("NFKC", text))
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded.input_ids == plain
    covered = set()
    for token, (start, end), special in zip(
        encoded.tokens(), encoded.offset_mapping, encoded.encodings[0].special_tokens_mask, strict=True
    ):
        if special:
            continue
        assert end > start
        covered.update(range(start, end))
        spelt = tokenizer.decode(tokenizer.convert_tokens_to_ids([token])).strip().removeprefix("##")
        if "\ufffd" not in spelt and token != "[UNK]":
            assert spelt in unicodedata.normalize("NFKC", text[start:end])
    assert {text[each] for each in set(range(len(text))) - covered} <= {" ", "　"}


# --- Japanese words


@pytest.fixture(scope="module", params=["unidic-lite", "ipadic"])
def mecab(request: pytest.FixtureRequest) -> japanese.MecabWords:
    pytest.importorskip("fugashi")
    pytest.importorskip(japanese.DICTIONARIES[request.param])
    return japanese.MecabWords(request.param)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30) | st.lists(st.sampled_from([*NOVEL, *JAPANESE, " ", "\n", "\0", "　"])).map("".join))
def test_words_joined_are_the_text(text: str) -> None:
    pytest.importorskip("fugashi")
    assert "".join(_words().words(text)) == text


def _words(found: list[japanese.MecabWords] = []) -> japanese.MecabWords:  # noqa: B006  (made once)
    if not found:
        found.append(japanese.MecabWords())
    return found[0]


def test_words_are_those_of_the_dictionary(mecab: japanese.MecabWords) -> None:
    assert mecab.words("猫は川を 歩いた。") == ["猫", "は", "川", "を", " ", "歩い", "た", "。"]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_no_token_reaches_across_words(kind: str, mecab: japanese.MecabWords) -> None:
    tokenizer = trained("bert", kind, NOVEL * 10, language="ja", segment="mecab", dictionary=mecab.dictionary, size=800)
    within = {word[a:b] for t in NOVEL for word in mecab.words(t) for a in range(len(word)) for b in range(a + 1, 40)}
    free = trained("bert", kind, NOVEL * 10, language="ja", size=800)
    across = []
    for each in (tokenizer, free):
        special = {*each.all_special_ids}
        spelt = [each.decode([i]).replace("##", "") for i in range(len(each)) if i not in special]
        across.append([one for one in spelt if "\ufffd" not in one and len(one) > 1 and one not in within])
    assert not across[0]
    assert across[1]


BLOCKED = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
import tsumugu as tg
{code}
"""


def without(code: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    """Run code where some packages cannot be imported."""
    source = BLOCKED.format(blocked=blocked, code=code)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False)


def test_a_tokenizer_may_ask_mecab_whenever_it_runs(tmp_path: Path, mecab: japanese.MecabWords) -> None:
    options = {"segment": "mecab-always", "dictionary": mecab.dictionary, "special_tokens": ["<|im_start|>"]}
    tokenizer = trained("bert", "wordpiece", NOVEL * 10, size=900, **options)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "BertJapaneseTokenizer"
    for text in [*NOVEL, "ｶﾞﾗｽ、3.11と㌔ <|im_start|>猫"]:
        encoded = tokenizer(text)
        assert encoded.input_ids == theirs(text).input_ids == Tokenizer.from_folder(tmp_path).encode(text)
        assert "".join(text[start:end] for start, end in dict.fromkeys(encoded.offsets())) == text.replace(" ", "")
    words = [word for word in mecab.words(unicodedata.normalize("NFKC", NOVEL[0])) if not word.isspace()]
    assert len({each for each in tokenizer(NOVEL[0]).word_ids() if each is not None}) == len(words)
    assert tokenizer.unk_token_id not in tokenizer.encode("".join(NOVEL))


def test_what_mecab_helped_to_train_needs_no_mecab(tmp_path: Path) -> None:
    pytest.importorskip("fugashi")
    tokenizer = trained("gpt2", "unigram", NOVEL * 10, segment="mecab", size=800)
    tokenizer.save(tmp_path)
    done = without(
        f"print(tg.load_tokenizer({str(tmp_path)!r}).encode({NOVEL[0]!r}))",
        *("fugashi", "unidic_lite", "ipadic", "sentencepiece"),
    )
    assert json.loads(done.stdout) == tokenizer.encode(NOVEL[0])


@pytest.mark.parametrize("blocked", ["fugashi", "unidic_lite"])
def test_a_missing_package_is_named_with_its_extra(blocked: str) -> None:
    pytest.importorskip("fugashi")
    code = "tg.train_tokenizer(['猫'], family='t5', vocab_size=900, segment='mecab')"
    last = without(code, blocked).stderr.strip().splitlines()[-1]
    package = blocked.replace("_", "-")
    assert last.endswith(f"finding Japanese words with MeCab needs {package}; pip install 'tsumugu[ja]'")


# --- what cannot be


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"family": "bart"}, "unknown family 'bart'; did you mean 'bert'"),
        ({"kind": "bytes"}, "unknown kind 'bytes'"),
        ({"family": "gpt2", "kind": "wordpiece"}, "choose bpe or unigram"),
        ({"language": "jp"}, "unknown language 'jp'"),
        ({"segment": "mecba"}, "did you mean 'mecab'"),
        ({"segment": "mecab", "dictionary": "neologd"}, "there is no dictionary 'neologd'"),
        (
            {"segment": "mecab-always", "kind": "unigram"},
            "cannot ask MeCab whenever it runs; choose bert and wordpiece, or mecab",
        ),
        ({"vocab_size": 20, "family": "t5"}, "103 special tokens"),
        ({"vocab_size": 20, "family": "bert"}, "ask for at least"),
        ({"vocab_size": 270, "family": "llama", "kind": "unigram"}, "ask for at least"),
        ({"texts": []}, "there is no text to train on"),
        ({"texts": ["", " \n"]}, "there is no text to train on"),
        ({"texts": "one text"}, "put it in a list"),
        ({"texts": ["a", 3]}, "text 2: expected a text, found int"),
        ({"texts": ["a", "b\ud800"]}, "text 2: the text has half a surrogate pair"),
        ({"kind": "unigram", "min_frequency": 2}, "leave it out"),
        ({"min_frequency": 0}, "0 is less than 1"),
        ({"character_coverage": 0.0}, "above 0, up to 1"),
        ({"kind": "bpe", "character_coverage": 0.9}, "covers every character"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: dict[str, Any], said: str) -> None:
    given = {"texts": ENGLISH[:2], "family": "bert", "vocab_size": 1000, **arguments}
    with pytest.raises(InputError) as caught:
        train_tokenizer(given.pop("texts"), **given)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_the_least_size_that_is_named_is_enough(kind: str) -> None:
    with pytest.raises(InputError, match="ask for at least") as caught:
        trained("bert", kind, NOVEL, size=270 if kind == "unigram" else 50)
    least = int(str(caught.value).split("at least ")[1].split(",")[0])
    assert len(trained("bert", kind, NOVEL, size=least)) <= least


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["a" * 9000, "b" * 40000, " ", "\n", "。", "c"])).map("".join), st.booleans())
def test_parts_of_a_text_are_the_text(text: str, by_line: bool) -> None:
    parts = list(_parts(text, by_line=by_line))
    assert max(map(len, parts)) <= 1 << 14
    assert "".join(parts) == (text.replace("\n", "") if by_line else text)


def test_texts_are_read_once_and_not_kept() -> None:
    alive = 0

    class Watched(str):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def texts() -> Iterator[str]:
        nonlocal alive
        for number in range(3000):
            alive += 1
            yield Watched(f"{ENGLISH[number % 5][:400]} {number}")
            assert alive < 10

    seen: list[tuple[str, int]] = []
    tokenizer = trained("gpt2", None, texts(), language="en", progress=lambda *each: seen.append(each))
    assert len(tokenizer) > 500
    assert seen[-2:] == [("reading", 3000), ("training", 3000)]


def test_more_lines_than_may_be_held_are_thinned_out() -> None:
    lines = [f"{word} of spring" for word in ("alpha", "beta", "gamma", "delta")] * 50
    few = trained("t5", texts=lines, size=420, max_lines=50)
    assert few.backend.to_str() == trained("t5", texts=lines, size=420, max_lines=50).backend.to_str()
    assert few.backend.to_str() != trained("t5", texts=lines, size=420).backend.to_str()


def test_the_front_door() -> None:
    assert tg.train_tokenizer is train_tokenizer
