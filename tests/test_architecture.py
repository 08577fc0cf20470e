"""The rules of the layout as code: who imports whom, how long things may be, and what they may be called.

Every check says how many things it looked at, so that a rule that sees nothing cannot pass.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("features", "recsys", "serving")
GENERATED = "serving/v1/"
LAYERS = (
    "config", "held_folder", "distributed", "phases", "encodings", "embedding", "compression", "models", "retrieval",
    "training", "evaluation", "model_bytes", "run_state", "run_start", "run_reports", "run", "bundle", "components",
    "report", "sweep", "tune", "daily", "laws", "doctor", "cli",
)  # fmt: skip
FORBIDDEN_WORDS = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "factory", "base", "engine"}
MAX_FILE, MAX_FUNCTION, MAX_NESTING, MAX_ARGUMENTS, MAX_CHAIN = 400, 60, 3, 6, 16
LONG_FILES: dict[str, str] = {}
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)
ONLY_IN = {
    "torchrec": ("recsys/embedding/fused.py", "recsys/embedding/sharded.py", "recsys/doctor/"),
    "fbgemm_gpu": ("recsys/embedding/fused.py", "recsys/embedding/sharded.py", "recsys/doctor/"),
    "torch_geometric": ("recsys/models/", "features/graph.py"),
    "grpc": ("serving/service.py", "serving/server.py", "serving/client.py", "serving/v1/"),
    "pickle": (),
    "dill": (),
}


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def own_files() -> list[Path]:
    return [path for path in source_files() if not name_of(path).startswith(GENERATED)]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Absolute names imported anywhere in the file; `from a import b` counts as a.b where that is a module of ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found |= {_target(f"{node.module}.{alias.name}", str(node.module)) for alias in node.names}
    return found


def _target(longer: str, shorter: str) -> str:
    here = ROOT / longer.replace(".", "/")
    return longer if here.with_suffix(".py").exists() or (here / "__init__.py").exists() else shorter


def layer_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else "cli"
    return LAYERS.index(part)


def test_architecture_sees_every_file() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    tracked = {name for name in listed if name.endswith(".py")}
    assert tracked <= {name_of(path) for path in source_files()}
    assert len(source_files()) >= 50


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_imports_follow_the_direction(path: Path) -> None:
    mine = module_of(path)
    for other in imports_of(path):
        top = other.split(".")[0]
        if top not in PACKAGES:
            continue
        if mine.startswith("features"):
            assert top == "features", f"{mine} imports {other}"
        if mine.startswith("recsys") and top == "serving":
            assert mine.startswith("recsys.cli"), f"{mine} imports {other}; only recsys.cli may import serving"
        if mine.startswith("recsys") and mine != "recsys" and top == "recsys" and other != "recsys":
            assert layer_of(other) <= layer_of(mine), f"{mine} imports {other}, which stands after it"
        assert not other.startswith("recsys.cli") or mine.startswith("recsys.cli"), f"{mine} imports {other}"


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_third_parties_stay_in_their_files(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports_of(path)}
    for package, places in ONLY_IN.items():
        allowed = any(name_of(path).startswith(place) for place in places)
        assert allowed or package not in tops, f"{name_of(path)} imports {package}"


def graph() -> dict[str, set[str]]:
    modules = {module_of(path): path for path in own_files()}
    return {
        name: {other for other in imports_of(path) if other in modules and other != name}
        for name, path in modules.items()
    }


def test_imports_have_no_cycle_and_a_short_chain() -> None:
    edges = graph()
    depth: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> int:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name not in depth:
            depth[name] = 1 + max((visit(other, (*trail, name)) for other in edges[name]), default=0)
        return depth[name]

    assert max(visit(name, ()) for name in edges) <= MAX_CHAIN
    assert len(depth) == len(own_files())


@pytest.mark.parametrize("path", own_files(), ids=name_of)
def test_files_keep_the_budgets(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= MAX_FILE or name_of(path) in LONG_FILES, (
        f"{name_of(path)} has {lines} lines, {MAX_FILE} are allowed"
    )
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} has no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            check_function(path, node)


def check_function(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    body = node.body[1:] if ast.get_docstring(node) else node.body
    length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
    where = f"{name_of(path)}:{node.lineno} {node.name}"
    assert length <= MAX_FUNCTION, f"{where} has {length} lines"
    assert nesting(node) <= MAX_NESTING, f"{where} nests {nesting(node)} deep"
    if node.name == "__init__":
        count = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1
        assert count <= MAX_ARGUMENTS, f"{where} takes {count} arguments"


def nesting(node: ast.AST) -> int:
    return max((_inner(child) for child in ast.iter_child_nodes(node)), default=0)


def _inner(child: ast.AST) -> int:
    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return 0
    if isinstance(child, ast.If) and len(child.orelse) == 1 and isinstance(child.orelse[0], ast.If):
        below = max((_inner(part) for part in (child.test, *child.body)), default=0)
        return max(1 + below, _inner(child.orelse[0]))  # elif is no deeper than if
    return nesting(child) + (1 if isinstance(child, BLOCKS) else 0)


def _words(path: Path) -> Iterator[str]:
    for part in path.relative_to(ROOT).with_suffix("").parts:
        yield from part.split("_")


@pytest.mark.parametrize("path", own_files(), ids=name_of)
def test_names_say_what_they_hold(path: Path) -> None:
    assert not FORBIDDEN_WORDS & set(_words(path))


def test_every_module_has_its_tests() -> None:
    missing = [name_of(path) for path in own_files() if not path.stem.startswith("__") and not _has_test(path)]
    assert not missing, f"modules without a test file of their name: {missing}"


def _has_test(path: Path) -> bool:
    return any((ROOT / "tests").rglob(f"test_{path.stem}*.py")) or bool(
        list((ROOT / "tests").rglob(f"test_*{path.stem}.py"))
    )
