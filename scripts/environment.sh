# Sourced by the other scripts: changes to the repository's root and installs the packages of requirements.txt, unless
# they are installed, into the active virtual environment, or, if none is active, into .venv, which is created.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=${VIRTUAL_ENV:-}
if [ -z "$environment" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    environment=$CONDA_PREFIX
fi
if [ -z "$environment" ]; then
    environment=$PWD/.venv
    [ -x "$environment/bin/python" ] || python3 -m venv "$environment"
    # shellcheck source=/dev/null
    source "$environment/bin/activate"
fi
stamp=$environment/.progressive-distillation
wanted="$PWD $(cat requirements.txt pyproject.toml)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    python -m pip install --quiet --requirement requirements.txt
    printf '%s\n' "$wanted" > "$stamp"
fi
