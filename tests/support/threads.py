"""How many threads a test computes on."""

from collections.abc import Iterator

import torch


def one_thread() -> Iterator[None]:
    """The body of a fixture: models as small as tests' only lose by sharing work among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
