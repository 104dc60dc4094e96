"""`versatileffn doctor`: what is installed here, what a model gets, and whether it is right."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.cli.options import DeviceOption, choose_device
from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile
from versatileffn.cli.table import print_table
from versatileffn.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from versatileffn.analysis.selftest import Subject

NOT_ASKED = "possible, by model.set_execution('triton'); experimental"


def doctor_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint whose FFN is reused: a folder or hub id.",
            show_default="a layer of random weights",
        ),
    ] = None,
    device: DeviceOption = None,
    build: Annotated[
        bool,
        typer.Option(
            "--build", help="First compile the kernel for one loop, with a C compiler: a second."
        ),
    ] = False,
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Look at this machine: versions, extras, devices, executors, numerics and speed.

    Layers are compared with the paper's algorithms, token by token: exit code 1 if one differs.
    """
    from versatileffn.analysis import selftest
    from versatileffn.analysis.surroundings import surroundings
    from versatileffn.execution import native

    out = RecordFile(json, "doctor", [model], overwrite)
    if build:
        typer.echo(f"built {native.build()}")
    found = surroundings()
    _print_surroundings(found)
    where = choose_device(device)
    tested = [selftest.own_subject(48, 96, selftest.EXACT, where)]
    if native.load() is not None:  # which float64 doesn't take
        tested.append(selftest.own_subject(48, 96, selftest.USUAL, where))
    layers = [selftest.own_subject(512, 2048, selftest.USUAL, where)]
    if model is not None:
        layers = _layers_of(model, where)
        tested.append(selftest.most_telling(layers))
    chosen = selftest.executors(layers)
    others = selftest.alternatives(selftest.most_telling(layers))
    print_executors(model or layers[0].name, chosen, others)
    checks = [selftest.numerics(subject) for subject in tested]
    print_numerics(checks)
    timed = selftest.most_telling(layers)
    typer.echo("\nspeed, one layer on random hidden states")
    speeds = selftest.speeds(timed) if timed.layer.experts is None else []
    _print_speeds(speeds)
    out.write({
        "device": str(where), "model": model, **found, "executors": chosen, "alternatives": others,
        "numerics": checks, "speeds": speeds,
    })  # fmt: skip
    if not all(check["ok"] for check in checks):
        typer.echo(
            "error: a layer computes other numbers than it should: trust no result of this "
            "machine, reinstall torch, and report it with --json",
            err=True,
        )
        raise typer.Exit(1)


def _layers_of(model: str, device: "torch.device") -> "list[Subject]":
    """A checkpoint's layers, in float32.

    Raises:
        ConfigError: no FFN of it is reused.
        CheckpointError: it can't be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from versatileffn.analysis.selftest import subjects_of
    from versatileffn.models.checkpoint import load_checkpoint, read_config
    from versatileffn.models.family import is_reuse

    config = read_config(model)
    if not is_reuse(config):
        raise ConfigError(
            f"{model} is a dense model of Transformers' own, which carries it out: convert it with "
            "`versatileffn upcycle`, or leave it out"
        )
    loaded = load_checkpoint(AutoModelForCausalLM, model, config, dtype=torch.float32)
    return subjects_of(loaded.to(device))


def _print_surroundings(found: dict[str, Any]) -> None:
    from versatileffn.workspace.durable import size_text

    typer.echo(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    for each in found["devices"]:
        more = f"compute capability {each['capability']}" if "capability" in each else ""
        if "threads" in each:
            more = f"{each['threads']} threads of {each['cores']} cores"
            wanted = each["omp_num_threads"]
            more += f" (OMP_NUM_THREADS={wanted})" if wanted else ""
        typer.echo(
            f"{each['device']}: {each['name']}, {more}, {size_text(each['free_bytes'])} free"
        )
    compiler = found["compiler"] or "none, which torch.compile needs: install g++ or clang"
    typer.echo(f"C++ compiler: {compiler}")
    can = "built" if found["one_loop_kernel"] else "not built: `versatileffn doctor --build`"
    typer.echo(f"kernel for one loop, for decoding on the CPU with max_loops=1: {can}")
    if found["requirements"]:
        typer.echo(f"requirements: not met, {found['requirements']}")
    for name, extra in found["extras"].items():
        typer.echo(f"extra {name} ({extra['purpose']}): {extra['install'] or 'installed'}")


def print_executors(name: str, chosen: list[dict[str, Any]], others: dict[str, str | None]) -> None:
    """What a model gets, and why nothing else."""
    typer.echo(f"\n{name}")
    for row in chosen:
        typer.echo("  {work:<11} {layers} × {executor}: {reason}".format(**row))
    for other, reason in others.items():
        can = "possible" if other == "torch.compile" else NOT_ASKED
        typer.echo(f"  {other}: {can if reason is None else f'no, {reason}'}")


def print_numerics(checks: list[dict[str, Any]]) -> None:
    """Each layer's verdict."""
    typer.echo("\nnumerics, against Algorithms 1 and 2")
    for check in checks:
        errors = [f"{what} off by {error:.1e}" for what, error in check["errors"].items()]
        notes = [f"not checked: {check['skipped']}"] if check["skipped"] else []
        notes += [f"at most {check['limit']:.0e}"] if errors else []
        typer.echo(f"  {'ok' if check['ok'] else 'WRONG':<6} {check['layer']}, {check['dtype']}")
        typer.echo(f"         {'; '.join(errors + notes)}")


def _print_speeds(speeds: list[dict[str, Any]]) -> None:
    if not speeds:
        typer.echo("  not timed: its experts are real ones")
        return
    spread = "{median:.2f} ({low:.2f}–{high:.2f})"
    print_table(
        "",
        {
            "work": [row["work"] for row in speeds],
            "tokens": [str(row["tokens"]) for row in speeds],
            "loops": [f"{row['loops']:.2f}" for row in speeds],
            "tok/s": [f"{row['tokens_per_second']:,.0f}" for row in speeds],
            "× masked": [spread.format(**row["masked"]) for row in speeds],
            "× dense FFN": [spread.format(**row["dense"]) for row in speeds],
        },
    )
    for row in speeds:
        if row["masked"]["high"] < 1:
            typer.echo(
                f"  {row['work']}: running all loops for every token is faster on this layer: try "
                "model.set_execution('masked')"
            )
