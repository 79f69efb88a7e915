"""The conformance kit: what is written, what passes, and which broken runtimes it catches."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_prune import Model, OutputError, UsageError, all_profiles, run_suite, validate, write_suite
from onnx_prune.backends.conformance.cases import Case, cases_of
from onnx_prune.backends.conformance.run import through
from onnx_prune.backends.conformance.suite import Suite, read_suite
from onnx_prune.backends.cpu import CpuBackend
from plugging import command

# A runtime that computes groups of four inputs and forgets what is left at the end.
BROKEN = """
import sys
import numpy as np, onnx, onnxruntime
from onnx import numpy_helper
model, inputs, outputs = sys.argv[1:]
proto = onnx.load(model)
for tensor in proto.graph.initializer:
    if tensor.name == "weight":
        value = numpy_helper.to_array(tensor).copy()
        axis = 1 if proto.graph.node[-1].op_type != "MatMul" and value.ndim > 1 else 0
        if value.ndim > 1:
            kept = value.shape[axis] // 4 * 4
            value[(slice(None),) * axis + (slice(kept, None),)] = 0
        tensor.CopyFrom(numpy_helper.from_array(value, "weight"))
data = onnx.load_tensor(inputs + "/input_0.pb")
session = onnxruntime.InferenceSession(proto.SerializeToString())
(found,) = session.run(None, {"x": numpy_helper.to_array(data)})
onnx.save_tensor(numpy_helper.from_array(found, "y"), outputs + "/output_0.pb")
"""


def judged(case: Case, profile: str) -> bool | None:
    """What our validator says of a case's weight."""
    found = [f for f in validate(Model(case.model), [profile]).findings if f.rule.id == case.rule]
    weights = [f for f in found if f.weight.name.startswith("weight")]
    eligible = [finding for finding in weights if finding.eligible]
    return None if not eligible else all(finding.satisfied for finding in eligible)


@pytest.mark.parametrize("name", sorted(all_profiles()))
def test_cases_are_what_they_were_made_to_be(name: str) -> None:
    """By the validator, which knows nothing of how they were made, and to the last bit by ONNX Runtime."""
    counts: Counter[bool | None] = Counter()
    cases = list(cases_of(all_profiles()[name]))
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        onnx.checker.check_model(case.model, full_check=True)
        if case.about != "ragged end too many":  # what holds there depends on what is said of the end
            assert judged(case, name) == case.holds, case.name
        expected = ReferenceEvaluator(case.model).run(None, {"x": case.data})
        session = onnxruntime.InferenceSession(case.model.SerializeToString())
        assert np.array_equal(session.run(None, {"x": case.data})[0], expected[0]), case.name
        counts[case.holds] += 1
    assert counts[True] and counts[False]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return write_suite("cusparselt", tmp_path_factory.mktemp("kit") / "suite")


