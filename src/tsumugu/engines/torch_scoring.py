"""How likely texts go on as proposed: what they share is read once, and all proposals of a text in one pass with it.

The tokens of a text come first, then those of its proposals as a tree: proposals that begin alike share their
beginning, and a token sees its text and its own branch only. The prefix that all texts share stands in a cache that
every batch starts from again. So of a thousand prompts with five answers each, the instruction and the examples are
read once, each text once, and each answer but its last token.

Source: Miao et al. 2024, SpecInfer, section 4.2 (attention over a tree of tokens).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tsumugu.blocks.kv_cache import KVCache
from tsumugu.blocks.mask import Mask
from tsumugu.core.errors import InputError
from tsumugu.engines.torch_session import TorchPrefix
from tsumugu.models.decoder import Decoder

TOKEN_BUDGET, ROW_LIMIT = 1024, 64
"""Tokens, padding counted in, and rows that are computed together."""
LOGITS_AT_ONCE = 1 << 24


@dataclass
class Tree:
    """A text and its proposals.

    Attributes:
        tokens: of the text, then of the tree; what no token follows is left out.
        parents: for each token the one before it; -1 for the first.
        asked: for each proposal, for each of its tokens: the place of the token before it, and the token.
    """

    tokens: list[int]
    parents: list[int]
    asked: list[list[tuple[int, int]]] = field(default_factory=list)

    @classmethod
    def grown(cls, stem: Sequence[int], answers: Sequence[Sequence[int]]) -> Tree:
        tree = cls(list(stem), list(range(-1, len(stem) - 1)))
        children: dict[tuple[int, int], int] = {}
        for answer in answers:
            at, asked = len(stem) - 1, []
            for place, token in enumerate(answer):
                asked.append((at, token))
                if place == len(answer) - 1:
                    break
                if (at, token) not in children:
                    children[at, token] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.parents.append(at)
                at = children[at, token]
            tree.asked.append(asked)
        return tree


class TorchScorer:
    """`tsumugu.engines.session.Scorer` for a `Decoder`.

    Args:
        model: with a causal head.
        prefix: the tokens that all texts begin with, already read or not; may be empty.
    """

    def __init__(self, model: Decoder, prefix: TorchPrefix | Sequence[int] = ()) -> None:
        self.prefix = prefix if isinstance(prefix, TorchPrefix) else TorchPrefix(model, prefix)
        self.model = model
        self.cache: KVCache | None = None

    @torch.inference_mode()
    def score(
        self, stems: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[list[float]]]:
        """The log probability of each token of each answer, after the prefix and the row's stem.

        Args:
            stems: what follows the prefix in each row; at least one token.
            answers: for each row what it may go on with; at least one token each.

        Raises:
            InputError: a row without tokens, an empty answer, or more tokens than the model reads.
        """
        trees = [Tree.grown(stem, mine) for stem, mine in zip(stems, answers, strict=True)]
        longest = 0
        for row, (stem, mine) in enumerate(zip(stems, answers, strict=True)):
            if not stem or not all(mine):
                raise InputError("a text or an answer has no token", where=f"row {row}")
            longest = max(longest, len(stem) + max(map(len, mine), default=1) - 1)
        before = self.prefix.cache.filled
        if before + longest > self.model.config.max_positions:
            what = f"{before + longest} tokens are more than {self.model.config.max_positions}"
            raise InputError(what, where="prompt", mend="give fewer or shorter examples")
        found: list[list[list[float]]] = [[] for _ in trees]
        for rows in _batches([len(tree.tokens) for tree in trees]):
            for row, scores in zip(rows, self._scores([trees[row] for row in rows]), strict=True):
                found[row] = scores
        return found

    def _scores(self, trees: Sequence[Tree]) -> list[list[list[float]]]:
        """The same for trees that are computed together."""
        before, time = self.prefix.cache.filled, max(len(tree.tokens) for tree in trees)
        ids = torch.zeros(len(trees), time, dtype=torch.int64)
        depths, sees = torch.zeros_like(ids), torch.zeros(len(trees), time, time, dtype=torch.bool)
        for row, tree in enumerate(trees):
            ids[row, : len(tree.tokens)] = torch.tensor(tree.tokens)
            for place, parent in enumerate(tree.parents):
                if parent >= 0:
                    sees[row, place] = sees[row, parent]
                    depths[row, place] = depths[row, parent] + 1
                sees[row, place, place] = True
            sees[row, len(tree.tokens) :, 0] = True  # padding must see something
        device = self.model.device
        positions = (before + depths).to(device)
        of_prefix = torch.arange(before, device=device)[None].expand(len(trees), -1)
        keys = torch.cat((of_prefix, positions), 1)
        allowed = torch.cat((sees.new_ones(len(trees), time, before), sees), 2).to(device)
        states = self.model.states(
            ids.to(device), positions=positions, mask=self._masks(allowed, positions, keys), cache=self._branched(trees)
        )
        places = sorted({(row, at) for row, tree in enumerate(trees) for asked in tree.asked for at, _ in asked})
        index = {place: number for number, place in enumerate(places)}
        wanted = states[[row for row, _ in places], [at for _, at in places]]
        numbers = [
            (index[row, at], token) for row, tree in enumerate(trees) for asked in tree.asked for at, token in asked
        ]
        flat = iter(self._log_probabilities(wanted, numbers))
        return [[[next(flat) for _ in asked] for asked in tree.asked] for tree in trees]

    def _log_probabilities(self, states: Tensor, asked: Sequence[tuple[int, int]]) -> list[float]:
        """Of states `[n, dim]` and pairs of a state's number and a token, each pair's log probability."""
        assert self.model.head is not None
        if not asked:
            return []
        number, token = torch.tensor(asked, device=states.device).T
        found = torch.empty(len(asked), dtype=torch.float64)
        rows = max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)
        for start in range(0, len(states), rows):
            logits = self.model.head(states[start : start + rows]).float()
            mine = (number >= start) & (number < start + rows)
            own = logits[number[mine] - start, token[mine]]
            found[mine.cpu()] = (own - logits.logsumexp(-1)[number[mine] - start]).double().cpu()
        return [float(each) for each in found.tolist()]

    def _masks(self, allowed: Tensor, positions: Tensor, keys: Tensor) -> Mask | list[Mask]:
        """What each token sees, in all layers or in each; windows go by positions, not by places in the cache."""
        config = self.model.config
        windows = getattr(config, "windows", None) or [getattr(config, "window", None)]

        def windowed(window: int | None) -> Mask:
            if window is None:
                return Mask(allowed=allowed[:, None])
            return Mask(allowed=(allowed & (positions[:, :, None] - keys[:, None] < window))[:, None])

        made = {window: windowed(window) for window in dict.fromkeys(windows)}
        return made[windows[0]] if len(made) == 1 else [made[window] for window in windows]

    def _branched(self, trees: Sequence[Tree]) -> KVCache:
        """A cache whose rows hold the prefix and nothing else; the last one again, where it is large enough."""
        before = self.prefix.cache.filled
        rows, room = len(trees), before + max(len(tree.tokens) for tree in trees)
        cache = self.cache
        if cache is None or len(cache.lengths) != rows or cache.capacity < room:
            cache = self.cache = self.prefix.cache.branched(rows, room)
        cache.set_lengths(torch.full_like(cache.lengths, before))
        return cache


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows, the longest first, so many together that their padded tokens keep to the budget."""
    order = sorted(range(len(sizes)), key=lambda row: -sizes[row])
    while order:
        count = max(1, min(ROW_LIMIT, TOKEN_BUDGET // max(1, sizes[order[0]])))
        yield order[:count]
        order = order[count:]
