"""Sparse files: their extents with data, and copies that leave out what is zero."""

import os
import sys

MIB = 1 << 20
# Smaller holes would scatter the copy's extents over the host's file system, which no guest's volume is.
HOLE = 64 << 10


def extents(path):
    """The extents of a file that have data, as (offset, length)."""
    found, offset = [], 0
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        while offset < size:
            try:
                start = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError:
                break
            offset = os.lseek(fd, start, os.SEEK_HOLE)
            found.append((start, offset - start))
    finally:
        os.close(fd)
    return found


def pieces(ranges, length):
    """The ranges cut at the multiples of a length, as (offset, length)."""
    for offset, left in ranges:
        while left:
            step = min(left, length - offset % length)
            yield offset, step
            offset, left = offset + step, left - step


def data(ranges):
    """The bytes of some ranges."""
    return sum(length for _, length in ranges)


def copy(source, target):
    """Copies a file, synced, with a hole wherever 64 KiB of it are zero."""
    zeros = memoryview(bytes(HOLE))
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as write:
        write.truncate(os.fstat(read.fileno()).st_size)
        for offset, length in pieces(extents(source), MIB):
            whole = memoryview(os.pread(read.fileno(), length, offset))
            start = None
            for at, part in pieces([(offset, len(whole))], HOLE):
                zero = whole[at - offset : at - offset + part] == zeros[:part]
                if not zero and start is None:
                    start = at
                elif zero and start is not None:
                    os.pwrite(write.fileno(), whole[start - offset : at - offset], start)
                    start = None
            if start is not None:
                os.pwrite(write.fileno(), whole[start - offset :], start)
        os.fsync(write.fileno())


def same(left, right):
    """Two files hold the same bytes; where both have a hole nothing is read."""
    if os.stat(left).st_size != os.stat(right).st_size:
        return False
    with open(left, "rb", buffering=0) as one, open(right, "rb", buffering=0) as other:
        offsets = {offset // MIB * MIB for path in (left, right) for offset, _ in pieces(extents(path), MIB)}
        return all(os.pread(one.fileno(), MIB, at) == os.pread(other.fileno(), MIB, at) for at in sorted(offsets))


if __name__ == "__main__":
    copy(*sys.argv[1:])
