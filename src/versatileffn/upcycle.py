"""Turn a dense checkpoint into a reuse model, with a receipt that says exactly what changed."""

import dataclasses
import logging
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import Versatile
from versatileffn.imports import imported
from versatileffn.layer import NEW_TENSORS
from versatileffn.memory import raise_out_of_memory
from versatileffn.models.checkpoint import load_checkpoint, read_config
from versatileffn.models.family import is_reuse, model_class, reuse_config
from versatileffn.models.layer import ReuseLayer
from versatileffn.models.pretrained import new_tensors_drawn
from versatileffn.models.tokenizer import load_own_tokenizer
from versatileffn.models.trust import RemoteCodeError, remote_code
from versatileffn.workspace.durable import write_json
from versatileffn.workspace.manifest import FILES, digests

RECEIPT = "receipt.json"
PROBE_TEXT = (
    "A feed-forward network is a function of one vector. Slices of it are smaller functions, and "
    "applying it again makes a deeper one; how much of either a word needs, the word should say."
)
PROBE_TOKENS = 64
"""Length of the probe where the checkpoint carries no tokenizer: evenly spaced token ids."""
EXACT = "0 but for rounding: until it is trained, it computes the dense model's function"
FAR = (
    "large: the paper's form is far from the dense model and writes gibberish until it is "
    "trained; for an exact start use --gains learned (reuse_gains='learned')"
)
FROM_ELSEWHERE = (
    "large: with gains that start at {:g}, loops and experts change what the dense model computes "
    "until they are trained; for an exact start use --gain-init 0 (gain_init=0)"
)
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""What greedy generation ignores, and Transformers refuses to save beside it."""


@dataclass(frozen=True)
class Receipt:
    """What upcycling did.

    Args:
        source: path or hub id of the dense checkpoint.
        variant: what it became.
        ffn: the variant and its knobs.
        layers: how many there are.
        reused_layers: indices of those whose FFN is reused, from 0.
        parameters_before, parameters_after: counts, tied weights once.
        new_tensors: shapes of the tensors that the dense checkpoint doesn't have.
        family: the dense checkpoint's model type.
        layout: where the norms stand, and what the width pathway costs for it.
        unused_neurons: hidden neurons per layer that belong to no virtual expert.
        dtype: in which both models were compared.
        probe_tokens: length of the probe text in tokens.
        logit_difference: max |reuse − dense| over the probe's logits.
        logit_scale: max |dense| over the same logits.
        expected: what the difference should be, and what to do where that isn't wanted.
        imports: digests of the user's own code that was imported before.
    """

    source: str
    variant: str
    ffn: dict[str, Any]
    layers: int
    reused_layers: list[int]
    parameters_before: int
    parameters_after: int
    new_tensors: dict[str, list[int]]
    family: str
    layout: str
    unused_neurons: int
    dtype: str
    probe_tokens: int
    logit_difference: float
    logit_scale: float
    expected: str
    imports: dict[str, str] = dataclasses.field(default_factory=imported)

    def to_dict(self) -> dict[str, Any]:
        """The receipt as plain data."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the receipt as JSON."""
        write_json(Path(path), self.to_dict())

    def __str__(self) -> str:
        """The receipt as lines for a terminal."""
        added = self.parameters_after - self.parameters_before
        growth = 100 * added / self.parameters_before
        shapes = sorted({f"{_leaf(n)} {tuple(s)}" for n, s in self.new_tensors.items()})
        lines = {
            "source": f"{self.source} ({self.family})  ->  {self.variant}",
            "parameters": f"{self.parameters_before:,} -> {self.parameters_after:,} "
            f"(+{added:,}, {growth:.3f} %)",
            "new tensors": f"{len(self.new_tensors)}: {', '.join(shapes) or 'none'}",
            "layout": self.layout,
            "logit difference": f"{self.logit_difference:.3g} at most, of logits up to "
            f"{self.logit_scale:.3g} ({self.probe_tokens} tokens, {self.dtype})",
            "expected": self.expected,
        }
        if len(self.reused_layers) < self.layers:
            lines["reused layers"] = f"{self.reused_layers} of 0 to {self.layers - 1}"
        if self.unused_neurons:
            lines["unused neurons"] = f"{self.unused_neurons} per layer belong to no expert"
        return "\n".join(f"{name:>16}  {value}" for name, value in lines.items())