def test_a_suite_is_the_same_each_time_and_reads_back(suite: Suite, tmp_path: Path) -> None:
    again = write_suite("cusparselt", tmp_path / "suite")
    assert read_suite(suite.folder).entries == again.entries == suite.entries
    for path in sorted(p for p in suite.folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (again.folder / path.relative_to(suite.folder)).read_bytes()
    assert {entry.sparse for entry in suite.entries} == {True, False}


def test_suites_hold_the_edges(suite: Suite) -> None:
    about = {entry.about for entry in suite.entries}
    assert about >= {
        "one group",
        "ragged end",
        "all zero",
        "none zero",
        "transposed",
        "reshaped",
        "one too many",
    }


def test_onnxruntime_passes(suite: Suite) -> None:
    assert Counter(result.outcome for result in run_suite(suite.folder, "onnxruntime")) == {
        "passed": len(suite.entries)
    }


def test_our_backend_passes(tmp_path: Path) -> None:
    """make profiles runs all suites; here it is one of each operator."""
    suite = write_suite("nvidia-2:4", tmp_path / "suite")
    few = {"two-of-four.conv.float32.kernel-too-many", "two-of-four.gemm.float32.ragged-end"}
    few |= {"two-of-four.matmul.float32.transposed", "two-of-four.conv.int8.several-groups"}
    runner = through(CpuBackend())
    chosen = [entry for entry in suite.entries if entry.name in few]
    assert len(chosen) == len(few)
    for entry in chosen:
        got, _ = runner(suite, entry)
        assert np.array_equal(got, suite.expected(entry))


def test_a_runtime_that_forgets_the_end_is_caught(tmp_path: Path) -> None:
    """Only where there is one: all other cases pass."""
    (tmp_path / "broken.py").write_text(BROKEN)
    line = f"{sys.executable} {tmp_path / 'broken.py'} {{model}} {{inputs}} {{outputs}}"
    suite = write_suite("onnx-prune", tmp_path / "suite")
    kept = [e for e in suite.entries if e.rule == "skips" and ".gemm.float32" in e.name][:8]
    assert any("ragged" in entry.about for entry in kept)
    data = json.loads((suite.folder / "suite.json").read_text())
    names = {entry.name for entry in kept}
    data["cases"] = [case for case in data["cases"] if case["name"] in names]
    (suite.folder / "suite.json").write_text(json.dumps(data))
    results = list(run_suite(suite.folder, line))
    failed = {result.entry.about for result in results if result.outcome == "failed"}
    assert failed == {"ragged end", "ragged end too many"} & {entry.about for entry in kept}
    wrong = next(result for result in results if result.outcome == "failed")
    assert "elements of the output are wrong" in wrong.text


@pytest.mark.parametrize(
    ("code", "outcome", "told"),
    [
        ("import sys; sys.exit(77)", "unsupported", ""),
        ("raise SystemExit('no such kernel')", "failed", "no such kernel"),
        ("pass", "failed", "wrote no output_0.pb"),
        ("open(sys.argv[3] + '/output_0.pb', 'wb').write(b'x')", "failed", "wrote no output_0.pb"),
    ],
)
def test_what_commands_say(suite: Suite, tmp_path: Path, code: str, outcome: str, told: str) -> None:
    (tmp_path / "tool.py").write_text(f"import sys\n{code}\n")
    line = f"{sys.executable} {tmp_path / 'tool.py'} {{model}} {{inputs}} {{outputs}}"
    result = next(iter(run_suite(suite.folder, line)))
    assert result.outcome == outcome and told in result.text


def test_a_runtime_that_takes_too_much_as_sparse_is_caught(suite: Suite) -> None:
    """Even where its results are right."""
    honest = next(entry for entry in suite.entries if entry.sparse)
    dense = next(entry for entry in suite.entries if not entry.sparse)
    results = run_suite(suite.folder, lambda suite, entry: (suite.expected(entry), ("weight",)))
    told = {result.entry.name: result for result in results}
    assert told[honest.name].outcome == "passed"
    assert told[dense.name].outcome == "failed" and "taken as sparse" in told[dense.name].text


def test_wrong_usage(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there already"):
        write_suite("cusparselt", suite.folder)
    with pytest.raises(UsageError, match="no profile"):
        write_suite("nobody", tmp_path / "suite")
    with pytest.raises(UsageError, match="holds no conformance suite"):
        next(iter(run_suite(tmp_path, "onnxruntime")))
    with pytest.raises(UsageError, match=r"has no \{inputs\}"):
        next(iter(run_suite(suite.folder, "tool {model}")))
    with pytest.raises(UsageError, match="cannot run"):
        next(iter(run_suite(suite.folder, "/no/tool {model} {inputs} {outputs}")))


def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    done = command("conformance", "--profile", "axis-artpec", "-o", folder, site=tmp_path)
    assert done.returncode == 0 and "wrote" in done.stderr
    value = numpy_helper.to_array(onnx.load_tensor(next(folder.glob("*/test_data_set_0/output_0.pb"))))
    next(folder.glob("*/test_data_set_0/output_0.pb")).write_bytes(
        numpy_helper.from_array(value + 1, "y").SerializeToString()
    )
    done = command("conformance", folder, "--run", "onnxruntime", "--json", "-", site=tmp_path)
    cases = json.loads(done.stdout)["cases"]
    assert done.returncode == 3 and [case["outcome"] for case in cases].count("failed") == 1
    assert command("conformance", folder, site=tmp_path).returncode == 2
