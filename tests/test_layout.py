"""The rules of the layout: imports go one way, nothing happens at import, and settings have the same files."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive")

LAYERS = (
    ("common", "common.errors", "common.philox"),
    ("common.kernels",),
    ("common.arguments", "common.attention", "common.plotting", "common.resources"),
    ("common.fast_layers",),
    ("common.runs",),
    ("common.cli",),
    ("common.teachers",),
    ("common.distillation",),
    ("common.cluster",),
    ("common.masking", "common.probes"),
    ("common.language_models",),
    ("common.parity", "common.pcfg", "common.text"),
    SETTINGS,
)
"""From the ground up: a folder or file imports from lower layers only, and from itself."""

MOST_LINES = 400

REGISTRATIONS = {
    "common.attention": "Attention",
    "common.kernels.lanes": "overload_arithmetic(",
    "parity_mlp.sgd.simd": "overload_arithmetic(",
}
"""How statements begin by which transformers learns of an attention, and numba of the operators of a type."""

COMMANDS = [f"{setting}.{command}" for setting in SETTINGS for command in ("train", "distill", "probe")]


def modules() -> dict[str, Path]:
    """Every module of the package, by its name."""
    paths = [path for folder in ("common", *SETTINGS) for path in (ROOT / folder).rglob("*.py")]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


MODULES = modules()


def imports_of(module: str) -> set[str]:
    """Modules of the package that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in submodules}
    return {name for name in found if name in MODULES} - {module}


def room_of(module: str) -> str:
    """The entry of `LAYERS` that a module belongs to."""
    rooms = [room for layer in LAYERS for room in layer if room != "common"]
    return next((room for room in rooms if module == room or module.startswith(f"{room}.")), "common")


def layer_of(room: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if room in layer)


def test_every_module_has_a_layer():
    assert [module for module in MODULES if room_of(module) == "common"] == ["common"]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    own = room_of(module)
    is_entry_point = module.endswith(".__main__")  # has commands of all that is common to the settings
    own_layer = LAYERS.index(SETTINGS) if is_entry_point else layer_of(own)
    upward = {name for name in imports_of(module) if room_of(name) != own and layer_of(room_of(name)) >= own_layer}
    assert not upward, f"{module} imports {sorted(upward)}"


def test_there_is_no_circle():
    tuple(TopologicalSorter({module: imports_of(module) for module in MODULES}).static_order())


def top_level_effects(module: str) -> Iterator[str]:
    """Statements of a module that do something when it is imported."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in ast.parse(MODULES[module].read_text()).body:
        text = ast.unparse(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            continue
        if text.startswith(REGISTRATIONS.get(module, "\n")):
            continue
        assigned = node.targets if isinstance(node, ast.Assign) else []
        if not isinstance(node, definitions) or not all(
            isinstance(target, ast.Name | ast.Tuple) for target in assigned
        ):
            yield text


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_happens_at_import(module):
    assert not list(top_level_effects(module))


def test_commands_start_before_they_import_what_is_slow():
    """`command` must install its signal handlers and set numba's cache first."""
    slow = "{'torch', 'transformers', 'numba'} & sys.modules.keys()"
    code = "\n".join(["import sys", *(f"import {name}; assert not {slow}, {name!r}" for name in COMMANDS)])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_have_the_same_files(setting):
    wanted = {
        "README.md",
        *(f"{name}.py" for name in ("arguments", "data", "models", "training", "train", "distill", "probe")),
    }
    assert wanted <= {path.name for path in (ROOT / setting).iterdir()}


def test_files_are_short():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in MODULES.values()}
    assert not {name for name, length in lengths.items() if length > MOST_LINES}


def test_tests_mirror_the_tree():
    """A folder of tests is a folder of the package; hostile/ is about all of them."""
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    folders.remove("hostile")
    assert all((ROOT / folder).is_dir() for folder in folders)
