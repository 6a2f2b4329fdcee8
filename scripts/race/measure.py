"""Runs commands and measures what they take, with an empty page cache or a warm one."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

from . import sparse

MIB = 1 << 20


@dataclass
class Taken:
    """What a command took: seconds of the clock (with the sync after it) and of the processors, memory, bytes written."""

    wall: float
    cpu: float
    peak_mib: float
    written: int


class Failed(Exception):
    """A command failed; the text says which, and the end of what it said."""


class Runner:
    """Runs commands, one after the other; what they print goes to a log."""

    def __init__(self, work, cold):
        self.work, self.cold = work, cold
        self.log = open(os.path.join(work, "log"), "ab")
        self.used = os.path.join(work, "used")
        self.time = shutil.which("time") or "/usr/bin/time"

    def empty_cache(self):
        """Writes everything out, and empties the page cache of the whole machine."""
        os.sync()
        if self.cold:
            with open("/proc/sys/vm/drop_caches", "w") as file:
                file.write("3\n")

    def quietly(self, command, env=None, cwd=None):
        """Runs a command that is not measured."""
        self._finish(self._start(command, env, cwd), command)

    def measure(self, command, env, cwd, target):
        """Measures a command, and the sync of the file system that it wrote to."""
        begin = time.monotonic()
        child = self._start([self.time, "--format", "%U %S %M %O", "--output", self.used, "--", *command], env, cwd)
        self._finish(child, command)
        subprocess.run(["sync", "--file-system", target], check=True)
        return self._taken(time.monotonic() - begin)

    def start(self, command, env, cwd):
        """Starts a command that serves; `ended` waits for its end and measures it."""
        return self._start([self.time, "--format", "%U %S %M %O", "--output", self.used, "--", *command], env, cwd)

    def ended(self, child, seconds):
        """Waits for the end of a command that serves; the way in which it ends does not matter."""
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._end(child)
        return self._taken(seconds)

    def _taken(self, wall):
        with open(self.used) as file:
            user, system, kib, outputs = file.read().split()[-4:]
        # Linux counts in units of 512 bytes, what is written around the page cache too (task_io_accounting_ops.h).
        return Taken(wall, float(user) + float(system), int(kib) / 1024, int(outputs) * 512)

    def _start(self, command, env, cwd):
        self.log.write(("$ " + " ".join(command) + "\n").encode())
        self.log.flush()
        environment = {**os.environ, **(env or {})}
        return subprocess.Popen(
            command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def _end(self, child):
        """Ends a command: time(1) and what it runs, which are a process group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 10
            try:
                os.killpg(child.pid, number)
                while time.monotonic() < deadline:
                    child.poll()
                    os.killpg(child.pid, 0)
                    time.sleep(0.05)
            except ProcessLookupError:
                break
        child.wait()

    def _finish(self, child, command):
        try:
            status = child.wait()
        except BaseException:
            self._end(child)
            raise
        if status:
            with open(self.log.name, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
                said = file.read().decode(errors="replace")
            raise Failed(f"{' '.join(command)} ended with {status}\n{said}")


def warm(path):
    """Reads the extents of a file into the page cache."""
    fd = os.open(path, os.O_RDONLY)
    buffer = bytearray(MIB)
    for offset, length in sparse.pieces(sparse.extents(path), MIB):
        os.preadv(fd, [memoryview(buffer)[:length]], offset)
    os.close(fd)


def read_through(path):
    """Reads a whole file in pieces of 1 MiB, as dd does: bytes per second."""
    begin, done = time.monotonic(), 0
    buffer = bytearray(MIB)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            done += count
    return done / (time.monotonic() - begin)


def in_threads(count, work):
    """Runs `work(number, stopped)` in so many threads and waits for all of them. An error or an interruption stops the others:
    `stopped()` is true then."""
    errors = []

    def run(number):
        try:
            work(number, lambda: bool(errors))
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as interruption:
        errors.append(interruption)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def random_reads(path, ranges, threads, seconds):
    """4 KiB reads at random offsets of some ranges, by so many threads: reads per second."""
    weights, total = [], 0
    for _, length in ranges:
        total += length // 4096
        weights.append(total)
    fd = os.open(path, os.O_RDONLY)
    counts = [0] * threads
    end = time.monotonic() + seconds

    def read(me, stopped):
        rng = random.Random(me)
        while time.monotonic() < end and not stopped():
            ((offset, length),) = rng.choices(ranges, cum_weights=weights)
            if len(os.pread(fd, 4096, offset + 4096 * int(rng.random() * (length // 4096)))) != 4096:
                raise OSError(f"{path}: a short read")
            counts[me] += 1

    try:
        in_threads(threads, read)
    finally:
        os.close(fd)
    return sum(counts) / seconds


def stored(path):
    """The bytes that a file or the files of a directory take on their disk; a file with several names counts once."""
    seen, total = set(), 0
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names] or [path]
    for name in paths:
        status = os.lstat(name)
        if status.st_ino not in seen:
            seen.add(status.st_ino)
            total += status.st_blocks * 512
    return total
