"""One forking process, one shim and one set of inputs for all tests here."""

from collections.abc import Iterator

import pytest

from crash.points import Driver
from crash.workshop import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    try:
        shop = Workshop(tmp_path_factory.mktemp("crash"))
    except RuntimeError as error:
        pytest.skip(str(error))
    with shop:
        yield shop


@pytest.fixture
def driver(workshop: Workshop) -> Driver:
    return workshop.driver
