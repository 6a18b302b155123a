"""Varied texts: code, emoji with joiners, Japanese, half and full width, control characters, white space, digits."""

# ruff: noqa: SIM905  (words in a row are easier to read than in a column)

from __future__ import annotations

import random
from collections.abc import Callable

WORDS = (
    "the quick brown fox jumps over lazy dog isn't we'll THEY'VE I'd 'tis naïve façade Straße ΑΒΓ Привет мир مرحبا "
    "שלום नमस्ते สวัสดี 안녕하세요 你好 tokenization antidisestablishmentarianism 3.14159 1,000,000 0x1F 2024-05-06 "
    "http://a.b/c?d=e&f=g user@example.com #tag @you C++ C#"
).split()
JAPANESE = (
    "東京都に行きました。 ｶﾀｶﾅ ひらがな カタカナ 漢字仮名交じり文 １２３４５ ＡＢＣ 「こんにちは」 "
    "… 〜 ー 々 が が ﾊﾟ ㌔ ① 今日は良い天気ですね！ 吾輩は猫である。名前はまだ無い。 𠮷野家 葛󠄀城 ヴ"
).split()
EMOJI = "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ 🇯🇵 🧑‍💻 ☕ ✨ 🤷‍♀️ 1️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿".split()
CODE = [
    "def f(x):\n    return x**2\n",
    "for(int i=0;i<n;++i){\n\tsum+=a[i];\n}",
    '<div class="a">&nbsp;</div>',
    "SELECT * FROM t WHERE a='b';",
    '{"k": [1, 2, null]}',
    "#!/bin/bash\necho \"$HOME\" | sed 's/a/b/g'\n",
    "x = y if z else w  # comment",
    "\\frac{a}{b}",
    "a->b::c<d>()",
    "```python\nprint('hi')\n```",
    "    \t  indented",
    "import os, sys\r\n",
]
SPACES = [
    *" \t\n\r\x0b\x0c\x85\u00a0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff",
    "  ",
    "   ",
    "\n\n",
    "\r\n",
    " \n ",
    " " * 8,
]
CONTROLS = [*map(chr, range(32)), *"\x7f\x80\x9f\u200d\u200e\u202e\ufffd\ufffe\ue000\U0010ffff\u0378"]
DIGITS = "0 12 123 1234567890 ½ ² Ⅷ ٣٤ १२ １２ 𝟘𝟙 ㊿ 一二三".split()
MARKS = [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", *"—— “” ‘s ’s 'S 'll 'LL ... ?! € £ → ∑ ≠ ° § 're'd '' ' s".split(" ")]
KINDS = [WORDS, JAPANESE, EMOJI, CODE, SPACES, CONTROLS, DIGITS, MARKS]


def varied_texts(count: int, *, seed: int = 0, special: tuple[str, ...] = ()) -> list[str]:
    """`count` texts, every item alone first, then mixtures; `special` are words that may stand anywhere in them."""
    draw = random.Random(seed)
    every = [each for kind in KINDS for each in kind]
    makers: list[Callable[[int], str]] = [
        lambda n: draw.choice([" ", "  ", "\n", ", "]).join(draw.choices(WORDS, k=n)),
        lambda n: "".join(draw.choice(draw.choice(KINDS)) for _ in range(n)),
        lambda n: "".join(draw.choice(draw.choice(KINDS)) for _ in range(n)),
        lambda n: "".join(_any_character(draw, 0x3000) for _ in range(n)),
        lambda n: "".join(_any_character(draw, 0x110000) for _ in range(n)),
        lambda n: "".join(draw.choices(SPACES, k=n)) + draw.choice(WORDS),
        lambda n: "".join(draw.choices([*special, *WORDS, *SPACES], k=n)),
        lambda n: "".join(draw.choices([*MARKS, *DIGITS, " "], k=2 * n)),
    ]
    texts = ["", "a", " a", "a ", *every, *special]
    while len(texts) < count:
        texts.append(draw.choice(makers)(draw.randrange(1, 20)))
    return texts[:count]


def _any_character(draw: random.Random, limit: int) -> str:
    while 0xD800 <= (code := draw.randrange(limit)) < 0xE000:
        pass
    return chr(code)
