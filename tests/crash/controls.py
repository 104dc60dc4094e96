"""Three ways to replace a file: two wrong ones, which the tool must flag, and a right one."""

import contextlib
import ctypes
import json
import os
import shutil
import sys
from pathlib import Path

from crash.cases import Case
from versatileffn.cli.failures import explain
from versatileffn.workspace.durable import append, remove, rename, sync, write_json

NEW = {"numbers": list(range(50))}


def careless() -> None:
    """Publishes by renaming, and syncs nothing: safe from SIGKILL, not from a power loss."""
    partial = Path(".result.json.partial")
    partial.write_text('{"numbers": "' + "new" * 50 + '"}')
    os.replace(partial, "result.json")
    Path("done").touch()


def hasty() -> None:
    """Makes room before there is something to put there: not even safe from SIGKILL."""
    Path("result.json").unlink()
    write_json(Path("result.json"), NEW)


def careful() -> None:
    """Syncs the content, renames, syncs the folder; then it removes what it needed on its way."""
    work = Path("work")
    work.mkdir(exist_ok=True)
    sync(Path())
    if not (work / "half").exists():
        append(work / "half", b"half of the work")
    write_json(work / "result.json", NEW)
    rename(work / "result.json", Path("result.json"))
    remove([work])
    sync(Path())


def telling() -> None:
    """The same, and says in one line what the system says against it."""
    try:
        careful()
    except OSError as error:
        print(explain(error))
        sys.exit(1)


def heedless() -> None:
    """Takes no notice of what the system says."""
    file = os.open("result.json", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        os.write(file, json.dumps(NEW).encode())
    os.close(file)


def everything() -> None:
    """Changes files from Python, Rust and C++, in each way that there is."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models

    here = os.getcwd()
    Path(here, "a").mkdir()
    Path(here, "a/text").write_text("text")
    torch.save({"x": torch.zeros(3)}, f"{here}/a/b.pt")
    save_file({"x": torch.zeros(3)}, f"{here}/a/c.safetensors")
    Tokenizer(models.BPE()).save(f"{here}/a/tokenizer.json")
    shutil.copyfile(f"{here}/a/b.pt", f"{here}/d")
    os.link(f"{here}/d", f"{here}/e")
    os.symlink("nowhere", f"{here}/f")
    os.truncate(f"{here}/e", 3)
    os.rename(f"{here}/d", f"{here}/g")
    ctypes.CDLL(None).renameat2(-100, f"{here}/a".encode(), -100, f"{here}/g".encode(), 2)
    append(Path(here, "e"), b"more")
    folder = os.open(here, os.O_RDONLY)
    os.mkdir("i", dir_fd=folder)
    os.fsync(folder)
    os.rmdir("i", dir_fd=folder)
    shutil.rmtree(f"{here}/g")
    os.unlink(f"{here}/e")


def old() -> None:
    """What is there at first."""
    write_json(Path("result.json"), {"numbers": "old" * 40})


def unsynced() -> None:
    """The verbs, on a system whose fsync does nothing: none of them is safe then."""
    from versatileffn.cli import main as cli

    os.fsync = lambda descriptor: None
    cli.main()


def trusting() -> None:
    """The verbs, where no file is ever compared with its digest."""
    from versatileffn.cli import main as cli
    from versatileffn.training import checkpoints, tokens

    checkpoints.damage = tokens.damage = lambda folder, files: []
    cli.main()


def main() -> None:
    """Do what the first argument names."""
    globals()[sys.argv[1]]()


def control(name: str) -> Case:
    """The case of one of these."""
    return Case(name, [name], (["old"],), "result.json", function="crash.controls:main")
