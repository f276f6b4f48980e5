"""A simulated disk for power cuts: it separates what is synced from what is only written.

What it may hold after a power cut: the names as they were after any number of
the latest changes to the directory, in their order; each block of 512 bytes as
the last sync left it, or as any write since then, whatever its neighbours hold;
any size between those that the file had.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

BLOCK = 512
SAMPLES = 10  # of what may be there, for each state of the directory

Image = dict[str, bytes]


@dataclass(eq=False)
class SimulatedFile:
    """A file: what programs read, what is surely on the disk, and what may be there."""

    cached: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    sizes: list[int] = field(default_factory=lambda: [0])  # the synced one, and each since
    blocks: dict[int, list[bytes]] = field(default_factory=dict)  # all they held since
    dirty: set[int] = field(default_factory=set)  # those that the next sync writes

    def write(self, content: bytes, start: int) -> None:
        self.cached[start : start + len(content)] = content
        self.touch(start, start + len(content))

    def truncate(self, size: int) -> None:
        del self.cached[size:]
        self.touch(size, size)  # the kernel clears the rest of that block

    def touch(self, start: int, end: int) -> None:
        self.sizes.append(len(self.cached))
        for number in range(start // BLOCK, -(-end // BLOCK)):
            block = bytes(self.cached[number * BLOCK :][:BLOCK]).ljust(BLOCK, b"\0")
            self.blocks.setdefault(number, []).append(block)
            self.dirty.add(number)

    def sync(self) -> None:
        """Write the dirty data; what a failed sync left behind stays uncertain."""
        size = len(self.cached)
        self.synced = self.overlaid(size, {n: self.blocks.pop(n)[-1] for n in self.dirty})
        self.blocks = {n: held for n, held in self.blocks.items() if n * BLOCK < size}
        self.sizes = [size]
        self.dirty.clear()

    def overlaid(self, size: int, blocks: dict[int, bytes]) -> bytes:
        content = bytearray(self.synced[:size].ljust(size, b"\0"))
        for number, block in blocks.items():
            content[number * BLOCK : (number + 1) * BLOCK] = block
        return bytes(content[:size])

    def after_cut(self, random: Random) -> bytes:
        """Draw for each block what the last sync left, or what any write since then did."""
        size = random.choice([min(self.sizes), self.sizes[-1], random.choice(self.sizes)])
        is_kept = random.choice([0, 0.5, 0.9, 1])  # the probability
        chosen = {
            number: random.choice([held[-1], random.choice(held)])
            for number, held in self.blocks.items()
            if random.random() < is_kept
        }
        return self.overlaid(size, chosen)


class Disk:
    """Stands in for the module `os`, over one real directory.

    Before each call that changes the disk it calls `before_change`.
    """

    def __init__(self, directory: Path, image: Image) -> None:
        self.directory = directory
        for path in directory.iterdir():
            path.unlink()
        for name, content in image.items():
            (directory / name).write_bytes(content)
        self.names = {name: SimulatedFile(bytearray(b), b, [len(b)]) for name, b in image.items()}
        self.synced_names = dict(self.names)
        self.name_changes: list[dict[str, SimulatedFile | None]] = []
        self.open_files: dict[int, SimulatedFile] = {}
        self.before_change: Callable[[], None] = lambda: None
        self.room: int | None = None
        self.failing_syncs: list[bool] = []
        self.random = Random(b"".join(image.values()))

    @contextmanager
    def failing(self, *, room: int | None = None, syncs: Sequence[bool] = ()) -> Iterator[None]:
        """Be full after `room` bytes; fail each next sync that is True."""
        self.room, self.failing_syncs = room, list(syncs)
        try:
            yield
        finally:
            self.room, self.failing_syncs = None, []

    def images(self) -> Iterator[Image]:
        """Yield samples of what the directory may hold if the power fails now."""
        for kept in range(len(self.name_changes) + 1):
            names: dict[str, SimulatedFile | None] = dict(self.synced_names)
            for change in self.name_changes[:kept]:
                names |= change
            files = {name: file for name, file in names.items() if file}
            for _ in range(SAMPLES):
                yield {name: file.after_cut(self.random) for name, file in files.items()}

    def saw_everything(self) -> bool:
        real = {path.name: path.read_bytes() for path in self.directory.iterdir()}
        return real == {name: file.cached for name, file in self.names.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECTORY:
            return os.open(path, flags)
        self.before_change()
        fd = os.open(path, flags, mode)
        if path.name not in self.names:
            self.change_names({path.name: SimulatedFile()})
        file = self.open_files[fd] = self.names[path.name]
        if flags & os.O_TRUNC:
            file.truncate(0)
        return fd

    def close(self, fd: int) -> None:
        self.open_files.pop(fd, None)
        os.close(fd)

    def write(self, fd: int, content: bytes) -> int:
        self.before_change()
        if self.room is not None:
            content = content[: self.room]
            self.room -= len(content)
            if not content:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file = self.open_files[fd]
        file.write(content, len(file.cached))
        return os.write(fd, content)

    def ftruncate(self, fd: int, size: int) -> None:
        self.before_change()
        self.open_files[fd].truncate(size)
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        self.before_change()
        file = self.open_files.get(fd)
        if self.failing_syncs and self.failing_syncs.pop(0):
            if file:
                file.dirty.clear()  # as the kernel does, though who knows what was written
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if file:
            file.sync()
        else:
            self.synced_names, self.name_changes = dict(self.names), []

    def rename(self, old: Path, new: Path) -> None:
        self.before_change()
        old.rename(new)
        self.change_names({old.name: None, new.name: self.names[old.name]})

    def unlink(self, path: Path) -> None:
        self.before_change()
        path.unlink()
        self.change_names({path.name: None})

    def change_names(self, change: dict[str, SimulatedFile | None]) -> None:
        self.name_changes.append(change)
        self.names = {name: file for name, file in (self.names | change).items() if file}
