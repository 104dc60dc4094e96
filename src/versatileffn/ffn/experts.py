"""Virtual experts: slices of the hidden dimension of one feed-forward network.

Legend: M tokens, F d_hidden, f d_expert, N num_experts, K top_k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from versatileffn.errors import ConfigError
from versatileffn.ffn.values import check_value


@dataclass(frozen=True)
class ExpertSlices:
    """Which hidden neurons belong to which virtual expert.

    Source: Eq. 4–5. Expert k owns the f neurons from ⌊k·S⌋, with S = (F − f)/(N − 1) and one
    expert starting at 0. As N·f ≤ F they never overlap; with N·f = F they tile the hidden layer.

    Args:
        num_experts: N.
        d_expert: f, neurons of one expert.
        d_hidden: F, neurons of the FFN.

    Raises:
        ConfigError: a size isn't a whole number of at least 1, or N·f > F.
    """

    num_experts: int
    d_expert: int
    d_hidden: int

    def __post_init__(self) -> None:
        for name in ("num_experts", "d_expert", "d_hidden"):
            check_value(name, getattr(self, name), int)
        if self.num_experts * self.d_expert > self.d_hidden:
            raise ConfigError(
                f"num_experts·d_expert = {self.num_experts * self.d_expert} exceeds "
                f"d_hidden={self.d_hidden}: lower num_experts or d_expert"
            )

    @property
    def starts(self) -> list[int]:
        """First neuron of each expert, in exact integer arithmetic."""
        span = self.d_hidden - self.d_expert
        return [k * span // max(self.num_experts - 1, 1) for k in range(self.num_experts)]

    @property
    def tiles(self) -> bool:
        """Whether the experts cover every neuron."""
        return self.num_experts * self.d_expert == self.d_hidden

    def owner_of_neuron(self, device: torch.device | None = None) -> Tensor:
        """The expert of each neuron, [F] int64; N where a neuron belongs to none."""
        owner_F = torch.full((self.d_hidden,), self.num_experts, device=device)
        starts_N = torch.tensor(self.starts, device=device)
        neurons_Nf = starts_N[:, None] + torch.arange(self.d_expert, device=device)
        experts_N = torch.arange(self.num_experts, device=device)
        return owner_F.index_put((neurons_Nf,), experts_N[:, None].expand_as(neurons_Nf))

    def scale_neurons(
        self,
        weights_MN: Tensor,
        rest_M1: Tensor,
        activations_MF: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """Multiply the hidden activations of each expert by its weight, [M, F]; M may be any shape.

        Source: Eq. 6–7 in one product.

        Args:
            weights_MN: a weight for each token and expert.
            rest_M1: the weight of neurons that belong to no expert.
            activations_MF: hidden activations of the whole FFN.
            out: where to put the result, contiguous; may be the activations.
        """
        if self.tiles:
            by_expert = (self.num_experts, self.d_expert)
            blocks_MNf = activations_MF.unflatten(-1, by_expert)
            out_MNf = None if out is None else out.unflatten(-1, by_expert)
            return torch.mul(blocks_MNf, weights_MN.unsqueeze(-1), out=out_MNf).flatten(-2)
        owners = self.owner_of_neuron(activations_MF.device)
        weights_MF = torch.cat([weights_MN, rest_M1], dim=-1)[..., owners]
        return torch.mul(activations_MF, weights_MF, out=out)

    def sum_neurons(self, values_MF: Tensor) -> Tensor:
        """Sum values of hidden neurons over each expert's neurons, [M, N]."""
        if self.tiles:
            return values_MF.unflatten(-1, (self.num_experts, self.d_expert)).sum(-1)
        sums_MN = values_MF.new_zeros(*values_MF.shape[:-1], self.num_experts + 1)
        owners_F = self.owner_of_neuron(values_MF.device)
        return sums_MN.index_add(-1, owners_F, values_MF)[..., : self.num_experts]


def spread_gates(gates_MK: Tensor, experts_MK: Tensor, num_experts: int) -> Tensor:
    """The K gates of each token laid out over all N experts, [M, N]; zero where not selected."""
    zeros_MN = gates_MK.new_zeros(*gates_MK.shape[:-1], num_experts)
    return zeros_MN.scatter(-1, experts_MK, gates_MK)
