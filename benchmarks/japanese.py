"""Japanese text to token ids with MeCab, against the reference library's tokenizer for Japanese BERT.

The text is prose of chance, in the manner of the classics: full-width marks, some half-width kana and numbers, so that
NFKC has work to do. Both sides give the same ids, on one thread. The peer knows no places of tokens in a text: the
line "places" compares its call with one of ours that gives them, too.
"""

from __future__ import annotations

import json
import random
import tempfile
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, seconds

PARTS = {
    "when": "その晩、 翌朝、 しばらくして、 明治三十八年の秋、 １９２３年九月、 日が暮れてから、",
    "who": "私 猫 彼女 老人 旅人 書生 隣家の主人 先生 娘 役人 百姓 船頭 医者 母親 友人の弟 番頭 和尚 子供たち",
    "where": "山路 川のほとり 古い寺の門前 東京の下宿 停車場 薄暗い座敷 雪の積もった街道 庭先 港町 橋の上 図書館",
    "what": "手紙 一冊の本 ガラスの瓶 提灯 古い写真 ｶﾒﾗ 碁盤 傘 三百円の切符 新聞 林檎を２つ 風呂敷包み 万年筆 ラムネ",
    "did": "眺めていた 捨てたのである 買って帰った 探しあぐねた ながい間見つめていた 落としてしまった 思い出していた",
    "and": "誰も何も言わなかった。 風ばかりが吹いていた。 遠くで汽笛が鳴った。 「どこへ」と尋ねた。 ……それきりだった。",
}


def prose(characters: int) -> list[str]:
    """Paragraphs of chance; the same each time."""
    draw, found, total = random.Random(5), [], 0
    words = {name: text.split() for name, text in PARTS.items()}
    while total < characters:
        paragraph = "\u3000"
        for _ in range(draw.randrange(1, 9)):
            when, who, where, what, did, after = (draw.choice(each) for each in words.values())
            paragraph += f"{when}{who}は{where}で{what}を{did}。" + (after if draw.random() < 0.4 else "")
        found.append(paragraph)
        total += len(paragraph)
    return found


def folder_of(folder: Path, texts: list[str], dictionary: str, subwords: str) -> Path:
    """A tokenizer whose vocabulary has the words that come often, and all characters."""
    from tsumugu.text.japanese import Mecab

    mecab = Mecab(dictionary)
    words = Counter(each for text in texts for each in mecab.surfaces(unicodedata.normalize("NFKC", text)))
    letters = sorted({each for word in words for each in word})
    common = sorted(words, key=lambda word: (-words[word], word))[: len(words) * 2 // 3]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *common, *letters, *(f"##{each}" for each in letters)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", "utf-8")
    config = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "mecab",
        "subword_tokenizer_type": subwords,
        "mecab_kwargs": {"mecab_dic": dictionary.replace("-", "_")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def run(report: Report) -> None:
    """Compare ids alone, and calls that give all a model takes."""
    from transformers import BertJapaneseTokenizer

    from tsumugu.text.tokenizer import Tokenizer

    texts = prose(20_000 if report.smoke else 400_000)
    batches = [texts[at : at + 32] for at in range(0, len(texts), 32)]
    size = sum(map(len, texts))

    def ids(tokenizer: Any) -> float:
        return seconds(lambda: [tokenizer.encode(each, add_special_tokens=False) for each in texts])

    def calls(tokenizer: Any, **more: Any) -> float:
        options = {"padding": True, "truncation": True, "max_length": 128, **more}
        return seconds(lambda: [tokenizer(each, **options) for each in batches])

    with tempfile.TemporaryDirectory() as scratch:
        for dictionary, subwords in (("unidic-lite", "wordpiece"), ("ipadic", "wordpiece"), ("ipadic", "character")):
            folder = folder_of(Path(scratch) / f"{dictionary}-{subwords}", texts, dictionary, subwords)
            ours, theirs = Tokenizer.from_folder(folder), BertJapaneseTokenizer.from_pretrained(folder)
            assert [ours.encode(each) for each in texts] == [theirs.encode(each) for each in texts]
            what = f"{size / 1e3:.0f}k characters, {dictionary}, {subwords}"
            for how, work, more, limit in (
                ("ids", ids, {}, "MeCab, and handing over its words"),
                ("batches", calls, {}, "MeCab, and handing over its words"),
                ("places", calls, {"return_offsets_mapping": True}, "writing and reading JSON for each row"),
            ):
                report.compare(
                    f"{what}: {how}",
                    partial(work, ours, **more),
                    partial(work, theirs),
                    peer_name="transformers",
                    limit=limit,
                )
