"""`versatileffn plan`: what a run will take, before it is started."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile
from versatileffn.cli.table import print_table
from versatileffn.planning.gpus import UTILISATION

if TYPE_CHECKING:
    from versatileffn.planning.gpus import Gpu
    from versatileffn.planning.plan import Form, Mode, RunPlan

GIB = 2**30


def plan_command(
    config: Annotated[Path, typer.Argument(help="YAML file, as `train` takes it.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value; repeatable."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many, with a process on each.")] = 1,
    gpu: Annotated[
        str | None, typer.Option(help="Which: h200, h100, a100, …", show_default=False)
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.1, help="GiB of one GPU, instead of the table's.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Its dense bfloat16 TFLOP/s, instead of the table's."),
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Share of that which the run will reach.")
    ] = UTILISATION,
    mean_loops: Annotated[
        float | None,
        typer.Option(help="Mean loops of tokens that choose them.", show_default="max_loops"),
    ] = None,
    modes: Annotated[
        bool, typer.Option("--modes", help="Memory in every mode, too: takes minutes.")
    ] = False,
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Parameters, memory of one process by part, FLOPs, days and GPU-hours of a training run.

    A step runs on tensors that take no memory, so this needs no GPU and no data.
    """
    from versatileffn.planning.gpus import find_gpu
    from versatileffn.planning.plan import RunPlan, plan_record
    from versatileffn.training.config import load_config

    out = RecordFile(json, "plan", [config], overwrite)
    chosen = find_gpu(gpu, memory, tflops)
    plan = RunPlan(load_config(config, set_ or []), gpus, mean_loops)
    with Console(stderr=True).status("running a step without memory") as status:
        own = [plan.mode(strategy) for strategy in plan.strategies]
        others = list(plan.modes(status.update)) if modes else []
        forms = plan.forms(chosen, utilisation)
    _print(plan, chosen, utilisation, own, forms)
    if others:
        _print_modes(plan, chosen, others)
    record = plan_record(plan, chosen, forms, others or own)
    out.write(record | {"config": str(config), "utilisation": utilisation})


def _print(
    plan: "RunPlan", gpu: "Gpu", utilisation: float, own: "list[Mode]", forms: "list[Form]"
) -> None:
    """The run, the memory of its own settings, and its time beside other forms'."""
    batches, run = plan.batches, plan.config.run
    settings = f"{run.execution}, {'bf16' if run.bf16 else 'float32'}"
    settings += ", gradient checkpointing" if run.gradient_checkpointing else ""
    typer.echo(
        f"{plan.parameters:,} parameters, {plan.tokens / 1e9:,.3g}B tokens in "
        f"{batches.max_steps:,} steps, on {plan.gpus} × {gpu.name} ({gpu.gib:g} GiB, "
        f"{gpu.tflops:g} TFLOP/s): {batches.accumulation} micro-batches of "
        f"{batches.micro_batch} windows of {plan.config.data.seq_len:,} tokens each"
    )
    parts = list(dict.fromkeys(part for mode in own for part in mode.parts))
    shown = {"part": [*parts, "[bold]peak[/bold]"]}
    for mode in own:
        cells = [*(mode.parts.get(part, 0) for part in parts), mode.peak]
        name = mode.strategy if plan.gpus > 1 else "one process"
        shown[name] = [f"{value / GIB:,.3f}" for value in cells]
    print_table(f"GiB of one process at its peak ({settings})", shown)
    for mode in own:
        typer.echo(f"{mode.strategy if plan.gpus > 1 else 'memory'}: {_verdict(mode, plan, gpu)}")
    days = [form.gpu_hours / plan.gpus / 24 for form in forms]
    print_table(
        f"At {utilisation:.0%} of the peak",
        {
            "form": [f"[bold]{form.name}[/bold]" if form.own else form.name for form in forms],
            "parameters": [f"{form.parameters:,}" for form in forms],
            "GFLOPs per token": [f"{form.flops / 1e9:,.3g}" for form in forms],
            "GPU-hours": [f"{form.gpu_hours:,.3g}" for form in forms],
            "days": [f"{day:,.3g}" for day in days],
        },
    )
    typer.echo(
        f"FLOPs: matrix products forward and backward, recomputation left out; {utilisation:.0%} "
        "is an assumption (--utilisation); evaluation and saving aren't counted."
    )
    if plan.mean_loops > 1:
        typer.echo(
            f"Tokens that choose are taken to loop {plan.mean_loops:g} times (--mean-loops)."
        )


def _verdict(mode: "Mode", plan: "RunPlan", gpu: "Gpu") -> str:
    """Whether it fits, and how many windows would."""
    from versatileffn.planning.plan import USABLE

    least = mode.windows(gpu, plan.batches.micro_batch)
    room = f"{USABLE:.0%} of {gpu.gib:g} GiB"
    if mode.fits(gpu):
        return f"fits into {room}; so would {least} windows at once"
    smaller = f"{least} at once would" if least else "nor would one window at once"
    return f"does not fit into {room}: {smaller} (run.per_device_train_batch_size)"


def _print_modes(plan: "RunPlan", gpu: "Gpu", modes: "list[Mode]") -> None:
    """The peak in every mode; what doesn't fit is marked."""
    columns = list(dict.fromkeys((mode.strategy, mode.bf16) for mode in modes))
    rows = list(dict.fromkeys((mode.execution, mode.gradient_checkpointing) for mode in modes))
    found = {
        (m.strategy, m.bf16, m.execution, m.gradient_checkpointing): (m.peak, m.fits(gpu))
        for m in modes
    }

    def cell(key: Any) -> str:
        peak, fits = found[key]
        return f"{peak / GIB:,.2f}{'' if fits else ' !'}"

    shown = {"execution": [name + (", checkpointing" if again else "") for name, again in rows]}
    for strategy, bf16 in columns:
        heading = f"{strategy if plan.gpus > 1 else ''} {'bf16' if bf16 else 'float32'}".strip()
        shown[heading] = [cell((strategy, bf16, name, again)) for name, again in rows]
    print_table("GiB of one process at its peak, in every mode; ! doesn't fit", shown)
