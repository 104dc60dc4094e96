"""`versatileffn`: one verb for each job."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from versatileffn.cli.analyze import analyze_command
from versatileffn.cli.bench import bench_command
from versatileffn.cli.calibrate import calibrate_command
from versatileffn.cli.chat import chat_command
from versatileffn.cli.doctor import doctor_command
from versatileffn.cli.evaluate import evaluate_command
from versatileffn.cli.export import export_command, push_command
from versatileffn.cli.failures import DEBUG, debugging, explain, print_traceback
from versatileffn.cli.flops import flops_command
from versatileffn.cli.generate import generate_command
from versatileffn.cli.options import loads_checkpoints
from versatileffn.cli.perplexity import perplexity_command
from versatileffn.cli.plan import plan_command
from versatileffn.cli.reproduce import reproduce_command
from versatileffn.cli.tokenize import tokenize_command
from versatileffn.cli.train import train_command
from versatileffn.cli.upcycle import upcycle_command
from versatileffn.cli.verify import verify_command
from versatileffn.imports import import_modules
from versatileffn.provenance import versions
from versatileffn.signals import EXIT_CODES, ending

CONTINUED = {"tokenize", "train", "evaluate", "reproduce"}
"""The verbs that go on where they were stopped."""

app = typer.Typer(
    help="Adaptive wide-and-deep reuse of feed-forward networks in language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "upcycle": (loads_checkpoints(upcycle_command), "SOURCE OUT"),
    "tokenize": (loads_checkpoints(tokenize_command), "CORPUS --out data/tokens"),
    "train": (loads_checkpoints(train_command), "run.yaml --set optim.learning_rate=1e-3"),
    "plan": (loads_checkpoints(plan_command), "run.yaml --gpus 8 --gpu h200"),
    "evaluate": (loads_checkpoints(evaluate_command), "DENSE REUSED --compare"),
    "perplexity": (loads_checkpoints(perplexity_command), "MODEL held-out.txt"),
    "calibrate": (loads_checkpoints(calibrate_command), "MODEL held-out.txt --figure curve.svg"),
    "generate": (loads_checkpoints(generate_command), 'MODEL "Once upon a time" --budget 2'),
    "chat": (loads_checkpoints(chat_command), "MODEL --show-loops"),
    "flops": (loads_checkpoints(flops_command), "MODEL --measure held-out.txt"),
    "analyze": (loads_checkpoints(analyze_command), "tokens MODEL story.txt"),
    "reproduce": (reproduce_command, "--scale tiny --seeds 3 --out runs/tiny"),
    "export": (loads_checkpoints(export_command), "MODEL OUT"),
    "push": (push_command, "OUT owner/name"),
    "bench": (loads_checkpoints(bench_command), "MODEL DENSE --budget 1 --work decode"),
    "doctor": (loads_checkpoints(doctor_command), "MODEL"),
    "verify": (verify_command, "runs/tiny"),
}
"""What each verb does, and an example of its arguments."""
for name, (command, arguments) in VERBS.items():
    app.command(name, epilog=f"Example: versatileffn {name} {arguments}")(command)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"versatileffn {versions()['versatileffn']}")
        raise typer.Exit


@app.callback()
def every_command(
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show tracebacks, as {DEBUG}=1 does.")
    ] = False,
    import_: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Run a Python module, or a .py file, of your own first: a controller that "
            "registers itself. Repeatable.",
        ),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_tell_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Adaptive wide-and-deep reuse of feed-forward networks in language models."""
    if debug:
        os.environ[DEBUG] = "1"
    import_modules(import_ or [])


def main() -> None:
    """Run the command line; what user or machine caused ends in one line and exit code 1."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    try:
        with ending():
            app()
    except SystemExit as stop:
        if stop.code in EXIT_CODES and os.environ.get("RANK", "0") == "0":
            again = ": run the same command again to continue"
            print(f"stopped{again if set(sys.argv) & CONTINUED else ''}", file=sys.stderr)
        raise
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        if debugging():
            print_traceback(error)
        print(line, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
