"""The paper's own numbers at 354M parameters, to be cited beside ours and never mixed with them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CitedRow:
    """One row of the paper's tables at 354M, as printed.

    Args:
        model: its name in the paper.
        parameters: billions.
        ffn_gflops: FFN GFLOPs per token, the paper's accounting.
        loss: final loss, nats per token.
        accuracy: mean zero-shot accuracy over eight tasks, percent.
        source: where in the paper.
    """

    model: str
    parameters: str
    ffn_gflops: str
    loss: str
    accuracy: str
    source: str


# arXiv 2512.14531v2: 354M parameters, 40B tokens of FineWeb-Edu, then one more epoch of them.
CITED_354M = (
    CitedRow("Base (not continued)", "0.35", "0.38", "2.779", "47.98", "Tables 1, 2"),
    CitedRow("1-loop (dense, continued)", "0.35", "0.38", "2.654", "50.09", "Figure 3"),
    CitedRow("2-Loop", "0.35", "0.75", "2.631", "51.47", "Tables 1, 2"),
    CitedRow("4-Loop", "0.35", "1.50", "2.625", "51.98", "Tables 1, 2"),
    CitedRow("MoE", "0.54", "0.47", "2.585", "51.48", "Tables 1, 2"),
    CitedRow("VersatileFFN", "0.35", "1.24", "2.617", "52.33", "Tables 1, 2"),
)
