"""Makes a disk and its next day without network, root and PostgreSQL: text, random bytes, pages of a database, zeros, holes."""

import os
import random

from . import content, sparse

MIB = 1 << 20
EXTENT = 8 * MIB
# In an eighth of a MiB of the database one page has changed.
PAGES_PER_CHANGE = 16


def make(directory, size):
    """Writes DIRECTORY/day1.raw and day2.raw, the same ones for the same size."""
    first, second = (os.path.join(directory, name) for name in ("day1.raw", "day2.raw"))
    places = _first_day(first, size)
    sparse.copy(first, second)
    _second_day(second, size, places)


def _texts(seed):
    pool = content.Log(seed).bytes(32 * MIB)
    rng = random.Random(seed)

    def text(length):
        slices = (rng.randrange(len(pool) - 4096) for _ in range(-(-length // 4096)))
        return b"".join([pool[start : start + 4096] for start in slices])[:length]

    return text


def _first_day(path, size):
    """Writes the disk and returns its extents by kind."""
    rng, text = random.Random(1), _texts(1)
    kinds, places, offset = [], {}, 0
    with open(path, "wb") as disk:
        disk.truncate(size)
        while offset < size:
            if not kinds:
                kinds = ["text"] * 7 + ["random"] * 4 + ["database"] * 3 + ["zeros"] * 2 + ["hole"] * 4
                rng.shuffle(kinds)
            kind, length = kinds.pop(), min(EXTENT, size - offset)
            places.setdefault(kind, []).append((offset, length))
            disk.seek(offset)
            if kind == "text":
                disk.write(text(length))
            elif kind == "random":
                content.media(rng, length, disk.write)
            elif kind == "database":
                for at in range(offset, offset + length, content.DATABASE_PAGE):
                    disk.write(content.database_page(random.Random(at), at // content.DATABASE_PAGE))
            elif kind == "zeros":
                disk.write(bytes(length))
            offset += length
        os.fsync(disk.fileno())
    return places


def _second_day(path, size, places):
    """Changes pages of the database at scattered places, and adds a little text and a medium where there was nothing."""
    rng, text = random.Random(2), _texts(2)
    with open(path, "r+b") as disk:
        step = PAGES_PER_CHANGE * content.DATABASE_PAGE
        for start, length in sparse.pieces(places.get("database", []), step):
            at = start + content.DATABASE_PAGE * rng.randrange(max(1, length // content.DATABASE_PAGE))
            disk.seek(at)
            disk.write(content.database_page(random.Random(at), at // content.DATABASE_PAGE, version=1))
        # What file systems note about their files.
        for start, length in places.get("text", []):
            disk.seek(start + 4096 * rng.randrange(max(1, length // 4096)))
            disk.write(text(4096))
        holes = places.get("hole", [])
        for number in range(max(1, size // (2 << 30)) if holes else 0):
            start, length = holes[number % len(holes)]
            disk.seek(start)
            content.media(rng, length, disk.write)
            start, length = holes[-1 - number % len(holes)]
            disk.seek(start)
            disk.write(text(length // 4))
        os.fsync(disk.fileno())
