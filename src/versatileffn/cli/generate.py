"""`versatileffn generate`: let a model go on from a prompt, by a budget."""

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.cli.options import Bf16Option, DeviceOption, choose_device, precision
from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile
from versatileffn.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

MOST_TOKENS = 256
"""By default."""


def generate_command(
    model: Annotated[str, typer.Argument(help="Checkpoint: a folder, hub id or .gguf file.")],
    prompt: Annotated[str, typer.Argument(help="What the text begins with, or what is asked.")],
    budget: Annotated[
        int | None, typer.Option(help="Most loops of a token; 1 costs what the dense model costs.")
    ] = None,
    mean_loops: Annotated[
        float | None,
        typer.Option(help="Loops of a token on average, by the curve of `versatileffn calibrate`."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop after so many tokens.", show_default=f"{MOST_TOKENS}, if they fit"
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of sampling; 0 takes the likeliest token.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat/--plain", help="Use the tokenizer's chat template, if any.")
    ] = True,
    device: DeviceOption = None,
    bf16: Bf16Option = False,
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write on from a prompt, token by token, and say how fast.

    Example: versatileffn generate MODEL "Once upon a time" --budget 2
    """
    import torch
    from transformers import TextStreamer

    from versatileffn.budget import compute_budget
    from versatileffn.evaluation.tasks.loading import load_subject
    from versatileffn.models.checkpoint import quiet_transformers
    from versatileffn.provenance import device_name

    out = RecordFile(json, "generate", [model], overwrite)
    subject = load_subject(model, precision(bf16), choose_device(device))
    words, network = subject.tokenizer, subject.model
    ids = _read(prompt, words, chat).to(network.device)
    new = _room(ids.shape[1], max_new_tokens, network)
    asked = budget is not None or mean_loops is not None
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature:
        options["temperature"] = temperature
    torch.manual_seed(seed)
    with (
        compute_budget(network, budget, mean_loops) if asked else nullcontext(),
        quiet_transformers(),
    ):
        began = time.perf_counter()
        text_T = network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
            streamer=TextStreamer(words, skip_prompt=True, skip_special_tokens=True), **options,
        )[0, ids.shape[1] :]  # fmt: skip
        seconds = time.perf_counter() - began
    typer.echo(f"{len(text_T)} tokens, {len(text_T) / seconds:.1f} tokens/s", err=True)
    out.write(
        {
            "device": device_name(network.device),
            "dtype": "bfloat16" if bf16 else "float32",
            "model": model,
            "prompt": prompt,
            "prompt_tokens": ids.shape[1],
            "max_loops": budget,
            "mean_loops": mean_loops,
            "temperature": temperature,
            "seed": seed,
            "text": words.decode(text_T, skip_special_tokens=True),
            "tokens": len(text_T),
            "seconds": seconds,
        }
    )


def _read(prompt: str, words: Any, chat: bool) -> "Tensor":
    """The prompt's tokens, [1, T].

    Raises:
        ConfigError: there is none.
    """
    ids: Tensor
    if chat and getattr(words, "chat_template", None):
        said = [{"role": "user", "content": prompt}]
        ids = words.apply_chat_template(
            said, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
    else:
        ids = words(prompt, return_tensors="pt")["input_ids"]
    if not ids.numel():
        raise ConfigError("the prompt is empty: give at least a word")
    return ids


def _room(length: int, wanted: int | None, network: Any) -> int:
    """How many tokens may follow.

    Raises:
        ConfigError: the model doesn't take so many.
    """
    from versatileffn.evaluation.tasks.loading import context_length

    context = context_length(network)
    if length + (wanted or 1) > context:
        raise ConfigError(
            f"a prompt of {length} tokens and {wanted or 1} to follow are more than the {context} "
            "that the model takes: shorten the prompt"
            + (", or lower --max-new-tokens" if wanted and wanted > 1 else "")
        )
    return wanted or min(MOST_TOKENS, context - length)
