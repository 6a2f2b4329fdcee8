"""What the machine can do at best, measured beside the contenders: the limits that their figures are compared with."""

import itertools
import mmap
import os
import shutil
import threading
import time

from . import measure, sparse

MIB = 1 << 20


def _in_parallel(pieces, depth, step, one, content=b""):
    """Runs `one(buffer, offset, length)` for all pieces by `depth` threads, each with a buffer of `step` bytes."""
    lock = threading.Lock()

    def run(_, stopped):
        # A mapping is aligned as O_DIRECT needs it.
        buffer = mmap.mmap(-1, step)
        buffer.write(content[:step])
        while not stopped():
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            one(memoryview(buffer), *piece)

    measure.in_threads(depth, run)


def _aligned(ranges):
    """The ranges, to whole pages."""
    for offset, length in ranges:
        start = offset - offset % 4096
        yield start, -(-(offset + length - start) // 4096) * 4096


def read_direct(path, ranges, step, depth):
    """Reads ranges of a file with O_DIRECT, `depth` pieces of `step` bytes at a time: seconds."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        begin = time.monotonic()
        pieces = sparse.pieces(_aligned(ranges), step)
        _in_parallel(pieces, depth, step, lambda buffer, at, length: os.preadv(fd, [buffer[:length]], at))
        return time.monotonic() - begin
    finally:
        os.close(fd)


def write(path, ranges, direct, step, depth):
    """Writes ranges of a new file and syncs it: seconds. The file is removed."""
    # Nothing on the way may make it smaller.
    content = os.urandom(step)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0), 0o600)
    try:
        os.sync()
        begin = time.monotonic()
        pieces = sparse.pieces(_aligned(ranges), step)
        _in_parallel(pieces, depth, step, lambda buffer, at, length: os.pwritev(fd, [buffer[:length]], at), content)
        os.fsync(fd)
        return time.monotonic() - begin
    finally:
        os.close(fd)
        os.remove(path)


# Pieces of 1 and 4 MiB, 1 to 16 at a time.
WAYS_TO_READ = list(itertools.product((MIB, 4 * MIB), (1, 2, 4, 8, 16)))
WAYS_TO_WRITE = [(False, MIB, 1), (True, MIB, 4), (True, 4 * MIB, 4)]
# Bytes by which ways are compared.
TRIAL = 768 * MIB


def _part_of(ranges, most):
    """Every so many pieces of 4 MiB of the ranges, at most so many bytes in all."""
    pieces = list(sparse.pieces(ranges, 4 * MIB))
    return pieces[:: -(-sparse.data(ranges) // most)]


class Limits:
    """Measures the limits once a round, the ways of reading and writing that are fastest."""

    def __init__(self, runner, disk, work, hasher):
        self.runner, self.disk, self.work, self.hasher = runner, disk, work, hasher
        self.ranges = sparse.extents(disk)
        self.data = sparse.data(self.ranges)
        self.content = os.path.join(work, "extents")
        self.ways = {}
        self.figures = {}
        self.zstd_bytes = None

    def note(self, name, value):
        """Notes a figure of this round."""
        self.figures.setdefault(name, []).append(value)

    def _best(self, name, ways, ranges, run):
        """Notes the seconds of the fastest way. Which one that is, a part of the ranges tells in the first round."""
        if name not in self.ways:
            part, took = _part_of(ranges, TRIAL), {}
            for way in ways:
                self.runner.empty_cache()
                took[way] = run(part, *way)
            self.ways[name] = min(took, key=took.get)
        self.runner.empty_cache()
        self.note(name, run(ranges, *self.ways[name]))

    def measure_reading(self):
        """Reading the extents, compressing and hashing them."""
        self._best("read", WAYS_TO_READ, self.ranges, lambda ranges, *way: read_direct(self.disk, ranges, *way))
        # The bytes of the extents in a row, in the page cache from being written.
        with open(self.disk, "rb", buffering=0) as source, open(self.content, "wb", buffering=0) as target:
            for offset, length in sparse.pieces(self.ranges, MIB):
                target.write(os.pread(source.fileno(), length, offset))
        os.sync()
        compressed = os.path.join(self.work, "zst")
        if self.zstd_bytes is None:
            self.runner.quietly(["zstd", "-T0", "-3", "-q", self.content, "-o", compressed])
            self.zstd_bytes = os.stat(compressed).st_size
            os.remove(compressed)
        for name, command in (("zstd", ["zstd", "-T0", "-3", "-q", "-c", self.content]), ("blake3", self.hasher)):
            if command:
                command = [part.replace("EXTENTS", self.content) for part in command]
                begin = time.monotonic()
                self.runner.quietly(["sh", "-c", 'exec "$@" >/dev/null', "sh", *command])
                self.note(name, time.monotonic() - begin)
        os.remove(self.content)

    def measure_writing(self, stored_bytes):
        """Writing as many bytes as a contender stored, and the extents as a restore writes them."""
        target = os.path.join(self.work, "written")
        for name, ranges in (("write", [(0, stored_bytes)]), ("write extents", self.ranges)):
            self._best(name, WAYS_TO_WRITE, ranges, lambda ranges, *way: write(target, ranges, *way))


def hasher(programs):
    """The command that hashes EXTENTS by BLAKE3 on all processors, if there is one."""
    if shutil.which("b3sum"):
        return ["b3sum", "EXTENTS"]
    example = os.path.join(programs, "examples", "hash")
    return [example, "EXTENTS"] if os.path.exists(example) else None
