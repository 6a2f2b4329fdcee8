"""A disk with a volatile write cache, as real ones have: what was not flushed can be lost when the power goes.

Serves a file to one QEMU over NBD on a Unix socket. When QEMU is gone, for whatever reason, that was the power cut: what
came before the last flush is in the file; of each write since then, by chance, all, nothing, or some of its 4 KiB pages.
Prints one line about it and ends.

With --lie SECONDS the disk says that flushes are done and does not do them: a cut costs all writes of the last SECONDS.
That is for the tests of the test.

Writes go to the file at once, and what they replace is kept until the next flush: so reads need no second look.
"""

import argparse
import os
import random
import socket
import struct
import time

PAGE = 4096
# Of the NBD protocol (doc/proto.md of the reference implementation).
OPT_EXPORT_NAME, OPT_ABORT, OPT_INFO, OPT_GO = 1, 2, 6, 7
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, 0x80000001
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
FLAGS = 1 | 4 | 8  # has flags, flush, FUA
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
FUA = 1
EINVAL = 22


class Disk:
    def __init__(self, path, rng, lie_seconds):
        self.fd = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.fd).st_size
        self.rng = rng
        self.lie_seconds = lie_seconds
        self.cached = []  # (time, offset, what was there before, what is there now), oldest first
        self.writes = self.flushes = 0

    def read(self, offset, length):
        return os.pread(self.fd, length, offset)

    def write(self, offset, data):
        self.writes += 1
        self.cached.append((time.monotonic(), offset, os.pread(self.fd, len(data), offset), data))
        self.put(offset, data)
        if self.lie_seconds:
            self.forget(time.monotonic() - self.lie_seconds)

    def put(self, offset, data):
        assert os.pwrite(self.fd, data, offset) == len(data)

    def flush(self):
        self.flushes += 1
        if not self.lie_seconds:
            self.cached.clear()

    def forget(self, before):
        keep = 0
        while keep < len(self.cached) and self.cached[keep][0] < before:
            keep += 1
        del self.cached[:keep]

    def cut_power(self):
        """Leaves in the file what a disk would have after the cut. Returns how many cached writes there were and survived whole."""
        if self.lie_seconds:
            self.forget(time.monotonic() - self.lie_seconds)
        cached, survived = len(self.cached), 0
        # First back to the last flush, latest write first, and then again what survives: writes can overlap.
        for _, offset, before, _ in reversed(self.cached):
            self.put(offset, before)
        if not self.lie_seconds:
            for _, offset, _, data in self.cached:
                fate = self.rng.randrange(3)
                survived += fate == 0
                for start in range(0, len(data), PAGE):
                    if fate == 0 or (fate == 1 and self.rng.random() < 0.5):
                        self.put(offset + start, data[start : start + PAGE])
        return cached, survived


class Gone(Exception):
    pass


class Connection:
    def __init__(self, connection):
        self.socket = connection

    def receive(self, length):
        data = bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            try:
                got = self.socket.recv_into(view[done:])
            except ConnectionError:
                got = 0
            if not got:
                raise Gone
            done += got
        return bytes(data)

    def send(self, data):
        try:
            self.socket.sendall(data)
        except ConnectionError:
            raise Gone from None

    def negotiate(self, size):
        self.send(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 1 | 2))
        (client_flags,) = struct.unpack(">I", self.receive(4))
        while True:
            _, option, length = struct.unpack(">8sII", self.receive(16))
            self.receive(length)

            def reply(kind, data=b"", option=option):
                self.send(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)

            if option == OPT_EXPORT_NAME:
                self.send(struct.pack(">QH", size, FLAGS) + (b"" if client_flags & 2 else bytes(124)))
                return
            if option in (OPT_INFO, OPT_GO):
                reply(REP_INFO, struct.pack(">HQH", INFO_EXPORT, size, FLAGS))
                reply(REP_INFO, struct.pack(">HIII", INFO_BLOCK_SIZE, 1, PAGE, 32 << 20))
                reply(REP_ACK)
                if option == OPT_GO:
                    return
            elif option == OPT_ABORT:
                reply(REP_ACK)
                raise Gone
            else:
                reply(REP_ERR_UNSUP)

    def serve(self, disk):
        while True:
            _, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", self.receive(28))
            if kind == DISCONNECT:
                raise Gone
            # A write that is cut in the middle never happened: all of it is here before the disk sees it.
            data = self.receive(length) if kind == WRITE else b""
            error, answer = 0, b""
            if offset + length > disk.size:
                error = EINVAL
            elif kind == READ:
                answer = disk.read(offset, length)
            elif kind == WRITE:
                disk.write(offset, data)
                if flags & FUA:
                    disk.flush()
            elif kind == FLUSH:
                disk.flush()
            else:
                error = EINVAL
            self.send(struct.pack(">IIQ", 0x67446698, error, cookie) + answer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lie", type=float, default=0, metavar="SECONDS")
    parser.add_argument("socket")
    parser.add_argument("file")
    arguments = parser.parse_args()

    disk = Disk(arguments.file, random.Random(arguments.seed), arguments.lie)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(arguments.socket)
    listener.listen(1)
    connection = Connection(listener.accept()[0])
    try:
        connection.negotiate(disk.size)
        connection.serve(disk)
    except Gone:
        pass
    cached, survived = disk.cut_power()
    lied = f", flushes were lies for {arguments.lie:g} s" if arguments.lie else ""
    print(f"{disk.writes} writes, {disk.flushes} flushes; at the cut {cached} not flushed, {survived} of them survived whole{lied}")


main()
