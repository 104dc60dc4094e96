"""`versatileffn export` and `push`: a model for others, who needn't have this package."""

from pathlib import Path
from typing import Annotated

import typer

OUT_HELP = "Folder to write; must not exist or be empty."


def export_command(
    model: Annotated[str, typer.Argument(help="Checkpoint of ours: a folder or a hub id.")],
    out: Annotated[Path, typer.Argument(help=OUT_HELP)],
    results: Annotated[
        Path | None,
        typer.Option(help="results.json of `versatileffn evaluate MODEL`, for the card."),
    ] = None,
    dense: Annotated[
        bool,
        typer.Option(
            "--dense", help="Write the dense model instead; only where all learned gains are 0."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if all in it is this command's.")
    ] = False,
) -> None:
    """Write a folder that loads with trust_remote_code=True where this package isn't installed.

    With --dense it holds the dense model that the reuse model computes, and needs no code.
    """
    from versatileffn.errors import ConfigError
    from versatileffn.models.source import check_source
    from versatileffn.publish.export import export, export_dense
    from versatileffn.workspace.manifest import read_record

    check_source(model)
    if dense and results is not None:
        raise ConfigError("--dense writes no card that --results could go into: leave one out")
    found = read_record(results) if results is not None else None
    if results is not None and found is None:
        raise ConfigError(f"{results} can't be read as JSON: name a results.json")
    if dense:
        notes = export_dense(model, out, overwrite=overwrite)
        typer.echo(f"written to {out}; it is a dense model and needs no code of this package")
    else:
        notes = export(model, out, overwrite=overwrite, results=found)
        typer.echo(
            f"written to {out}; it loads with trust_remote_code=True, see {out / 'README.md'}"
        )
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def push_command(
    folder: Annotated[Path, typer.Argument(help="What `versatileffn export` wrote.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub; made if need be.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a repository that others don't see.")
    ] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Upload although files were edited, as a card is.")
    ] = False,
) -> None:
    """Upload an exported folder to the Hub, as whoever is logged in there."""
    from versatileffn.publish.push import push

    typer.echo(push(folder, repo, private=private, changed=changed))
