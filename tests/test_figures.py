"""Figures from committed data and from runs, the notebooks, and the commands that the READMEs print."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import tyro
from nbclient import NotebookClient

from parity_mlp import distill, probe, train

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("figure1_parity_mlp_laptop.png", "figure2_parity_mlp_laptop.png")
PNG = b"\x89PNG\r\n"


def make_figures(*arguments):
    command = [sys.executable, ROOT / "figures" / "make_figures.py", "parity_mlp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_committed_data_make_the_committed_figures(tmp_path):
    result = make_figures("--out", tmp_path)
    assert result.returncode == 0, result.stderr
    for name in FIGURES:
        assert (tmp_path / name).read_bytes().startswith(PNG)
        assert (ROOT / "figures" / name).exists()


def test_the_smoke_runs_become_figures(tmp_path):
    runs = tmp_path / "runs"
    root = runs / "parity_mlp"
    for module, arguments in (
        ("train", ["smoke", "--out", root / "smoke"]),
        ("probe", ["--run", root / "smoke"]),
    ):
        subprocess.run([sys.executable, "-m", f"parity_mlp.{module}", *arguments], check=True, capture_output=True)
    missing = make_figures("--preset", "smoke", "--runs", runs, "--out", tmp_path / "figures")
    assert missing.returncode == 2
    assert "python -m parity_mlp.distill smoke" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
    assert not (tmp_path / "figures").exists()

    for methods in (["ce", "one-shot", "progressive"], ["two-shot", "--checkpoint", "before", "inside", "after"]):
        arguments = [
            "smoke",
            "--teacher",
            root / "smoke",
            "--seeds",
            "0",
            "1",
            "--out",
            tmp_path,
            "--methods",
            *methods,
        ]
        subprocess.run([sys.executable, "-m", "parity_mlp.distill", *arguments], check=True, capture_output=True)
    for directory in tmp_path.glob("*-seed?"):
        directory.rename(root / f"smoke-{directory.name}")
    result = make_figures("--preset", "smoke", "--runs", runs, "--out", tmp_path / "figures")
    assert result.returncode == 0, result.stderr
    data = json.loads((tmp_path / "figures" / "data" / "parity_mlp_smoke.json").read_text())
    assert data["students"]["progressive"]["seeds"] == [0, 1]
    assert data["candidates"]["before"] < data["candidates"]["inside"] < data["candidates"]["after"]
    records = [json.loads(line) for line in (root / "smoke" / "metrics.jsonl").read_text().splitlines()]
    assert data["teacher"]["accuracy"] == [record["accuracy"] for record in records]


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_and_print_what_is_committed(path):
    committed = nbformat.read(path, as_version=4)
    again = nbformat.read(path, as_version=4)
    NotebookClient(again, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert printed(again) == printed(committed)
    assert any("image/png" in output.get("data", {}) for cell in again.cells for output in cell.get("outputs", []))


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["text"] for output in outputs if output.get("name") == "stdout"]


def commands():
    text = (ROOT / "README.md").read_text() + (ROOT / "parity_mlp" / "README.md").read_text()
    return sorted(set(re.findall(r"python (?:parity_mlp/)?((?:train|distill|probe)\.py [^`\n]*[^`\n ])(?=`|\n)", text)))


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_readmes_parse(line):
    script, *arguments = shlex.split(line)
    if script == "probe.py":
        tyro.cli(probe.ProbeArguments, args=arguments)
        return
    module = {"train.py": train, "distill.py": distill}[script]
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            tyro.extras.overridable_config_cli(presets(module), args=arguments)
        return
    parsed = tyro.extras.overridable_config_cli(presets(module), args=arguments)
    assert parsed.preset == arguments[0]


def presets(module):
    return {name: (name, arguments) for name, arguments in module.PRESETS.items()}
