"""A folder's content at every moment, and what of it a power loss would leave.

`Disk` is told what is about to happen and looks at the folder each time; so it knows which content
of which file, and which names in which folder, were ever made durable (fsync).
docs/reliability.md says what the kinds of loss mean.
"""

import hashlib
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

KILL, CONTENTS, NAMES, MIXED = "kill", "contents", "names", "mixed"
MODES = (KILL, CONTENTS, NAMES, MIXED)

FOLDER, FILE, LINK = "folder", "file", "link"
Tree = dict[str, tuple[str, str]]
"""Relative path -> (kind, digest of the content, or a link's target); "" is the root."""

_EMPTY = hashlib.sha256(b"").hexdigest()
_RACY_NS = 50_000_000  # a clock tick may hide a second change of a file this young


@dataclass(frozen=True)
class Node:
    """One file or folder: its identity, which no later one shares, and what is in it now."""

    identity: int
    kind: str
    content: str


class Disk:
    """Follows one folder.

    Args:
        root: the folder. What is in it at first counts as durable.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs: dict[str, bytes] = {_EMPTY: b""}
        self.now: dict[str, Node] = {}
        self._identities: dict[int, int] = {}
        self._read_before: dict[int, tuple[int, int, str]] = {}
        self._mapped: set[int] = set()
        self._synced: dict[int, str] = {}  # identity -> content at its last fsync
        self._truncated: set[int] = set()  # since then
        self._entries: dict[int, dict[str, int]] = {}  # folder -> durable name -> identity
        self._kinds: dict[int, str] = {}
        self.look()
        self._sync_all()

    def look(self) -> None:
        """See what is there now."""
        found: dict[str, tuple[int, str, str]] = {}
        self._walk(self.root, "", found)
        alive = {inode for inode, _, _ in found.values()}
        self._identities = {i: n for i, n in self._identities.items() if i in alive}
        self._read_before = {i: seen for i, seen in self._read_before.items() if i in alive}
        self.now = {}
        for path, (inode, kind, content) in found.items():
            identity = self._identities.setdefault(inode, len(self._kinds))
            self._kinds[identity] = kind
            self.now[path] = Node(identity, kind, content)

    def _walk(self, folder: Path, name: str, found: dict[str, tuple[int, str, str]]) -> None:
        found[name] = (os.lstat(folder).st_ino, FOLDER, "")
        with os.scandir(folder) as entries:
            for entry in entries:
                inner = f"{name}/{entry.name}" if name else entry.name
                about = entry.stat(follow_symlinks=False)
                if entry.is_symlink():
                    found[inner] = (about.st_ino, LINK, os.readlink(entry))
                elif entry.is_dir():
                    self._walk(Path(entry), inner, found)
                else:
                    found[inner] = (about.st_ino, FILE, self._read(entry.path, about))

    def _read(self, path: str, about: os.stat_result) -> str:
        size, changed = about.st_size, about.st_ctime_ns
        before = self._read_before.get(about.st_ino)
        if before and before[:2] == (size, changed) and about.st_ino not in self._mapped:
            return before[2]
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        if time.time_ns() - changed > _RACY_NS:
            self._read_before[about.st_ino] = (size, changed, digest)
        return digest

    def happens(self, call: str, inode: int, path: str) -> None:
        """Take in what a call is about to make durable, after a look at what there is."""
        name = os.path.relpath(path, self.root) if path else "."
        node = self.now.get("" if name == "." else name)
        if call == "fsync" and inode in self._identities:
            self._sync(self._identities[inode])
        elif call == "sync":
            self._sync_all()
        elif call == "map":
            self._mapped.add(inode)
        elif call == "open, truncating" and node:
            self._truncated.add(node.identity)

    def _sync(self, identity: int) -> None:
        node = next((n for n in self.now.values() if n.identity == identity), None)
        if node and node.kind == FILE:
            self._synced[identity] = node.content
            self._truncated.discard(identity)
        elif node and node.kind == FOLDER:
            entries = self._entries_now()
            before, after = self._entries.get(identity, {}), entries[identity]
            self._entries[identity] = dict(after)
            moved = set(before.values()) ^ set(after.values())
            for folder, names in entries.items():  # a move is one step: its other side with it
                if folder != identity:
                    durable = self._entries.setdefault(folder, {})
                    changed = {n for n, i in [*durable.items(), *names.items()] if i in moved}
                    for name in changed:
                        durable.pop(name, None)
                        if name in names and (names[name] in moved):
                            durable[name] = names[name]

    def _sync_all(self) -> None:
        self._entries = self._entries_now()
        self._synced = {n.identity: n.content for n in self.now.values() if n.kind == FILE}
        self._truncated.clear()

    def _entries_now(self) -> dict[int, dict[str, int]]:
        entries: dict[int, dict[str, int]] = {}
        for path, node in self.now.items():
            if node.kind == FOLDER:
                entries.setdefault(node.identity, {})
            if path:
                folder, _, name = path.rpartition("/")
                entries.setdefault(self.now[folder].identity, {})[name] = node.identity
        return entries

    def after(self, mode: str, seed: int = 0) -> Tree:
        """What is there if the machine stops now.

        Args:
            mode: KILL: everything, as the kernel has it. CONTENTS: all names, but files as they
                were at their last fsync, or empty. NAMES: besides, folders as they were at their
                last fsync. MIXED: of each file by chance the old, the new content, or zeros.
            seed: of that chance.
        """
        chance = random.Random(seed)
        if mode == KILL:
            return {path: (node.kind, node.content) for path, node in self.now.items()}
        if mode == NAMES:
            return self._durable(self.now[""].identity, "")
        tree: Tree = {}
        for path, node in sorted(self.now.items()):
            content = node.content
            if node.kind == FILE and content != self._synced.get(node.identity):
                lost = self._cut(node)
                zeros = self._blob(bytes(len(self.blobs[content])))
                content = chance.choice([lost, content, zeros]) if mode == MIXED else lost
            tree[path] = (node.kind, content)
        return tree

    def _cut(self, node: Node) -> str:
        """The content at the last fsync; where the file was cut since, the cut is kept."""
        if node.identity in self._truncated:
            return _EMPTY
        synced = self.blobs[self._synced.get(node.identity, _EMPTY)]
        return self._blob(synced[: len(self.blobs[node.content])])

    def _blob(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return digest

    def _durable(self, folder: int, path: str) -> Tree:
        tree: Tree = {path: (FOLDER, "")}
        for name, identity in self._entries.get(folder, {}).items():
            inner, kind = f"{path}/{name}" if path else name, self._kinds[identity]
            if kind == FOLDER:
                tree |= self._durable(identity, inner)
            else:
                tree[inner] = (kind, self._synced.get(identity, _EMPTY))
        return tree


def lay_out(tree: Tree, blobs: dict[str, bytes], root: Path) -> None:
    """Make a folder hold exactly this."""
    shutil.rmtree(root, ignore_errors=True)
    for path, (kind, content) in sorted(tree.items()):
        if kind == FOLDER:
            (root / path).mkdir(parents=True)
        elif kind == LINK:
            (root / path).symlink_to(content)
        else:
            (root / path).write_bytes(blobs[content])
