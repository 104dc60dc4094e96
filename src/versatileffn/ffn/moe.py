"""The MoE baseline: a dense FFN plus N real small experts, K for each token.

Legend: M tokens, D d_model, F d_hidden, f d_expert, N num_experts, K top_k, S = M·K assignments.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.controller import select_experts
from versatileffn.ffn.dense import ACTIVATIONS, DenseFFN, FeedForward, FFNOutput, Norm
from versatileffn.ffn.losses import balance_loss
from versatileffn.ffn.wide import WideLinear, at_least_float32


class SparseExperts(nn.Module):
    """N experts with weights of their own, of which each token uses K.

    Source: the MoE baseline of Table 2 (parameters and FLOPs agree exactly).

    Args:
        d_model: D.
        num_experts: N.
        d_expert: f, hidden neurons of one expert.
        top_k: K.
        activation: a name from `ACTIVATIONS`.
        gated: each expert is gated.

    Attributes:
        router: D -> N.
        gate_up_proj: [N, 2f, D] ([N, f, D] when not gated).
        down_proj: [N, D, f].
    """

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        d_expert: int,
        top_k: int,
        activation: str = "silu",
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.gated = num_experts, top_k, gated
        self.router = WideLinear(d_model, num_experts)
        width = 2 * d_expert if gated else d_expert
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, width, d_model))
        self.down_proj = nn.Parameter(torch.empty(num_experts, d_model, d_expert))
        self.act_fn = ACTIVATIONS[activation]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw all weights from N(0, std²)."""
        for weight in (self.router.weight, self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=std)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_k g_k W_out,k φ(W_proj,k x).

        Args:
            x: normed hidden states, [..., D].

        Returns:
            the experts' sum, [..., D], and the router logits, [..., N].
        """
        logits = at_least_float32(self.router(x))
        gates_MK, experts_MK = select_experts(logits.reshape(-1, self.num_experts), self.top_k)
        x_MD = x.reshape(-1, x.shape[-1])

        order_S = experts_MK.flatten().argsort(stable=True)
        token_S = order_S // self.top_k
        sizes_N = torch.bincount(experts_MK.flatten(), minlength=self.num_experts)
        hidden_S = grouped_linear(x_MD[token_S], self.gate_up_proj, sizes_N)
        if self.gated:
            gate_S, up_S = hidden_S.chunk(2, dim=-1)
            hidden_S = self.act_fn(gate_S) * up_S
        else:
            hidden_S = self.act_fn(hidden_S)
        output_SD = grouped_linear(hidden_S, self.down_proj, sizes_N)
        output_SD = output_SD * gates_MK.flatten()[order_S, None].to(output_SD.dtype)
        sum_MD = torch.zeros_like(x_MD, dtype=output_SD.dtype).index_add(0, token_S, output_SD)
        return sum_MD.view_as(x), logits


def grouped_linear(rows_S: Tensor, weight_Noi: Tensor, sizes_N: Tensor) -> Tensor:
    """Multiply consecutive groups of rows by their own matrix.

    Args:
        rows_S: [S, in], sorted by group.
        weight_Noi: [N, out, in].
        sizes_N: rows of each group; sums to S.

    Returns:
        [S, out]. On CUDA it is torch's grouped product, elsewhere one product for each group.
    """
    if rows_S.is_cuda and rows_S.dtype != torch.float64:  # which the grouped product lacks
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            rows_S, weight_Noi = rows_S.to(dtype), weight_Noi.to(dtype)
        offsets_N = sizes_N.cumsum(0).to(torch.int32)
        return F.grouped_mm(rows_S, weight_Noi.transpose(1, 2), offs=offsets_N)
    groups = rows_S.split(sizes_N.tolist())
    return torch.cat([F.linear(rows, w) for rows, w in zip(groups, weight_Noi, strict=True)])


class MoEFFN(DenseFFN):
    """Y = H + FFN(norm H) + Σ_k g_k E_k(norm H). Source: the MoE baseline of Table 2.

    Args:
        d_model, d_hidden: D and F.
        config: `num_experts`, `top_k` and `d_expert` (⌊F/N⌋ by default) are used.
        activation, gated: of the dense FFN and of the experts.
        dense: further arguments of `DenseFFN`.

    Raises:
        ConfigError: the config is none, or describes another variant.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        config: FFNConfig,
        *,
        activation: str = "silu",
        gated: bool = True,
        **dense: object,
    ) -> None:
        if not isinstance(config, FFNConfig) or config.variant != "moe":
            raise ConfigError(f"config={config!r} must be an FFNConfig with variant='moe'")
        super().__init__(d_model, d_hidden, activation=activation, gated=gated, **dense)  # type: ignore[arg-type]
        self.experts = SparseExperts(
            d_model,
            config.num_experts,
            config.expert_size(d_hidden),
            config.top_k,
            activation,
            gated,
        )

    def forward(self, hidden: Tensor) -> FFNOutput:
        """[..., D] -> [..., D], with the balance loss."""
        new_hidden, router_logits = moe(hidden, self.norm, self.mlp, self.experts)
        return FFNOutput(new_hidden, balance_loss(router_logits, self.experts.top_k))


def moe(
    hidden: Tensor, norm: Norm, mlp: FeedForward, experts: SparseExperts
) -> tuple[Tensor, Tensor]:
    """Dense FFN and sparse experts on one normed input: new hidden states and router logits."""
    x = norm(hidden)
    sparse, router_logits = experts(x)
    return hidden + mlp(x) + sparse, router_logits
