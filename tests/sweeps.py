"""Sweeps as a user starts them, in a copy of the project, so that their runs are not among one's own."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from numba.core.caching import _CacheLocator

from common.runs.run import Run
from tests.commands import ROOT, results

SETTINGS = ("parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive")
CODE = ("common", *SETTINGS, "scripts", "requirements.txt", "pyproject.toml")

HOLD = """
import runpy
import sys
import time
from pathlib import Path

from common.runs.run import Run
from common.runs.stopping import stop_requested

log = Run.log

def log_and_wait(run, record):
    log(run, record)
    hold = Path("holds") / run.directory.name
    while record["step"] >= 2000 and hold.exists() and not stop_requested():
        time.sleep(0.01)

Run.log = log_and_wait
_, python, m, module, *sys.argv[1:] = sys.argv
sys.path.insert(0, "")
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Runs a command, but keeps it after its evaluation at step 2,000 until its hold is lifted or it is told to stop."""


@dataclass(frozen=True)
class Project:
    """A copy of the project."""

    root: Path
    environment: dict[str, str]

    def call(self, *words, **settings):
        """Run a command in the copy's root to its end."""
        return subprocess.run(
            [*map(str, words)],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            **settings,
        )

    def start(self, *words, **settings):
        """Start a command in the copy's root, without waiting for it."""
        return subprocess.Popen(
            [*map(str, words)],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )

    def hold(self, *names):
        """Keep the runs of these names at step 2,000, if their commands are started by `hold.py`."""
        (self.root / "hold.py").write_text(HOLD)
        (self.root / "holds").mkdir(exist_ok=True)
        for name in names:
            (self.root / "holds" / name).touch()

    def release(self, *names):
        """Let runs that are held go on."""
        for name in names:
            (self.root / "holds" / name).unlink()

    def is_held(self, directory):
        """Whether a run has come to step 2,000."""
        metrics = self.root / directory / "metrics.jsonl"
        return metrics.exists() and '"step": 2000,' in metrics.read_text()


def copy_of_project(root):
    """The project in `root`, whose scripts use the environment that the tests run in."""
    root.mkdir()
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name)
        else:
            shutil.copy2(ROOT / name, root / name)
    environment = root / "environment"  # what scripts/environment.sh takes for one with all packages
    environment.mkdir()
    packages = "".join((root / name).read_text().rstrip("\n") + "\n" for name in ("requirements.txt", "pyproject.toml"))
    (environment / ".progressive-distillation").write_text(f"{root} {packages}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SWEEP"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    changed = {"VIRTUAL_ENV": str(environment), "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    if "NUMBA_CACHE_DIR" in kept:
        changed["NUMBA_CACHE_DIR"] = str(share_compiled_code(root, Path(kept["NUMBA_CACHE_DIR"])))
    return Project(root, {**kept, **changed})


def share_compiled_code(root, shared):
    """Where numba finds the copy's compiled code, which it looks for by the folder of a file: it is the project's code.

    Without this, the first command in every copy would compile it again.
    """
    cache = root / "numba"
    cache.mkdir()
    for package in {path.parent.relative_to(root) for path in root.rglob("*.py")}:
        own, others = (_CacheLocator.get_suitable_cache_subpath(place / package / "any.py") for place in (root, ROOT))
        (shared / others).mkdir(parents=True, exist_ok=True)
        (cache / own).symlink_to(shared / others)
    return cache


def wait_until(condition, seconds=600):
    """Wait for a state; the time is far more than it needs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{condition.__name__} did not come true in {seconds} seconds"
        time.sleep(0.1)


def plan_line(directory, teacher, command, runs=1):
    """A line of a sweep's plan; the command gets the job's directory."""
    return f"{directory}\t{runs}\t{teacher}\t{command} --out {directory}\n"


def assert_whole(directory):
    """A run is complete, and none of its records is there twice."""
    run = Run(directory)
    assert run.complete
    steps = [record["step"] for record in run.records()]
    assert steps == sorted(set(steps))
    assert not (directory / "resume").exists()


def assert_same_bits(ours, plain):
    """Two runs made the same files, beyond the id that each was given."""
    assert results(ours) == results(plain)
