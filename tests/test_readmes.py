"""The commands that the READMEs print can be parsed."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive")
PYTHON = rf"python (?:-m )?(?:({'|'.join(SETTINGS)})[./])?(train|distill|probe)(?:\.py)? ([^`\n]*[^`\n ])(?=`|\n)"


def printed():
    """Setting, command and arguments, of the root's README and of each setting's."""
    found = set()
    for folder in (".", *SETTINGS):
        for setting, command, line in re.findall(PYTHON, (ROOT / folder / "README.md").read_text()):
            has_subcommands = command == "probe" and (setting or folder).startswith(
                ("PCFG", "text")
            )  # tested elsewhere
            # those of probes with subcommands are tested with their settings
            if not has_subcommands and not re.search(r"[$\\]", line):
                found.add((setting or folder, command, line))
    return sorted(found)


@pytest.mark.parametrize(("setting", "command", "line"), printed())
def test_printed_commands_parse(setting, command, line, monkeypatch):
    module = importlib.import_module(f"{setting}.{command}")
    words, parsed = shlex.split(line, comments=True), []
    monkeypatch.setattr(module, command, lambda arguments, *argv: parsed.append(arguments))
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *words])
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            module.main()
        return
    module.main()
    assert command == "probe" or parsed[0].preset == words[0]
