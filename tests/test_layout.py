"""Laws of the layout: who may import what, and how long files and functions may be."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lpnet"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL = SOURCES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "scripts").rglob("*.py"))

# The package from the bottom up: a module or subpackage imports from the rows above its own alone.
TIERS = (
    ("constants", "cores", "cuda_aware", "errors", "messages", "phases", "residuals", "signals", "sums", "version"),
    (
        "activations", "ambient", "blocks", "costs", "fabrics", "folders", "forms", "options", "outputs",
        "pool", "room", "slab",
    ),
    ("arguments", "data", "yamltext"),
    ("crew", "devices", "fields", "hierarchy", "memory", "orphan", "steppers", "tape", "uncaught", "virtual"),
    ("coarse_grid", "dense_blocks", "how", "perexample", "programs"),
    ("dense_field",),
    ("coarsen", "controls", "dynamics", "launch", "module_field", "plain", "propagator"),
    ("coarse_steps", "together"),
    ("parted", "sameness", "stability", "tangent", "watchdog", "weights"),
    ("direction", "mgrit", "recall", "stack"),
    ("chain", "fine"),
    ("engine",),
    ("clock",),
    ("cost",),
    ("control",),
    ("given", "step"),
    ("gradient", "linearize"),
    ("module",),
    ("calibration",),
    ("check", "measure", "regularizers", "sharded"),
    ("checkpoint", "finite", "plan", "stopwatch"),
    ("optim",),
    ("oneshot",),
    ("multilevel",),
    ("choices", "plots", "presets"),
    ("optimizers", "sections"),
    ("config",),
    ("asked", "history", "keys", "network", "rundir", "trace"),
    ("commandline",),
    ("log", "modelfile", "training"),
    ("dryrun", "resume", "runstate"),
    ("__init__",),
    ("experiments", "info", "predict", "scaling", "train"),
)
TIER = {name: i for i, names in enumerate(TIERS) for name in names}

RANKS = {"slab", "hierarchy", "mgrit", "engine", "module"}
# What the tiers would allow and the architecture does not.
BARRED = {
    "data": set(TIER) - {"errors", "data", "room"},
    "slab": set(TIER) - {"cuda_aware", "errors", "messages", "phases"},
    "activations": RANKS,
    "dense_blocks": RANKS,
    "dense_field": RANKS,
    "fields": RANKS,
    "steppers": RANKS,
    "dynamics": RANKS,
    "module_field": RANKS,
    "propagator": RANKS,
    "mgrit": {"dynamics", "module_field", "plain"},
    "coarse_grid": {"dynamics", "module_field", "plain"},
}


def name(path: Path) -> str:
    """Module or subpackage of lpnet that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, at any depth: "lpnet.slab.Comm" for `from lpnet.slab import Comm`.

    Relative imports are resolved.
    """
    found = set()
    package = ["lpnet", *path.relative_to(PACKAGE).parts[:-1]] if path.is_relative_to(PACKAGE) else []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def dependencies(path: Path) -> set[str]:
    """Modules and subpackages of lpnet that a file imports, "__init__" for names of the package itself."""
    parts = [full.split(".") for full in imports(path)]
    known = {name(source) for source in SOURCES}
    found = {part[1] if part[1:] and part[1] in known else "__init__" for part in parts if part[0] == "lpnet"}
    return found - {name(path)}


def identify(path: object) -> str:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else str(path)


each_source = pytest.mark.parametrize("path", SOURCES, ids=identify)
each_file = pytest.mark.parametrize("path", ALL, ids=identify)


@each_source
def test_only_slab_imports_mpi4py(path: Path) -> None:
    uses = any(full.split(".")[0] == "mpi4py" for full in imports(path))
    assert uses == (path == PACKAGE / "slab.py")


@each_source
def test_imports_point_down(path: Path) -> None:
    me = name(path)
    assert me in TIER, f"{me}: give it a place in TIERS"
    for other in sorted(dependencies(path)):
        assert other in TIER, f"{other}: give it a place in TIERS"
        assert TIER[other] < TIER[me], f"{me} imports {other}, which is not below it"
        assert other not in BARRED.get(me, set()), f"{me} must not know {other}"


@pytest.mark.parametrize("module", ["mgrit", "hierarchy", "propagator", "coarsen", "steppers", "slab"])
def test_solver_knows_no_nn(module: str) -> None:
    paths = [path for path in SOURCES if name(path) == module]
    assert paths
    for path in paths:
        assert not any(full.startswith("torch.nn") for full in imports(path)), path
        attributes = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        assert not any(text.startswith("torch.nn") for text in attributes), path


@pytest.mark.parametrize("launched", [False, True])
def test_import_leaves_mpi_alone(launched: bool) -> None:
    environment = {**os.environ, **({"PMI_RANK": "0", "PMI_SIZE": "2"} if launched else {})}
    code = "import lpnet, sys; print(sorted(name for name in sys.modules if name.split('.')[0] == 'mpi4py'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


@each_file
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@each_file
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert {key: length for key, length in lengths.items() if length > 60} == {}


@each_file
def test_no_exception_is_swallowed(path: Path) -> None:
    handlers = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)]
    bare = [node.lineno for node in handlers if node.type is None]
    silent = [node.lineno for node in handlers if all(isinstance(step, ast.Pass) for step in node.body)]
    assert (bare, silent) == ([], [])


def test_version_is_written_once() -> None:
    version = (PACKAGE / "version.py").read_text(encoding="utf-8").split('"')[-2]
    for file in ("setup.cfg", "pyproject.toml", "CITATION.cff"):
        assert version not in [word.strip("\"' ") for word in (ROOT / file).read_text(encoding="utf-8").split()]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=identify)
def test_tests_on_many_ranks_have_their_folder(path: Path) -> None:
    """`scripts/test.sh` looks for them there alone, as ranks that share few cores take long to read all others."""
    marks = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    assert ("pytest.mark.mpi" in marks) == (path.parent.name == "mpi")
