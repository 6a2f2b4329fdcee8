"""The race itself: every line is run by every contender in turn, round after round."""

import os
import shutil
from dataclasses import dataclass, field

from . import measure, sparse
from .contenders import Mount

MIB = 1 << 20


@dataclass(frozen=True)
class Line:
    """One kind of work. `more` says that a greater figure is better."""

    key: str
    title: str
    unit: str
    more: bool = False


LINES = [
    Line("first", "first backup", "s"),
    Line("warm", "first backup, warm", "s"),
    Line("next", "next day", "s"),
    Line("unchanged", "unchanged", "s"),
    Line("verify", "verify", "s"),
    Line("restore", "restore to a file", "s"),
    Line("dd", "mount: dd bs=1M", "MB/s", more=True),
    Line("random1", "mount: random 4 KiB, 1 thread", "/s", more=True),
    Line("random8", "mount: random 4 KiB, 8 threads", "/s", more=True),
    Line("size", "repository after the first day", "MB"),
    Line("added", "stored for the next day", "MB"),
    Line("memory", "peak memory", "MiB"),
]


@dataclass
class Figures:
    """What one contender did in one line: a value a round, and what the commands took beside."""

    values: list = field(default_factory=list)
    taken: list = field(default_factory=list)


class Race:
    """The contenders on the two days of a disk. `results` has Figures by (contender's name, key of the line)."""

    def __init__(self, runner, contenders, days, limits, read_seconds, say):
        self.runner, self.contenders, self.limits = runner, contenders, limits
        self.first, self.second = days
        self.read_seconds, self.say = read_seconds, say
        self.results = {}
        self.peaks = {}

    def run_round(self, number):
        """Runs all lines once, and measures the limits of the machine before them and between them."""
        for contender in self.contenders:
            self._reset(contender)
        self.say(f"round {number + 1}: limits")
        self.limits.measure_reading()
        self._each("first", self._backup(self.first, "day1"))
        for contender in self.contenders:
            self._note(contender, "size", measure.stored(contender.repository) / 1e6)
        stored = self.results[self.contenders[0].name, "size"].values[-1] * 1e6
        self.limits.measure_writing(int(stored) // 4096 * 4096)
        self._each("warm", self._warm_backup, [contender for contender in self.contenders if contender.warms])
        with_days = [contender for contender in self.contenders if contender.days]
        self._each("next", self._backup(self.second, "day2"), with_days)
        for contender in with_days:
            added = measure.stored(contender.repository) / 1e6 - self.results[contender.name, "size"].values[-1]
            self._note(contender, "added", added)
        # A guest that runs writes to its disk, if only the same again.
        os.utime(self.second)
        self._each("unchanged", self._backup(self.second, "day3"), with_days)
        self._each("verify", self._verify, [contender for contender in self.contenders if contender.verify()])
        self._each("restore", lambda contender: self._restore(contender, compare=number == 0))
        self._mounts()
        for contender in self.contenders:
            self._note(contender, "memory", self.peaks.pop(contender.name))

    def _each(self, key, run, contenders=None):
        title = next(line.title for line in LINES if line.key == key)
        for contender in self.contenders if contenders is None else contenders:
            self.say(f"{title}: {contender.name}")
            taken = run(contender)
            self._note(contender, key, taken.wall, taken)

    def _note(self, contender, key, value, taken=None):
        figures = self.results.setdefault((contender.name, key), Figures())
        figures.values.append(value)
        if taken:
            figures.taken.append(taken)
            self.peaks[contender.name] = max(self.peaks.get(contender.name, 0), taken.peak_mib)

    def _reset(self, contender):
        contender.clear()
        self.runner.quietly(contender.create(), contender.env, contender.directory)

    def _backup(self, disk, day):
        def run(contender):
            self.runner.empty_cache()
            return self.runner.measure(contender.backup(disk, day), contender.env, os.path.dirname(disk), contender.directory)

        return run

    def _warm_backup(self, contender):
        """A first backup to another repository, of a disk that is in the page cache."""
        other = contender.elsewhere()
        try:
            self._reset(other)
            self.runner.empty_cache()
            measure.warm(self.first)
            return self.runner.measure(other.backup(self.first, "warm"), other.env, os.path.dirname(self.first), other.directory)
        finally:
            shutil.rmtree(other.directory, ignore_errors=True)

    def _verify(self, contender):
        self.runner.empty_cache()
        return self.runner.measure(contender.verify(), contender.env, contender.directory, contender.directory)

    def _last_day(self, contender):
        return ("day3", self.second) if contender.days else ("day1", self.first)

    def _restore(self, contender, compare):
        day, disk = self._last_day(contender)
        target = os.path.join(contender.directory, "out")
        os.mkdir(target)
        try:
            self.runner.empty_cache()
            taken = self.runner.measure(contender.restore(day), contender.env, target, target)
            if compare and not sparse.same(os.path.join(target, contender.restored(disk)), disk):
                raise measure.Failed(f"{contender.name} restored another disk than it backed up")
            return taken
        finally:
            shutil.rmtree(target)

    def _mounts(self):
        """Reads the disk itself, for the limit, and the mount of each contender that has one."""
        self._read_image(self.second, lambda key, value: self.limits.note(key, value))
        for contender in self.contenders:
            day, disk = self._last_day(contender)
            directory = os.path.join(contender.directory, "mnt")
            if not contender.mount(day, directory):
                continue
            self.say(f"mount: {contender.name}")
            with Mount(self.runner, contender, day, disk, directory) as mount:
                self._read_image(mount.image, lambda key, value: self._note(contender, key, value))
            # Of all three lines together.
            self.results[contender.name, "dd"].taken.append(mount.taken)
            self.peaks[contender.name] = max(self.peaks[contender.name], mount.taken.peak_mib)

    def _read_image(self, image, note):
        ranges = [extent for extent in sparse.extents(self.second) if extent[1] >= 4096]
        self.runner.empty_cache()
        note("dd", measure.read_through(image) / 1e6)
        for threads in (1, 8):
            self.runner.empty_cache()
            note(f"random{threads}", measure.random_reads(image, ranges, threads, self.read_seconds))
