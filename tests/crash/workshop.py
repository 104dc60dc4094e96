"""The shim, the forking process, the inputs: made once, used by every case."""

from pathlib import Path
from types import TracebackType

from crash.cases import VERB, input_commands, write_inputs
from crash.points import Driver, compiled_shim
from support.zygote import Zygote


class Workshop:
    """A folder with `inputs/` and `root/`, and what runs commands there.

    Args:
        place: an empty folder.
        with_inputs: tokenize and train what the cases read.

    Raises:
        RuntimeError: no C compiler, or the inputs can't be made.
    """

    def __init__(self, place: Path, with_inputs: bool = True) -> None:
        self.inputs = place / "inputs"
        self.zygote = Zygote(place / "log", compiled_shim(place))
        (place / "root").mkdir()
        self.driver = Driver(self.zygote, place / "root", place)
        if with_inputs:
            write_inputs(self.inputs)
            for command in input_commands(self.inputs):
                ended = self.driver.run([VERB, *command])
                if ended.code:
                    raise RuntimeError(f"the inputs can't be made: {ended.output[-2000:]}")

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.driver.close()
        self.zygote.close()
