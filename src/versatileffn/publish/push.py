"""An exported folder on the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token

from versatileffn.errors import ConfigError, ResourceError
from versatileffn.models.source import first_line
from versatileffn.publish.export import RECORD
from versatileffn.workspace.lock import LOCK
from versatileffn.workspace.manifest import damage, files_of, read_record, strangers


def push(folder: Path, repo: str, *, private: bool = False, changed: bool = False) -> str:
    """Upload what `export` wrote.

    Args:
        folder: it.
        repo: `owner/name`; made if need be.
        private: make it one that others don't see.
        changed: files may have been edited since, as a card is.

    Returns:
        the commit's address.

    Raises:
        ConfigError: the folder is no export or was changed, or nobody is logged in.
        ResourceError: the Hub can't be reached, or refuses.
    """
    files = files_of(read_record(folder / RECORD))
    if files is None:
        raise ConfigError(
            f"{folder} has no {RECORD} that lists its files: give a folder that `versatileffn "
            "export` wrote"
        )
    edited = damage(folder, files)
    if edited and not changed:
        raise ConfigError(
            f"{folder} isn't as it was exported ({edited[0]}): export again, or pass --changed"
        )
    foreign = [name for name in strangers(folder, files) if name not in (RECORD, LOCK)]
    if foreign:
        raise ConfigError(
            f"{folder} holds {foreign[0]}, which `versatileffn export` didn't write: move it away, "
            "so that nothing goes out with the model that shouldn't"
        )
    token = get_token()
    if token is None:
        raise ConfigError(
            "nobody is logged in at the Hub: run `hf auth login`, or set HF_TOKEN to a token that "
            "may write"
        )
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[*files, RECORD],
            commit_message="A model that versatileffn exported",
        )
    except (OSError, ValueError, RuntimeError) as error:  # the HTTP library's are of these
        raise ResourceError(
            f"{repo} can't be written ({first_line(error)}): see whether the name, the token and "
            "the network are right, then run the same command again"
        ) from error
    return str(done.commit_url)
