"""The command as a user meets it: files, exit status, what goes where."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_prune.models.digits import FOLDER

RESNET = str(FOLDER / "digits_resnet.onnx")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from onnx_prune.cli import main; main()", *map(str, arguments)]
    package = Path(__file__).parent.parent / ".dev"
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(package)})


def test_plan_apply_verify_give_what_prune_gives(tmp_path: Path) -> None:
    plan, applied, pruned = tmp_path / "plan.json", tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert run("plan", RESNET, "-o", plan, "--ratio", "0.5").returncode == 0
    assert run("apply", RESNET, plan, "-o", applied).returncode == 0
    done = run("verify", RESNET, applied, "--plan", plan, "--json", "-")
    assert done.returncode == 0 and json.loads(done.stdout)["verify"]["ok"] is True
    done = run("prune", RESNET, "-o", pruned, "--ratio", "0.5", "--json", "-")
    assert done.returncode == 0
    assert applied.read_bytes() == pruned.read_bytes()
    data = json.loads(done.stdout)
    assert data["params"]["after"] < data["params"]["before"]
    assert data["macs"]["after"] < data["macs"]["before"]
    assert data["verify"]["ok"] is True and data["verify"]["kind"] == "exact"
    assert data["verify"]["max_relative_error"] < 1e-5
    assert data["groups"] and data["pinned"][0]["reason"]
    assert set(data["seconds"]) == {"analyze", "plan", "apply", "verify"}
    assert "parameters" in done.stderr


def test_analyze_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    done = run("analyze", RESNET, "--json", target)
    assert done.returncode == 0 and done.stdout == ""
    assert json.loads(target.read_text())["groups"][0]["explanation"].startswith("Group")


def test_a_certificate_that_does_not_hold_is_status_3(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    run("plan", RESNET, "-o", plan, "--ratio", "0.5")
    done = run("verify", RESNET, RESNET, "--plan", plan)
    assert done.returncode == 3
    assert_one_line(done)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["prune", "missing.onnx", "-o", "OUT", "--ratio", "0.5"], 1, "missing.onnx"),
        (["prune", RESNET, "-o", "OUT", "--ratio", "1.5"], 2, "ratio 1.5"),
        (["prune", RESNET, "-o", "OUT", "--macs", "half"], 2, "half"),
        (["prune", RESNET, "-o", "OUT"], 2, "exactly one"),
        (["prune", RESNET, "-o", "OUT", "--ratio", "0.5", "--ignore", "nothing"], 2, "nothing"),
        (["prune", RESNET, "-o", "OUT", "--ratio", "0.5", "--criterion", "magic"], 2, "magic"),
        (["prune", RESNET, "-o", "NOWHERE/out.onnx", "--ratio", "0.5"], 1, "no folder"),
        (["plan", RESNET, "-o", "OUT", "--params", "0.001%"], 1, "cannot be reached"),
        (["apply", RESNET, RESNET, "-o", "OUT"], 1, "plan"),
        (["compile", RESNET, "-o", "OUT", "--target", "abacus"], 2, "abacus"),
        (["bench", RESNET, "--against", "abacus"], 2, "abacus"),
    ],
)
def test_errors_are_one_line_with_the_right_status(
    tmp_path: Path, arguments: list[str], status: int, told: str
) -> None:
    places = {"OUT": str(tmp_path / "out"), "NOWHERE/out.onnx": str(tmp_path / "none" / "out.onnx")}
    done = run(*(places.get(a, a) for a in arguments))
    assert done.returncode == status, done.stderr
    assert told in done.stderr and done.stdout == ""
    assert_one_line(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x07nonsense\xff" * 99, Path(RESNET).read_bytes()[:5000]])
def test_bad_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    done = run("prune", path, "-o", tmp_path / "out.onnx", "--ratio", "0.5")
    assert done.returncode == 1
    assert_one_line(done)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]


def assert_one_line(done: subprocess.CompletedProcess[str]) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and done.stderr.strip().endswith(errors[0])
    assert "Traceback" not in done.stderr


def test_wrong_usage_is_status_2() -> None:
    assert run("prune").returncode == 2
    assert run("frobnicate").returncode == 2
    assert run("prune", RESNET, "--no-such-option").returncode == 2


@pytest.mark.parametrize("command", ["analyze", "plan", "apply", "prune", "verify", "compile", "bench"])
def test_help_has_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0 and "Example" in done.stdout
