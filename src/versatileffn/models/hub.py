"""The Hub is asked once whether it can be reached, and loaders are told."""

from functools import cache
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

TIMEOUT = 10
"""Seconds."""


@cache
def hub_options(name: str) -> dict[str, Any]:
    """What a loader needs to be told for the id of a repository of models.

    Without a network it takes what was downloaded before; left alone, it would try again and again
    for half a minute.

    Raises:
        HfHubHTTPError: the Hub answers that there is no such repository, or not for this user.
    """
    try:
        HfApi().model_info(name, timeout=TIMEOUT)
    except HfHubHTTPError:
        raise
    except Exception:  # which one depends on the HTTP library
        return {"local_files_only": True}
    return {}
