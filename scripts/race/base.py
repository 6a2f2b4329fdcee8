"""Builds the vbk of an earlier commit, to compare the present one with."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .measure import Failed

# Of RocksDB and other crates that did not change, as compiled in the checkout.
COMPILED = ("deps", "build", ".fingerprint")


def build(root, commit, cache, say):
    """The program of a commit, which stays in the cache. Built in a work tree of its own, which goes afterwards."""
    git = ["git", "-C", root]
    found = subprocess.run([*git, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"], capture_output=True, text=True)
    if found.returncode:
        raise Failed(f"--regress {commit}: not a commit of this repository")
    found = found.stdout.strip()
    program = Path(cache) / "programs" / found
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        tree = Path(tempfile.mkdtemp(prefix="build-", dir=cache))
        try:
            say(f"building {commit} in {tree}")
            subprocess.run([*git, "worktree", "add", "--quiet", "--detach", tree / "tree", found], check=True)
            _copy_compiled(root / "target" / "release", tree / "target" / "release")
            environment = {**os.environ, "CARGO_TARGET_DIR": str(tree / "target")}
            command = ["cargo", "build", "--release", "--quiet", "--package", "vbk-cli"]
            subprocess.run(command, cwd=tree / "tree", env=environment, check=True)
            shutil.copy2(tree / "target" / "release" / "vbk", tree / "vbk")
            os.rename(tree / "vbk", program)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", tree / "tree"], check=False)
            shutil.rmtree(tree, ignore_errors=True)
    return str(program)


def _copy_compiled(source, target):
    """Copies what cargo compiled of foreign crates. Not by links: cargo writes into some of the files."""
    if not source.is_dir():
        return
    target.mkdir(parents=True)
    ours = lambda _, names: [name for name in names if "vbk" in name or name.startswith("e2e")]
    for name in COMPILED:
        shutil.copytree(source / name, target / name, symlinks=True, ignore=ours)
