"""What files of guests are made of, the same for the same seed: lines of a web server's log, media, pages of a database."""

import random
import struct
import sys

MIB = 1 << 20
DATABASE_PAGE = 8 << 10


class Log:
    """The lines of a web server's log, from a day on."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        letters = "etaoinshrdlucmfwypvbgk"
        self.words = ["".join(self.rng.choices(letters, k=self.rng.randint(2, 10))) for _ in range(400)]
        self.agents = [" ".join(self.rng.choices(self.words, k=12)) for _ in range(40)]
        self.second = 0

    def line(self):
        a, b, c, d, e = (self.rng.random() for _ in range(5))
        second = self.second = self.second + (a < 0.3)
        time = f"{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"
        path = f"{self.words[int(a**3 * 400)]}/{self.words[int(d**2 * 400)]}/{b * 10000:.0f}"
        return (
            f"10.{a * 4:.0f}.{b * 255:.0f}.{c * 255:.0f} - - [21/Nov/2026:{time} +0000]"
            f' "GET /{path} HTTP/1.1" 200 {e**2 * 100000:.0f} "-" "{self.agents[int(c**2 * 40)]}"\n'
        )

    def bytes(self, length):
        lines, have = [], 0
        while have < length:
            lines.append(self.line().encode())
            have += len(lines[-1])
        return b"".join(lines)[:length]


def database_page(rng, number, version=0):
    """A page like one of PostgreSQL's: a header, pointers to the rows, and rows of a number, a balance and blanks."""
    rows = 61
    first = DATABASE_PAGE - rows * 128
    header = struct.pack(
        "<QHHHHHHI", number * DATABASE_PAGE + version, rng.randrange(1 << 16), 4, 24 + 4 * rows, first, DATABASE_PAGE, 0x2004, 0
    )
    pointers = b"".join(struct.pack("<I", (DATABASE_PAGE - 128 * (row + 1)) | 1 << 15 | 242 << 16) for row in range(rows))
    row_of = lambda row: struct.pack(
        "<IIIHHHBBIII", 700 + version, 0, 0, 0, row + 1, 4, 24, 0, number * rows + row, 1, rng.randrange(5000) if version else 0
    )
    body = b"".join(row_of(row).ljust(128, b" ") for row in reversed(range(rows)))
    return (header + pointers).ljust(first, b"\0") + body


def media(rng, length, write):
    """Bytes that nothing makes smaller."""
    while length:
        piece = rng.randbytes(min(length, MIB))
        write(piece)
        length -= len(piece)


def main():
    """content.py log SEED MIB | media SEED MIB: to standard output."""
    kind, seed, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) * MIB
    write = sys.stdout.buffer.write
    if kind == "log":
        write(Log(seed).bytes(length))
    else:
        media(random.Random(seed), length, write)


if __name__ == "__main__":
    main()
