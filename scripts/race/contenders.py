"""The programs of the race: vbk and its peers, each with the settings that an expert would choose for one large disk."""

import os
import shutil
import subprocess
import time


class Contender:
    """A program with a repository of its own in a directory. Its methods return the commands of the race.

    `None` in the place of a command: the program has none for this.
    """

    name = version = ""
    # Debian's packages with the program and what it needs to mount.
    packages = []
    # Has days: more than one backup in a repository.
    days = True
    # Is measured from a warm cache too.
    warms = False
    is_peer = True

    def __init__(self, directory):
        self.directory = directory
        self.repository = os.path.join(directory, "repository")
        self.env = {}

    def clear(self):
        """Removes everything of the contender's, and makes its directory anew."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.makedirs(self.directory)

    def elsewhere(self):
        """The same program with another directory."""
        return type(self)(self.directory + "-elsewhere")

    def create(self):
        """The command that makes the empty repository."""
        return ["mkdir", self.repository]

    def backup(self, disk, day):
        raise NotImplementedError

    def verify(self):
        return None

    def restore(self, day):
        """The command, run in an empty directory; `restored` is what it makes there."""
        raise NotImplementedError

    def restored(self, disk):
        return "restored"

    def mount(self, day, directory):
        """The command that serves until it is unmounted, and the image below the directory."""
        return None

    def unmount(self, directory):
        return ["umount", directory]


class Vbk(Contender):
    """vbk. A name of its own tells two programs, or an encrypted repository, from each other."""

    warms = True
    is_peer = False

    def __init__(self, directory, program, name="vbk", encrypted=False):
        super().__init__(directory)
        self.program, self.name, self.encrypted = program, name, encrypted
        self.version = _first_line([program, "--version"]).replace("vbk ", "")
        self.env = {
            "VBK_REPO": self.repository,
            "VBK_STATE_DIR": os.path.join(directory, "state"),
            "VBK_RUNTIME_DIR": os.path.join(directory, "run"),
            "VBK_CONFIG": os.path.join(directory, "config.toml"),
        }
        if encrypted:
            self.env["VBK_KEY_FILE"] = os.path.join(directory, "key")

    def clear(self):
        super().clear()
        open(self.env["VBK_CONFIG"], "w").close()

    def elsewhere(self):
        return type(self)(self.directory + "-elsewhere", self.program, self.name, self.encrypted)

    def create(self):
        return [self.program, "init", *(["--encrypt", "--no-recovery-key"] if self.encrypted else [])]

    def backup(self, disk, day):
        return [self.program, "-q", "backup", "bench", disk]

    def verify(self):
        return [self.program, "-q", "verify"]

    def restore(self, day):
        return [self.program, "-q", "restore", "bench@latest", "restored"]

    def mount(self, day, directory):
        return [self.program, "-q", "mount", "--foreground", "bench@latest", directory], "vda.img"

    def unmount(self, directory):
        return [self.program, "-q", "umount", directory]


class Borg(Contender):
    """borg with chunks as vbk's blocks, without its cache of files (there is one, and it changed)."""

    name, packages = "borg", ["borgbackup", "python3-pyfuse3"]

    def __init__(self, directory):
        super().__init__(directory)
        self.version = _first_line(["borg", "--version"]).split()[-1]
        self.env = {
            "BORG_REPO": self.repository,
            "BORG_BASE_DIR": directory,
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def create(self):
        return ["borg", "init", "--encryption", "none"]

    def backup(self, disk, day):
        chunks = ["--chunker-params", "fixed,1048576", "--compression", "zstd,3", "--sparse"]
        return ["borg", "create", *chunks, "--files-cache", "disabled", f"::{day}", os.path.basename(disk)]

    def verify(self):
        return ["borg", "check", "--verify-data"]

    def restore(self, day):
        return ["borg", "extract", "--sparse", f"::{day}"]

    def restored(self, disk):
        return os.path.basename(disk)

    def mount(self, day, directory):
        return ["borg", "mount", "--foreground", f"::{day}", directory], None


class Restic(Contender):
    """restic, which always encrypts; the modification time of the disk is newer each day."""

    name, packages = "restic", ["restic"]

    def __init__(self, directory):
        super().__init__(directory)
        self.version = _first_line(["restic", "version"]).split()[1]
        # From 0.15 on.
        helps = subprocess.run(["restic", "backup", "--help"], check=True, capture_output=True, text=True).stdout
        self.no_scan = ["--no-scan"] if "--no-scan" in helps else []
        self.env = {
            "RESTIC_REPOSITORY": self.repository,
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": os.path.join(directory, "cache"),
        }

    def create(self):
        return ["restic", "init", "--repository-version", "2"]

    def backup(self, disk, day):
        return ["restic", "backup", "--quiet", *self.no_scan, "--compression", "auto", os.path.basename(disk)]

    def verify(self):
        return ["restic", "check", "--quiet", "--read-data"]

    def restore(self, day):
        return ["restic", "restore", "--quiet", "latest", "--target", "."]

    def restored(self, disk):
        return os.path.basename(disk)

    def mount(self, day, directory):
        return ["restic", "mount", "--quiet", directory], "snapshots/latest"


class Rustic(Contender):
    """rustic, in the format of restic."""

    name = "rustic"

    def __init__(self, directory):
        super().__init__(directory)
        self.version = _first_line(["rustic", "--version"]).split()[-1]
        self.env = {
            "RUSTIC_REPOSITORY": self.repository,
            "RUSTIC_PASSWORD": "bench",
            "RUSTIC_CACHE_DIR": os.path.join(directory, "cache"),
            "RUSTIC_NO_PROGRESS": "true",
        }

    def create(self):
        return ["rustic", "init"]

    def backup(self, disk, day):
        return ["rustic", "backup", "--no-scan", "--force", os.path.basename(disk)]

    def verify(self):
        return ["rustic", "check", "--read-data"]

    def restore(self, day):
        return ["rustic", "restore", "latest", "."]

    def restored(self, disk):
        return os.path.basename(disk)


class Qemu(Contender):
    """qemu-img: one compressed image a day, without days between which it shares anything."""

    name, packages, days = "qemu-img", ["qemu-utils"], False

    def __init__(self, directory):
        super().__init__(directory)
        self.version = _first_line(["qemu-img", "--version"]).split()[2]
        self.threads = str(min(16, os.cpu_count() or 1))

    def _image(self, day):
        return os.path.join(self.repository, f"{day}.qcow2")

    def backup(self, disk, day):
        options = ["-c", "-W", "-m", self.threads, "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"]
        return ["qemu-img", "convert", *options, disk, self._image(day)]

    def restore(self, day):
        return ["qemu-img", "convert", "-W", "-m", self.threads, "-f", "qcow2", "-O", "raw", self._image(day), "restored"]


PEERS = {"borg": Borg, "restic": Restic, "qemu-img": Qemu, "rustic": Rustic}


def installed(names):
    """Those of the named peers that are there, after an installation of what is missing and Debian has."""
    missing = [package for name in names for package in PEERS[name].packages if not _has_package(package)]
    if missing:
        subprocess.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    return [name for name in names if shutil.which(name)]


def _has_package(package):
    said = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", package], capture_output=True, text=True)
    return said.stdout.startswith("ii")


class Mount:
    """A contender's mount of a day, from entering to leaving; `image` is the disk in it, `taken` what serving took."""

    def __init__(self, runner, contender, day, disk, directory):
        self.runner, self.contender, self.directory = runner, contender, directory
        self.taken = None
        command, image = contender.mount(day, directory)
        if image is None:
            image = os.path.basename(disk)
        elif not image.endswith(".img"):
            image = os.path.join(image, os.path.basename(disk))
        self.image, self.command = os.path.join(directory, image), command

    def __enter__(self):
        os.makedirs(self.directory, exist_ok=True)
        self.runner.empty_cache()
        self.begin = time.monotonic()
        self.child = self.runner.start(self.command, self.contender.env, self.contender.directory)
        try:
            while not os.path.exists(self.image):
                if self.child.poll() is not None:
                    raise OSError(f"{' '.join(self.command)} ended before it showed {self.image}")
                time.sleep(0.01)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        env = {**os.environ, **self.contender.env}
        # The kernel gives a file back a moment after it was closed.
        for _ in range(50):
            if (
                not os.path.ismount(self.directory)
                or not subprocess.run(self.contender.unmount(self.directory), env=env, capture_output=True).returncode
            ):
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "--lazy", self.directory], check=False)
        self.taken = self.runner.ended(self.child, time.monotonic() - self.begin)


def _first_line(command):
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return said.splitlines()[0].strip()