def upcycle(
    source: str | Path,
    config: FFNConfig | None = None,
    *,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> tuple[Any, Receipt]:
    """Turn a dense checkpoint into a model whose FFN is reused.

    With `reuse_gains="learned"` the new model computes the dense model's function exactly; with
    `fixed` it has the paper's form, which is far from it until it is trained. Real experts (`moe`)
    start with W_out = 0 when gains are learned. Weights are read once, file by file, and both
    models share them while they are compared.

    Args:
        source: a dense checkpoint of a family in docs/families.md: a folder, a hub id, or a .gguf
            file.
        config: the variant. None is the paper's reuse with learned gains; `Versatile()` itself is
            the paper's form, with fixed ones.
        seed: of the new tensors' initialization.
        trust_remote_code: run Python code that lies with the checkpoint or its tokenizer.

    Returns:
        the model, in the checkpoint's dtype and in evaluation mode, and the receipt.

    Raises:
        CheckpointError: the checkpoint can't be read, isn't dense, is of another family, lacks
            weights, computes no numbers, or brings code that isn't trusted.
        ConfigError: the reuse doesn't fit the checkpoint's FFN, or the seed is out of range.
        ResourceError: the model doesn't fit into memory.
    """
    config = Versatile(reuse_gains="learned") if config is None else config
    if not isinstance(config, FFNConfig):
        raise ConfigError(f"config={config!r} must be a Versatile, KLoop, MoE or Dense")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed!r} must be a whole number from 0 to 2^63 - 1")
    with remote_code(trust_remote_code), torch.random.fork_rng(devices=[]):
        dense_config = read_dense_config(source)
        new_config = reuse_config(dense_config, config)
        new_class = model_class(new_config)
        torch.manual_seed(seed)
        dense = load_checkpoint(model_class(dense_config), source, dense_config)
        probe_ids = probe(source, dense_config.vocab_size)
        expected = _logits(dense, probe_ids)
        if not expected.isfinite().all():
            raise CheckpointError(
                f"{source} computes NaN or infinity from finite weights: its config.json may be "
                "wrong, or its dtype too narrow"
            )
        weights = dense.state_dict()
        with new_tensors_drawn():
            model = load_checkpoint(new_class, source, new_config, NEW_TENSORS, weights=weights)
    model.generation_config = _generation_config(dense, source)
    layers = model.reuse_layers()
    reused = [index for index in range(len(layers)) if config.at_layer(index) == config]
    return model, Receipt(
        source=str(source),
        variant=config.variant,
        ffn=config.to_dict(),
        layers=len(layers),
        reused_layers=reused,
        parameters_before=dense.num_parameters(),
        parameters_after=model.num_parameters(),
        new_tensors={
            name: list(tensor.shape)
            for name, tensor in model.state_dict().items()
            if name not in weights
        },
        family=dense_config.model_type,
        layout=layout(layers[reused[0]], model.config),
        unused_neurons=config.unused_neurons(layers[0].ffn_view().down.in_features),
        dtype=str(model.dtype).removeprefix("torch."),
        probe_tokens=probe_ids.shape[-1],
        logit_difference=(_logits(model, probe_ids) - expected).abs().max().item(),
        logit_scale=expected.abs().max().item(),
        expected=_expected(config),
    )


def _expected(config: FFNConfig) -> str:
    """What the difference to the dense model should be, and what to do where that isn't wanted."""
    start = getattr(config, "gain_init", 0.0)
    if config.starts_exactly:
        return EXACT
    return FAR if not start else FROM_ELSEWHERE.format(start)


def save_upcycled(model: Any, receipt: Receipt, folder: Path, tokenizer: Any = None) -> None:
    """Write a model, its tokenizer where there is one, and last the receipt with all digests."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_json(folder / RECEIPT, {**receipt.to_dict(), FILES: digests(folder)})


def layout(layer: ReuseLayer, config: PreTrainedConfig) -> str:
    """Where a family's norms stand, and what the width pathway costs for it."""
    view, family, ffn = layer.ffn_view(), layer.family, layer.reuse_config
    places = (("pre", layer.norm_name), ("post", family.post_norm))
    said = " and ".join(f"{place}-norm" for place, norm in places if norm is not None)
    if isinstance(ffn, Versatile) and ffn.uses_width:
        said += (
            ": width is a blend of loop 1's activations, no matrix product"
            if view.merges
            else ": the width pathway pays its own down-projection, none while s = 0"
        )
    if family.parallel or getattr(config, "use_parallel_residual", False):
        said += "; beside attention: decisions read the residual stream before the layer"
    return said if view.scale == 1 else f"{said}; residual scale {view.scale:g}"


def is_dense(config: PreTrainedConfig) -> bool:
    """Whether a config is a dense model's: as it came, or of our variant of that name."""
    return not is_reuse(config) or config.ffn().variant == "dense"


def read_dense_config(source: str | Path) -> Any:
    """The config of a dense checkpoint of a supported family.

    Raises:
        CheckpointError: it can't be read, isn't dense, is quantized, or is of another family.
    """
    config = read_config(source)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{source} is quantized: upcycle the unquantized checkpoint, and quantize the result"
        )
    if not is_dense(config):
        raise CheckpointError(
            f"{source} is already a {config.ffn().variant} model: upcycle its dense base instead"
        )
    return config


def probe(source: str | Path, vocab_size: int) -> Tensor:
    """Token ids of the probe text, [1, T]; evenly spaced ids where there is no tokenizer."""
    try:
        ids = load_own_tokenizer(source)(PROBE_TEXT, return_tensors="pt").input_ids
        if ids.numel() and ids.max() < vocab_size:
            return ids
    except RemoteCodeError:
        raise
    except Exception as error:
        raise_out_of_memory(error)
        # A checkpoint needs no tokenizer to be upcycled, and loaders fail in many ways.
        logging.getLogger(__name__).debug("no tokenizer in %s: %s", source, error)
    return torch.linspace(0, vocab_size - 1, PROBE_TOKENS).long()[None]


def _generation_config(dense: PreTrainedModel, source: str | Path) -> GenerationConfig:
    """The dense model's, stop tokens and all, so that it can be saved."""
    settings: GenerationConfig = deepcopy(dense.generation_config)
    if not settings.do_sample:
        for name in SAMPLING:
            setattr(settings, name, None)
    try:
        settings.validate(strict=True)
    except ValueError:
        kept = GenerationConfig.from_model_config(dense.config)
        kept.eos_token_id = settings.eos_token_id
        warnings.warn(
            f"the generation_config.json of {source} contradicts itself: only its end tokens are "
            "carried over",
            stacklevel=3,
        )
        return kept
    return settings


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    longest = getattr(model.config, "max_position_embeddings", ids.shape[-1])
    return model(ids[:, :longest]).logits.float()


def _leaf(name: str) -> str:
    """A tensor's name inside its layer."""
    return ".".join(part for part in name.split(".")[3:] if part != "weight")
