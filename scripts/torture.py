"""Torture a setting's commands: kill, stop and starve them at random moments until they complete; compare the results.

    scripts/torture.sh PCFG_mlm 3

Each round trains a teacher and students at the smoke size. A command is started again until it completes, and each time
one of these happens to it: SIGKILL or SIGTERM at a random moment, or a disk on which no file can grow beyond a random
size (RLIMIT_FSIZE; of a full disk, programs see the same). Records, checkpoints and done.json must be those of an
undisturbed round. Exit code 1 if anything differs, or a command ends in another way than it should.
"""

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive")
STOPPED, NO_SPACE = 75, 2
"""Exit codes of a command that was told to stop, and of one that could not write."""

NOT_RESULTS = ("config.json", ".lock")
"""Files of a run that have times, names of directories and ids, and the lock."""


def results(directory: Path) -> dict[str, bytes]:
    """The files of all runs below a directory, but not what says how they were made."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and (path.name not in NOT_RESULTS or path.parent.name.startswith("checkpoint-"))
    }


def commands(setting: str, directory: Path, more: Sequence[str]) -> list[list[str]]:
    """The two commands of a round."""
    python = [sys.executable, "-m"]
    train = [*python, f"{setting}.train", "smoke", *more, "--out", str(directory / "teacher")]
    students = ["--methods", "ce", "progressive", "--seeds", "0", "--out", str(directory / "students")]
    return [train, [*python, f"{setting}.distill", "smoke", *more, "--teacher", str(directory / "teacher"), *students]]


class Torture:
    """Runs commands and disturbs them, and counts what happened."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def undisturbed(self, command: Sequence[str]) -> float:
        """Run a command to its end; how many seconds it takes."""
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed undisturbed: {done.stderr.strip()}")
        return time.monotonic() - started

    def disturbed(self, command: Sequence[str], seconds: float, deadline: float) -> None:
        """Disturb a command until it completes; after the deadline, let it."""
        while True:
            what = self.random.choice(("kill", "stop", "disk")) if time.monotonic() < deadline else "nothing"
            limit = self.random.choice((0, 500, 5_000, 50_000)) if what == "disk" else resource.RLIM_INFINITY
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            )
            if what in ("kill", "stop"):
                try:
                    process.wait(self.random.uniform(0, 1.2 * seconds))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL if what == "kill" else signal.SIGTERM)
                    self.counts[what] += 1
            stderr = process.communicate()[1]
            if process.returncode == 0:
                return
            expected = {"kill": -signal.SIGKILL, "stop": STOPPED, "disk": NO_SPACE}.get(what, 0)
            self.counts["disk"] += what == "disk"
            early = what == "stop" and process.returncode == -signal.SIGTERM  # before Python has started
            if (process.returncode != expected and not early) or "Traceback" in stderr:
                self.failures.append(f"{what}: exit code {process.returncode}: {stderr.strip()[-500:]}")
            if what == "nothing":
                return


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Names of files that are missing, additional or different."""
    return [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]


def main() -> int:
    """Parse the command line, torture, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and faults")
    arguments, more = parser.parse_known_args()  # more: options of both commands
    torture = Torture(arguments.seed)
    different: list[str] = []
    rounds = 0
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        directory, kept = Path(folder) / "runs", Path(folder) / "undisturbed"
        seconds = [torture.undisturbed(command) for command in commands(arguments.setting, directory, more)]
        directory.rename(kept)
        deadline = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < deadline or rounds == 0:
            for command, typical in zip(commands(arguments.setting, directory, more), seconds, strict=True):
                torture.disturbed(command, typical, deadline)
            different += differences(results(directory), results(kept))
            rounds += 1
            shutil.rmtree(directory)
    for failure in torture.failures:
        print(failure)
    for name in different:
        print(f"differs: {name}")
    counts = torture.counts
    print(
        f"{arguments.setting}: {rounds} rounds, {counts['kill']} kills, {counts['stop']} stops, {counts['disk']} disk "
        f"faults, {len(torture.failures)} unexpected ends, {len(different)} differences"
    )
    return 1 if torture.failures or different else 0


if __name__ == "__main__":
    sys.exit(main())
