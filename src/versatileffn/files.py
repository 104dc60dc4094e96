"""Where `versatileffn.workspace` was; on its way out."""

from versatileffn.workspace.durable import PARTIAL, beside, check_file, write_json, writing
from versatileffn.workspace.folder import check_free, new_folder
from versatileffn.workspace.lock import LOCK, locked

__all__ = [
    "LOCK",
    "PARTIAL",
    "beside",
    "check_file",
    "check_free",
    "locked",
    "new_folder",
    "write_json",
    "writing",
]
