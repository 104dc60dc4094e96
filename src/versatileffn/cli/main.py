"""`versatileffn`: one verb for each job."""

import os
import sys

import typer

from versatileffn.cli.bench import bench_command
from versatileffn.cli.evaluate import evaluate_command
from versatileffn.cli.flops import flops_command
from versatileffn.cli.perplexity import perplexity_command
from versatileffn.cli.reproduce import reproduce_command
from versatileffn.cli.tokenize import tokenize_command
from versatileffn.cli.train import train_command
from versatileffn.cli.upcycle import upcycle_command
from versatileffn.errors import VersatileFFNError
from versatileffn.signals import EXIT_CODES, ending

CONTINUED = {"tokenize", "train", "evaluate", "reproduce", "bench"}
"""The verbs that go on where they were stopped."""

app = typer.Typer(
    help="Adaptive wide-and-deep reuse of feed-forward networks in language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("upcycle")(upcycle_command)
app.command("tokenize")(tokenize_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("perplexity")(perplexity_command)
app.command("flops")(flops_command)
app.command("reproduce")(reproduce_command)
app.command("bench")(bench_command)


def main() -> None:
    """Run the command line; what the user caused ends in one line and exit code 1."""
    try:
        with ending():
            app()
    except VersatileFFNError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code in EXIT_CODES and os.environ.get("RANK", "0") == "0":
            again = ": run the same command again to continue"
            print(f"stopped{again if set(sys.argv) & CONTINUED else ''}", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
