"""Commands for teachers: check checkpoints, download them ahead of time, choose which to learn from, convert pickles.

python -m common.teachers check runs/parity_mlp/laptop
python -m common.teachers check EleutherAI/pythia-70m
python -m common.teachers cache EleutherAI/pythia-70m --steps 0 10000 --dry-run
python -m common.teachers choose runs/PCFG_mlm/laptop
python -m common.teachers import published/mlp --out teachers/mlp
"""

import tyro

from common.cli import command
from common.distillation.choosing import ChooseArguments, choose_command
from common.teachers.caching import CacheArguments, cache
from common.teachers.checking import CheckArguments, check
from common.teachers.importing import ImportArguments, import_teacher


def main() -> None:
    """Parse the command line."""
    arguments = tyro.extras.subcommand_cli_from_dict(
        {"check": CheckArguments, "cache": CacheArguments, "choose": ChooseArguments, "import": ImportArguments},
        prog="python -m common.teachers",
        description=(__doc__ or "").partition("\n")[0],
    )
    match arguments:
        case CheckArguments():
            check(arguments)
        case CacheArguments():
            cache(arguments)
        case ChooseArguments():
            choose_command(arguments)
        case ImportArguments():
            import_teacher(arguments)


if __name__ == "__main__":
    command(main)
