"""Imports run one way, TVM stays inside backends, and the wheel holds what it should."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx_prune

ROOT = Path(__file__).parent.parent
FLOORS = ["analysis", "passes", "backends"]  # each may import those before it
PACKAGES = [*FLOORS, "cli", "models"]


def imports(path: Path) -> list[tuple[str, int]]:
    """Absolute dotted names of what a file imports, with the line."""
    package = ["onnx_prune", *path.relative_to(ROOT).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # ``from . import x`` may name a module as well as something in one.
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_imports_run_one_way() -> None:
    for floor, name in enumerate(FLOORS):
        for path in sources(name):
            for module, line in imports(path):
                above = [f"onnx_prune.{other}" for other in [*FLOORS[floor + 1 :], "cli"]]
                assert not module.startswith(tuple(above)), f"{path}:{line} imports {module}"


def test_nothing_imports_the_command_line() -> None:
    allowed = ROOT / "__main__.py"
    for path in [*ROOT.glob("*.py"), *(path for folder in [*FLOORS, "models"] for path in sources(folder))]:
        for module, line in imports(path):
            above = "onnx_prune.cli", "onnx_prune.tests", "onnx_prune.tools"
            assert path == allowed or not module.startswith(above), f"{path}:{line} imports {module}"


def test_the_package_imports_itself_relatively() -> None:
    """Only the command line uses the public name: it is a user of the API like any other."""
    for path in (path for folder in [*FLOORS, "models"] for path in sources(folder)):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "onnx_prune" for name in names), f"{path} {names}"


def test_the_public_api_is_documented() -> None:
    for name in onnx_prune.__all__:
        thing = getattr(onnx_prune, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            assert "return" in thing.__annotations__, name


def test_tvm_is_imported_only_inside_backends() -> None:
    for path in [*sources("analysis"), *sources("passes"), *sources("models"), *ROOT.glob("*.py")]:
        for module, line in imports(path):
            assert module.split(".")[0] != "tvm", f"{path}:{line} imports {module}"


def test_pruning_works_without_loading_tvm() -> None:
    run(
        "import sys, onnx_prune, onnx_prune.cli, onnx_prune.backends.cpu;"
        "m = onnx_prune.load('models/digits_resnet.onnx');"
        "onnx_prune.prune(m, ratio=0.5);"
        "assert not any(n == 'tvm' or n.startswith('tvm.') for n in sys.modules)"
    )


def test_the_command_starts_without_what_takes_long_to_load() -> None:
    run(
        "import sys, onnx_prune.cli;"
        "late = {'tvm', 'scipy.interpolate', 'scipy.linalg', 'scipy.optimize', 'scipy.sparse'};"
        "assert not late & set(sys.modules)"
    )


def run(code: str) -> None:
    environment = {"PYTHONPATH": str(ROOT / ".dev")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)


def test_no_file_is_long() -> None:
    for folder in [*FLOORS, "cli", "models", "tests", "tools"]:
        for path in sources(folder):
            assert len(path.read_text().splitlines()) <= 500, path


def test_the_wheel_holds_the_package_and_its_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "onnx_prune/__init__.py",
        "onnx_prune/cli/__init__.py",
        "onnx_prune/py.typed",
        "onnx_prune/analysis/rules/conv.py",
        "onnx_prune/analysis/report/report.html.j2",
        "onnx_prune/passes/verify.py",
        "onnx_prune/backends/tvm/schedules/gemm.py",
        "onnx_prune/analysis/patterns/profiles/nvidia-2-4.toml",
        "onnx_prune/models/digits.npz",
        "onnx_prune/models/zoo/tv_resnet50.onnx.xz",
    } <= names
    modules = {f"onnx_prune/{p.relative_to(ROOT)}" for name in PACKAGES for p in sources(name)}
    assert modules <= names
    outside = {n for n in names if not n.startswith("onnx_prune/") and ".dist-info/" not in n}
    assert not outside
    assert not any(part in name for name in names for part in ("tests/", ".dev/", ".venv/"))
