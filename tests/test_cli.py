"""The command as a user meets it: files, exit status, what goes where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from graphs import Graph
from onnx_prune import Model, save
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER

RESNET = str(FOLDER / "digits_resnet.onnx")


def start(*arguments: str | Path, before: str = "pass") -> subprocess.Popen[str]:
    code = f"from onnx_prune.cli import main; {before}; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent / ".dev")}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


# Reads weights alone, which is quick.
PLAIN = ("--criterion", "l2", "--recover", "none")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    running = start(*arguments)
    out, err = running.communicate()
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def test_plan_apply_verify_give_what_prune_gives(tmp_path: Path) -> None:
    plan, applied, pruned = tmp_path / "plan.json", tmp_path / "a.onnx", tmp_path / "b.onnx"
    few = ("--calibration", "onnx_prune.models.digits:unlabelled", "--samples", "48")
    measured = (*few, "--criterion", "obs", "--recover", "least-squares")
    assert run("plan", RESNET, "-o", plan, "--ratio", "0.5", *measured).returncode == 0
    assert run("apply", RESNET, plan, "-o", applied, *few).returncode == 0
    done = run("verify", RESNET, applied, "--plan", plan, "--json", "-")
    assert done.returncode == 0 and json.loads(done.stdout)["verify"]["ok"] is True
    done = run("prune", RESNET, "-o", pruned, "--ratio", "0.5", "--json", "-", *measured)
    assert done.returncode == 0
    assert applied.read_bytes() == pruned.read_bytes()
    data = json.loads(done.stdout)
    assert data["params"]["after"] < data["params"]["before"]
    assert data["macs"]["after"] < data["macs"]["before"]
    assert data["verify"]["ok"] is True and data["verify"]["kind"] == "exact"
    assert data["verify"]["max_relative_error"] < 1e-5
    assert data["groups"] and data["pinned"][0]["reason"]
    assert set(data["seconds"]) == {"analyze", "calibrate", "plan", "apply", "verify", "recover"}
    assert "parameters" in done.stderr


def test_analyze_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    done = run("analyze", RESNET, "--json", target)
    assert done.returncode == 0 and done.stdout == ""
    assert json.loads(target.read_text())["groups"][0]["explanation"].startswith("Group")


def test_plan_tells_what_it_will_save(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    done = run("plan", RESNET, "-o", plan, "--macs", "60%", "--multiple", "8", "--json", "-", *PLAIN)
    data = json.loads(done.stdout)
    assert data["macs"]["after"] <= 0.6 * data["macs"]["before"]
    assert data["plan"] == json.loads(plan.read_text())
    assert {"groups", "pinned", "seconds", "params"} <= set(data)
    assert all(len(entry["keep"]) % 8 == 0 for entry in data["plan"]["groups"])


def test_prune_saves_the_plan_it_carried_out(tmp_path: Path) -> None:
    plan, one, two = tmp_path / "plan.json", tmp_path / "one.onnx", tmp_path / "two.onnx"
    options = (
        "--ratio",
        "0.5",
        "--ignore",
        "0.weight",
        "--no-verify",
        "--save-plan",
        plan,
        "--json",
        "-",
        *PLAIN,
    )
    done = run("prune", RESNET, "-o", one, *options)
    assert done.returncode == 0
    assert json.loads(done.stdout)["verify"] is None
    assert run("apply", RESNET, plan, "-o", two).returncode == 0
    assert one.read_bytes() == two.read_bytes()


def test_compile_and_bench(tmp_path: Path) -> None:
    library, source = tmp_path / "model.so", tmp_path / "model.onnx"
    g = Graph()
    save(g.model(g.conv(g("Relu", g.conv(g.input("N", 3, 8, 8), 3, 16, 3)), 16, 8, 3)), source)
    done = run("compile", source, "-o", library, "--weights", "beside", "--batch", "1,2", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == library.stat().st_size
    assert "any size, in runs of 1 and 2" in done.stderr
    assert (tmp_path / "model.so.weights").exists()
    done = run(
        "bench", source, "--target", "cpu", "--against", "onnxruntime", "--threads", "1", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert {timing["runtime"] for timing in runs} == {"onnxruntime", "tvm"}
    for timing in runs:
        assert set(timing) == {"model", "runtime", "threads", "median_ms", "ratio"}
        assert timing["model"] == str(source) and timing["threads"] == 1 and timing["median_ms"] > 0
    assert next(timing["ratio"] for timing in runs if timing["runtime"] == "onnxruntime") == 1.0


def test_a_model_without_removable_groups_is_one_line(tmp_path: Path) -> None:
    source = tmp_path / "small.onnx"
    g = Graph()
    save(g.model(g("Relu", g.conv(g.input(1, 3, 4, 4), 3, 2))), source)
    done = run("prune", source, "-o", tmp_path / "out.onnx", "--ratio", "0.5", *PLAIN)
    assert done.returncode == 1 and "output of the model" in done.stderr
    assert_one_line(done)
    assert list(tmp_path.iterdir()) == [source]


def test_names_in_a_model_are_printed_as_they_are(tmp_path: Path) -> None:
    """Square brackets are markup to the library that prints tables."""
    source = tmp_path / "[bold].onnx"
    g = Graph()
    x = g.conv(g.input(1, 3, 4, 4), 3, 8)
    x = g("Conv", x, g.weight(2, 8, 1, 1, name="w[red]x[/]"))
    save(g.model(x), source)
    done = run("analyze", source)
    assert done.returncode == 0, done.stderr
    done = run("prune", source, "-o", tmp_path / "[red].onnx", "--ratio", "0.5", *PLAIN)
    assert done.returncode == 0 and "[red].onnx" in done.stderr, done.stderr


def test_control_c_stops_without_a_trace(tmp_path: Path) -> None:
    source, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    save(Model(zoo.load("tv_resnet50")), source)
    with start(
        "prune", source, "-o", output, "--ratio", "0.5", *PLAIN, before="print(flush=True)"
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()  # everything is imported
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert running.returncode in (0, 130)  # 0 where a fast machine was done
    assert "Traceback" not in told
    assert {p.name for p in tmp_path.iterdir()} <= {"model.onnx", "out.onnx"}


def test_a_certificate_that_does_not_hold_is_status_3(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    run("plan", RESNET, "-o", plan, "--ratio", "0.5", *PLAIN)
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
        (["prune", RESNET, "-o", "/dev/null", "--ratio", "0.5"], 1, "no ordinary file"),
        (["prune", RESNET, "-o", "OUT", "--ratio", "0.5", "--json", "NOWHERE/out.onnx"], 1, "no folder"),
        (["compile", RESNET, "-o", "NOWHERE/out.onnx"], 1, "no folder"),
        (["prune", RESNET, "-o", "OUT", "--ratio", "nan"], 2, "ratio nan"),
        (["prune", RESNET, "-o", "OUT", "--macs", "nan"], 2, "nan"),
        (["prune", RESNET, "-o", "OUT", "--bytes", "10XB"], 2, "10MB"),
        (["prune", RESNET, "-o", "OUT", "--ratio", "0.5", "--limit", "0.weight=half"], 2, "NAME=MIN:MAX"),
        (["prune", RESNET, "-o", "OUT", "--latency", "60%", "--target", "abacus"], 2, "abacus"),
        (["prune", RESNET, "-o", "OUT", "--latency", "soon"], 2, "soon"),
        (["prune", RESNET, "-o", "OUT", "--accuracy-drop", "1%"], 2, "--calibration"),
        (["prune", RESNET, "-o", "OUT", "--accuracy-drop", "little"], 2, "little"),
        (["apply", RESNET, "missing.json", "-o", "OUT"], 1, "missing.json"),
        (["apply", RESNET, RESNET, "-o", "OUT"], 1, "plan"),
        (["compile", RESNET, "-o", "OUT", "--target", "abacus"], 2, "abacus"),
        (["compile", RESNET, "-o", "OUT", "--batch", "1;8"], 2, "write 1,8"),
        (["compile", RESNET, "-o", "OUT", "--weights", "away"], 2, "inside or beside"),
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
    done = run("prune", path, "-o", tmp_path / "out.onnx", "--ratio", "0.5", *PLAIN)
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
