"""Translation, by an encoder-decoder; also called `translation_en_to_ja` and the like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.tasks.text2text_generation import Text2TextGeneration


class Translation(Text2TextGeneration):
    """Translations, as `[{"translation_text"}]` for a text. Options are those of `text2text-generation`, and:

    src_lang, tgt_lang: the languages, as the checkpoint's config.json has them ("en", "de"); also part of the
        task's name. A checkpoint that names no languages there is taken to know what it translates.
    """

    name = "translation"
    key = "translation"
    options = Text2TextGeneration.options | {"src_lang", "tgt_lang"}

    def _params(self, options: Mapping[str, Any]) -> dict[str, Any]:
        asked = super()._params(options)
        asked.pop("src_lang", None)
        asked.pop("tgt_lang", None)
        return asked

    def _task_params(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        every = self._all_task_params()
        pairs = {name: params for name, params in every.items() if name.startswith("translation_")}
        source, target = options.get("src_lang"), options.get("tgt_lang")
        if not pairs or (source is None and target is None and (len(pairs) == 1 or self.name in every)):
            return every.get(self.name) or next(iter(pairs.values()), {})
        name = f"translation_{source}_to_{target}"
        if name not in pairs:
            raise InputError(
                "several languages are known" if source is None and target is None else f"{name} is not known",
                where="translation",
                mend=f"choose {', '.join(sorted(pairs))}",
            )
        return pairs[name]
