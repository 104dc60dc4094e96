"""Runs a command once, seeing each of its changes; runs it again from what each would leave."""

import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crash.disk import Disk, Tree, lay_out
from support.zygote import Ended, Zygote

SHIM = Path(__file__).with_name("shim.c")
THE_END = "the end"
SHORT = 255  # an answer to the shim: half of the write happens
SECONDS = 300.0  # without a word: the command hangs


@dataclass(frozen=True)
class Point:
    """A moment: before this call takes effect.

    Args:
        number: from 1; the last one is the end, after the command's success.
        call: what is about to be done.
        path: to what, relative to the root; of a renaming, both.
    """

    number: int
    call: str
    path: str

    def __str__(self) -> str:
        return f"point {self.number}, before {self.call} {self.path}".rstrip()


@dataclass(frozen=True)
class Message:
    """What a process is about to do, as the shim says it.

    Args:
        call: to be done.
        number: the file's inode, or the bytes to be allocated.
        path, other: to what; absolute.
        sender: the process.
    """

    call: str
    number: int
    path: str
    other: str
    sender: int


def compiled_shim(folder: Path) -> Path:
    """The shim as a library.

    Raises:
        RuntimeError: there is no C compiler here, or it isn't Linux's C library.
    """
    library = folder / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(SHIM), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"no C compiler ({error})") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"the shim doesn't compile here: {error.stderr[-300:]}") from None
    return library


class Driver:
    """Runs commands below one folder.

    Args:
        zygote: forks them.
        root: the folder whose changes are seen; also where the commands run.
        place: folder for the socket, outside `root`.
    """

    def __init__(self, zygote: Zygote, root: Path, place: Path) -> None:
        self.zygote, self.root = zygote, root.resolve()
        self.address = str(place / "socket")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.address)
        self.listener.listen(64)

    def run(self, command: list[str]) -> Ended:
        """Run a command unseen, to its end."""
        self.zygote.start(command, {}, self.root)
        return self.zygote.wait()

    def converse(
        self,
        command: list[str],
        answer: Callable[[Message], int | None],
        allocations: int = 0,
    ) -> Ended:
        """Run a command to its end, asking before each of its changes what comes of it.

        Args:
            command: see `Zygote.start`.
            answer: 0: the call happens; SHORT: half of the write does; an errno: it fails with
                that. None says nothing, for the process was killed.
            allocations: ask of those of at least so many bytes, too; 0: of none.

        Raises:
            TimeoutError: the command hangs.
        """
        environment = {"CRASH_SOCKET": self.address, "CRASH_ROOT": str(self.root)}
        if allocations:
            environment["CRASH_ALLOCATIONS"] = str(allocations)
        self.zygote.start(command, environment, self.root)
        answers = self.zygote.process.stdout
        while True:
            ready, _, _ = select.select([self.listener, answers], [], [], SECONDS)
            if not ready:
                raise TimeoutError(f"no word for {SECONDS:.0f} s: {command}")
            if self.listener not in ready:
                return self.zygote.wait()
            channel, _ = self.listener.accept()
            with channel:
                text = channel.recv(1 << 14).decode(errors="surrogateescape")
                if not text:
                    continue  # its process ended, with a thread in the middle of asking
                call, number, path, other = text.split("\0")
                said = answer(Message(call, int(number), path, other, _sender(channel)))
                if said is not None:
                    with suppress(OSError):  # killed in the meantime, with its group
                        channel.send(bytes([said]))

    def watch(
        self,
        command: list[str],
        at_point: Callable[[Point, Disk], None],
        kill_at: int | None = None,
    ) -> tuple[Ended, Disk]:
        """Run a command, calling `at_point` before each of its changes, and at its end.

        Args:
            command: see `Zygote.start`.
            at_point: gets the point and the disk as it is.
            kill_at: SIGKILL the command's whole process group at this point.
        """
        disk, number = Disk(self.root), 0

        def answer(message: Message) -> int | None:
            nonlocal number
            number += 1
            disk.look()
            at_point(Point(number, message.call, self.name(message)), disk)
            if number == kill_at:
                os.killpg(os.getpgid(message.sender), signal.SIGKILL)
                return None
            disk.happens(message.call, message.number, message.path)
            return 0

        ended = self.converse(command, answer)
        disk.look()
        if ended.code == 0:
            at_point(Point(number + 1, THE_END, ""), disk)
        return ended, disk

    def again(self, command: list[str], tree: Tree, disk: Disk) -> tuple[Ended, Disk]:
        """Run a command from a given state of the folder; how it ended, and what is there."""
        lay_out(tree, disk.blobs, self.root)
        ended = self.run(command)
        return ended, Disk(self.root)

    def close(self) -> None:
        """Stop listening."""
        self.listener.close()

    def name(self, message: Message) -> str:
        """What a call is about, relative to the root."""
        names = [os.path.relpath(p, self.root) for p in (message.path, message.other) if p]
        return " -> ".join(names)


def _sender(channel: socket.socket) -> int:
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little")
