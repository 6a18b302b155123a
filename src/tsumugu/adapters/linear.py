"""A linear layer with low-rank branches beside its matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tsumugu.blocks.dropout import dropout


class Branch(nn.Module):
    """What one adapter adds to a linear layer: `[..., in]` -> `[..., out]`.

    Args:
        down: `[rank, in]`; layers that are one matrix in the checkpoint share it.
        up: `[out, rank]`.
        scale: a factor on the product.
        dropout: on what enters, while training.
        magnitude: `[out]`, how long each row of the whole matrix is to be (DoRA).
    """

    def __init__(
        self,
        down: nn.Parameter,
        up: nn.Parameter,
        *,
        scale: float,
        dropout: float = 0.0,
        magnitude: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.down, self.up, self.magnitude = down, up, magnitude
        self.scale, self.dropout = scale, dropout

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """What is added for `x` to what `weight` gives."""
        x = x.to(self.down.dtype)
        if self.training and self.dropout:
            x = dropout(x, self.dropout)
        added = functional.linear(functional.linear(x, self.down), self.up) * self.scale
        if self.magnitude is None:
            return added
        longer = self._longer(weight)
        return (longer - 1) * functional.linear(x, weight.to(x.dtype)) + longer * added

    def delta(self, weight: Tensor) -> Tensor:
        """What is added to `weight` `[out, in]` when the branch is merged into it."""
        added = self.up @ self.down * self.scale
        if self.magnitude is None:
            return added
        longer = self._longer(weight)[:, None]
        return (longer - 1) * weight.to(added.dtype) + longer * added

    def _longer(self, weight: Tensor) -> Tensor:
        """`[out]`: by how much each row is lengthened. No gradient flows through its length.

        Source: Liu et al. 2024, DoRA, section 4.3.
        """
        assert self.magnitude is not None
        whole = weight.to(self.up.dtype) + self.up.detach() @ self.down.detach() * self.scale
        return self.magnitude / whole.norm(dim=1)


class AdaptedLinear(nn.Linear):
    """`nn.Linear` with branches by adapter; those in `active`, each times its weight there, add to what it gives.

    It takes over the weight and the bias of `linear` under the names that they had.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.branches = nn.ModuleDict()
        self.active: dict[str, float] = {}
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.weight, self.bias)
        for name, share in self.active.items():
            added = self.branches[name](x, self.weight).to(y.dtype)
            y = y + (added if share == 1.0 else share * added)
        return y

    def merged(self) -> nn.Parameter:
        """The one matrix that gives what this layer gives, `[out, in]`; summed up in float32 at least."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        total = self.weight.detach().to(wide)
        for name, share in self.active.items():
            branch = self.branches[name]
            assert isinstance(branch, Branch)
            total = total + share * branch.delta(self.weight).detach().to(wide)
        return nn.Parameter(total.to(self.weight.dtype), requires_grad=False)

    def plain(self) -> nn.Linear:
        """The layer without its branches."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)
