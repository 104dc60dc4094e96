"""The MoE baseline: a dense FFN plus N real small experts, K for each token.

Legend: M tokens, D d_model, F d_hidden, f d_expert, N num_experts, K top_k, S = M·K assignments.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.ffn.balance import balance_loss
from versatileffn.ffn.controller import select_experts
from versatileffn.ffn.imagined import imagined_sizes, is_imagined
from versatileffn.ffn.router_bias import RouterBias
from versatileffn.ffn.view import Activation, FFNView
from versatileffn.ffn.wide import WideLinear, at_least_float32


@dataclass
class Routing:
    """How each token was routed to real experts.

    Args:
        router_logits: [..., N].
        top_k: K.
    """

    router_logits: Tensor
    top_k: int

    def balance_loss(self, mask: Tensor | None = None) -> Tensor:
        """How unevenly these tokens choose, a scalar.

        Args:
            mask: tokens that count (nonzero), of the leading shape; None counts all.
        """
        return balance_loss(self.router_logits, self.top_k, mask)


class SparseExperts(nn.Module):
    """N experts with weights of their own, of which each token uses K.

    Source: the MoE baseline of Table 2 (parameters and FLOPs agree exactly).

    Args:
        d_model: D.
        num_experts: N.
        d_expert: f, hidden neurons of one expert.
        top_k: K.
        act: φ is act(gate)·up where gated, else act(up); the dense FFN's.
        gated: each expert is gated.
        silent: W_out starts at 0, so that at first the experts add nothing.
        router_bias: evens out the experts' loads; None doesn't.

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
        act: Activation = F.silu,
        gated: bool = True,
        silent: bool = False,
        router_bias: RouterBias | None = None,
    ) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.gated = num_experts, top_k, gated
        self.silent, self.router_bias = silent, router_bias
        self.router = WideLinear(d_model, num_experts)
        width = 2 * d_expert if gated else d_expert
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, width, d_model))
        self.down_proj = nn.Parameter(torch.empty(num_experts, d_model, d_expert))
        self.act_fn = act
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw all weights from N(0, std²); W_out is 0 where experts start silent."""
        for weight in (self.router.weight, self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=std)
        if self.silent:
            nn.init.zeros_(self.down_proj)
        if self.router_bias is not None:
            self.router_bias.reset_parameters()

    def beside(self, hidden: Tensor, view: FFNView) -> tuple[Tensor, Routing]:
        """post(FFN(norm H) + Σ_k g_k E_k(norm H)), [..., D] -> [..., D], and the routing."""
        x = view.norm(hidden)
        sparse, router_logits = self(x)
        out = view.down(view.phi(view.project(x))) + sparse
        out = out if view.post_norm is None else view.post_norm(out)
        return out, Routing(router_logits, self.top_k)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_k g_k W_out,k φ(W_proj,k x).

        Args:
            x: normed hidden states, [..., D].

        Returns:
            the experts' sum, [..., D], and the router logits, [..., N].
        """
        logits = at_least_float32(self.router(x))
        gates_MK, experts_MK = select_experts(
            logits.reshape(-1, self.num_experts), self.top_k, self.router_bias
        )
        x_MD = x.reshape(-1, x.shape[-1])

        order_S = experts_MK.flatten().argsort(stable=True)
        token_S = order_S // self.top_k
        sizes_N = self._sizes(experts_MK)
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

    def _sizes(self, experts_MK: Tensor) -> Tensor:
        """How many assignments each expert has, [N]."""
        if is_imagined(experts_MK):
            return experts_MK.new_empty(self.num_experts)
        return torch.bincount(experts_MK.flatten(), minlength=self.num_experts)


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
    imagined = is_imagined(sizes_N)
    sizes = imagined_sizes(len(rows_S), len(sizes_N)) if imagined else sizes_N.tolist()
    groups = rows_S.split(sizes)
    return torch.cat([F.linear(rows, w) for rows, w in zip(groups, weight_Noi, strict=True)])
