"""Whether a token folder is what `tokenize` wrote, byte for byte."""

from pathlib import Path

from versatileffn.data.meta import META_FILE, UNHASHED_FORMAT, TokenMeta
from versatileffn.errors import DataError
from versatileffn.workspace.manifest import damage, strangers


def verify_tokens(folder: str | Path) -> TokenMeta:
    """Read every file of a token folder and compare it with the digests in meta.json.

    Returns:
        What meta.json says.

    Raises:
        DataError: a file is missing, changed or not one of the folder's; or meta.json is of an
            earlier version, which has no digests.
    """
    folder = Path(folder)
    meta = TokenMeta.load(folder)
    if meta.format == UNHASHED_FORMAT:
        raise DataError(
            f"{folder}: written by an earlier version, without its files' digests, so it can't be "
            "verified; tokenize again"
        )
    found = damage(folder, meta.files)
    found += [f"{n} isn't its own" for n in strangers(folder, [*meta.files, META_FILE])]
    if found:
        more = f", and {len(found) - 1:,} more" if len(found) > 1 else ""
        raise DataError(f"{folder}: damaged ({found[0]}{more}); put that right or tokenize again")
    return meta
