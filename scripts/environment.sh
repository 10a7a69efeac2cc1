# Sourced by the other scripts: goes to the repository's root and sees that the packages of requirements.txt are there,
# in the active virtual environment, or, if none is active, in .venv, which is made.

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
