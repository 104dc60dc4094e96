"""Where a token folder may be put, beyond what holds for every folder."""

import os
from pathlib import Path

from versatileffn.data.meta import META_FILE
from versatileffn.errors import DataError
from versatileffn.workspace.folder import check_free


def check_output(output: str | Path, overwrite: bool, source: str | Path | None) -> Path:
    """The folder to write, links followed.

    Args:
        output: what the user named.
        overwrite: whether an existing token folder may be replaced.
        source: the corpus, which must not be replaced with it.

    Raises:
        DataError: it may not or can't be written.
    """
    try:
        path = Path(output).resolve()
        str(path).encode("utf-8")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{output}: a link that can't be followed; choose another --out") from error
    except UnicodeEncodeError as error:  # the tokenizer's path must be
        raise DataError(f"{output}: the name isn't valid UTF-8; choose another --out") from error
    if Path.cwd().is_relative_to(path):
        raise DataError(
            f"{path}: the current folder lies here and can't be replaced; name a new folder, such "
            "as --out tokens"
        )
    target = check_free(path, META_FILE, overwrite, error_class=DataError)
    if source and os.path.exists(source) and Path(source).resolve().is_relative_to(target):
        raise DataError(f"{path}: holds the corpus {source}; choose another --out")
    return target
