"""How much text a model deserves: laws that were fitted to many training runs.

All of them count every parameter, and take training to cost 6 N D operations.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKENS_PER_PARAMETER = 20
"""The rule of thumb. Source: Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, table 3."""


@dataclass(frozen=True)
class ScalingLaw:
    """Loss in nats a token after training N parameters on D tokens: E + A / N^alpha + B / D^beta."""

    floor: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss that the law expects; of the text it was fitted to, MassiveText."""
        return self.floor + self.a / parameters**self.alpha + self.b / tokens**self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """The parameters and tokens that make the most of so many operations.

        Source: Hoffmann et al. 2022, equation 4.
        """
        parameters = self._balance * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters

    def tokens_for(self, parameters: float) -> float:
        """The tokens with which a model of that size is the best for what its training costs."""
        pairs = (parameters / self._balance) ** ((self.alpha + self.beta) / self.beta)
        return pairs / parameters

    @property
    def _balance(self) -> float:
        return float((self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta)))


LAWS = {
    "hoffmann": ScalingLaw(floor=1.6934, a=406.4, b=410.7, alpha=0.3392, beta=0.2849),
    "besiroglu": ScalingLaw(floor=1.8172, a=482.01, b=2085.43, alpha=0.3478, beta=0.3658),
}
"""hoffmann: Hoffmann et al. 2022, approach 3, equation 10, with the digits of its source (printed: 1.69, 406.4, 410.7,
0.34, 0.28; the rounding moves the optimum by a fifth). besiroglu: Besiroglu et al. 2024, Chinchilla Scaling: A
Replication Attempt, which fits the same data anew and agrees with Hoffmann's other two approaches."""
