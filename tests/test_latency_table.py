"""Latency tables: what is measured, kept, gone on with, foretold and drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from graphs import PLAIN, Graph
from onnx_prune import BackendError, Model, UsageError, apply, latency_table, measure, plan, save
from onnx_prune.analysis.report.curves import Curve, Panel, draw, svg
from onnx_prune.backends.table import Axis, Call, Kernel, Table
from test_cli import assert_one_line, run

needs_tvm = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
OUT, IN, HEADS = Axis("out", 8), Axis("in", 1), Axis("heads", 1, linear=True)


def small() -> Model:
    """Two convolutions of one family, a product, and nothing that can be pruned at the ends."""
    g = Graph()
    x = g("Relu", g.conv(g.input(1, 8, 8, 8), 8, 32, 3))
    x = g("Relu", g.conv(x, 32, 24, 3))
    x = g("GlobalAveragePool", x)
    return g.model(g("MatMul", g("Flatten", x), g.weight(24, 5)))


def call(out: int, inner: int, calls: int = 1, family: str = "a") -> Call:
    return Call(family, f"{inner}→{out}", (OUT, IN), (out, inner), calls, 2.0 * out * inner)


def filled(kernel: Kernel) -> Kernel:
    """Times that are a constant plus a share of the work."""
    return replace(kernel, ms={sizes: (0.5 + 0.001 * sizes[0] * sizes[1],) for sizes in kernel.wanted})


def table(*calls: Call, dense_ms: float | None = 10.0) -> Table:
    kernels = tuple(filled(Kernel.of(each, 4)) for each in calls)
    return Table({"kind": "llvm"}, 1, {"kernels": 1}, (100,), kernels, dense_ms)


def test_a_grid_is_of_multiples_of_eight_and_ends_with_all() -> None:
    kernel = Kernel.of(call(60, 32), 4)
    assert kernel.grid == ((16, 32, 48, 60), (8, 16, 24, 32))
    # One more than each in the middle, the other axis whole.
    assert set(kernel.extra) == {(33, 32), (49, 32), (60, 17), (60, 25)}
    assert kernel.wanted[0] == (60, 32) and len(kernel.wanted) == 20


def test_few_channels_have_few_points() -> None:
    assert Kernel.of(call(10, 3), 4).grid == ((8, 10), (3,))


def test_between_points_time_is_linear_in_each_count() -> None:
    kernel = filled(Kernel.of(call(64, 32), 4))
    for out, inner in [(64, 32), (40, 11), (16, 8), (8, 3)]:
        assert kernel.at((out, inner)) == pytest.approx((0.5 + 0.001 * out * inner,))
    # Where a kernel works on eight channels at once, 33 take what 40 take.
    assert kernel.at((33, 32)) == pytest.approx(kernel.at((40, 32)))


def test_one_count_tells_all_where_time_is_in_proportion() -> None:
    whole = Call("a", "heads", (HEADS,), (12,), 1, 1.0)
    kernel = replace(Kernel.of(whole, 4), ms={(12,): (3.0,)})
    assert not kernel.wanted and kernel.at((4,)) == pytest.approx((1.0,))


def test_what_is_beyond_kernels_stays() -> None:
    made = table(call(64, 32, calls=2))  # 2 × 2.548 ms of 10
    assert made.predicted([call(64, 32, calls=2)], 0) == pytest.approx(10)
    assert made.predicted([call(32, 32, calls=2)], 0) == pytest.approx(10 - 2 * 1.024)


def test_kernels_that_take_longer_by_themselves_are_scaled() -> None:
    made = table(call(64, 32, calls=2), dense_ms=2.548)
    assert made.predicted([call(64, 32, calls=2)], 0) == pytest.approx(2.548)
    assert made.predicted([call(32, 32, calls=2)], 0) == pytest.approx(1.524)


def test_fewer_weights_are_nearer() -> None:
    kernel = Kernel.of(call(16, 16), 2)
    kernel = replace(kernel, ms=dict.fromkeys(kernel.wanted, (1.0, 3.0)))
    made = Table({}, 1, {}, (100, 300), (kernel,), 3.5)
    for weights, ms in [(300, 3.5), (200, 2.5), (100, 1.5), (10, 1.5)]:
        assert made.predicted([call(16, 16)], weights) == pytest.approx(ms)


def test_the_smallest_kernel_that_holds_it_tells() -> None:
    small, large = Kernel.of(call(16, 16), 4), filled(Kernel.of(call(64, 64), 4))
    made = Table({}, 1, {}, (0,), (large, replace(small, ms=dict.fromkeys(small.wanted, (1.0,)))), 9.0)
    assert made.predicted([call(64, 64), call(16, 16)], 0) == pytest.approx(9)
    assert made.predicted([call(64, 64), call(8, 8)], 0) == pytest.approx(9)  # as long as all of it


def test_an_unknown_kernel_takes_what_its_work_takes() -> None:
    made = table(call(64, 32))
    other = replace(call(32, 32, family="b"), axes=(), sizes=())
    assert not made.knows(other) and made.knows(call(8, 8))
    assert made.predicted([other], 0) == pytest.approx(10 - 2.548 + 2.548 / 2)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = table(call(60, 32), call(16, 3, calls=4, family="b"))
    made.save(tmp_path / "t.json")
    assert Table.read(tmp_path / "t.json") == made


def test_going_on_takes_times_of_the_same_target_alone() -> None:
    made = table(call(60, 32))
    empty = replace(made, kernels=(Kernel.of(call(60, 32), 8),), dense_ms=None)
    known = empty.with_times_of(made)
    assert 0 < known.missing_kernels < empty.missing_kernels
    assert empty.with_times_of(replace(made, threads=2)) == empty


def test_an_unfinished_table_foretells_nothing() -> None:
    with pytest.raises(BackendError, match="lacks 1 times"):
        table(call(60, 32), dense_ms=None).predicted([], 0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "onnx-prune latency table", "version": 9}'])
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(BackendError, match="no latency table"):
        Table.read(path)


def test_curves_stay_inside_their_panel() -> None:
    points = [(8, 0.1), (16, 0.3), (17, 0.45), (24, 0.5)]
    sheet = draw([Panel("1×1", "ms", [Curve("out", points)])] * 5, "model", "told")
    assert len({(frame.x, frame.y) for frame in sheet.frames}) == 5
    dots = sheet.frames[0].lines[0].dots
    assert all(0 <= dot.x <= sheet.wide and 0 <= dot.y <= sheet.tall for dot in dots)
    # More channels are further right, more time is further up.
    assert [dot.x for dot in dots] == sorted(dot.x for dot in dots)
    assert [dot.y for dot in dots] == sorted((dot.y for dot in dots), reverse=True)
    ElementTree.fromstring(svg([Panel("<&>", "ms", [Curve("out", points)])], "a & b", "told"))


@needs_tvm
def test_workloads_keep_their_family_with_fewer_channels() -> None:
    from onnx_prune.backends.tvm import families
    from onnx_prune.backends.tvm.schedules.conv import Window
    from onnx_prune.backends.tvm.workloads import Attention, Batched, Convolution, Depthwise, Product

    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    image = (1, 32, 9, 7)
    for workload in [
        Convolution(image, 48, 32, 48, window),
        Convolution((1, 3, 9, 7), 48, 3, 48, window, thin=True),
        Convolution(image, 64, 8, 16, window, sections=4),
        Depthwise(image, window),
        Product(10, 64, 40),
        Batched(12, 10, 64, 40),
        Attention(12, 10, 11, 64, 40),
    ]:
        whole = families.call_of(workload, 1)
        assert families.resized(workload, whole.sizes) == workload
        smaller = families.resized(workload, tuple(size // 2 for size in whole.sizes))
        less = families.call_of(smaller, 1)
        assert less.family == whole.family and less.sizes != whole.sizes and less.flops < whole.flops


@needs_tvm
def test_a_plan_is_found_by_a_table(tmp_path: Path) -> None:
    model, path = small(), tmp_path / "t.json"
    first = latency_table(model, path, points=2, seconds=1e-9)
    assert first.missing and Table.read(path) == first
    seen: list[Table] = []
    made = latency_table(model, path, points=2, progress=seen.append)
    assert not made.missing and len(seen) == first.missing
    assert latency_table(model, path, points=2) == made  # nothing is measured again
    # As if kernels were all that takes time.
    replace(made, dense_ms=made.kernels_ms).save(path)
    chosen = plan(model, latency="80%", latency_table=path, **PLAIN)
    told = chosen.options["latency"]
    assert told["predicted"] and told["share"] <= 0.8
    assert measure(apply(model, chosen)).macs < measure(model).macs
    # The same again: nothing was timed.
    assert plan(model, latency="80%", latency_table=path, **PLAIN) == chosen


@needs_tvm
def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table(call(64, 32)).save(path)
    with pytest.raises(BackendError, match="of another model"):
        plan(small(), latency="80%", latency_table=path, **PLAIN)


def test_a_table_is_for_a_latency_and_for_targets_that_have_some(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for a latency alone"):
        plan(small(), macs=0.5, latency_table=tmp_path / "t.json", **PLAIN)
    with pytest.raises(UsageError, match="no latency tables of 'onnxruntime', only of cpu"):
        plan(small(), latency="50%", target="onnxruntime", latency_table=tmp_path / "t.json", **PLAIN)


@needs_tvm
def test_the_command(tmp_path: Path) -> None:
    model, path, drawn = tmp_path / "m.onnx", tmp_path / "t.json", tmp_path / "t.svg"
    save(small(), model)
    done = run("latency", model, "-o", path, "--plot", drawn, "--points", 2, "--json", "-")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["missing"] == 0 and told["dense_ms"] > 0
    assert "8→32, 8×8" in done.stderr
    ElementTree.parse(drawn)
    done = run("plan", model, "-o", tmp_path / "p.json", "--latency", "99%", "--latency-table", path)
    assert done.returncode == 0, done.stderr
    assert "takes by the table" in done.stderr
    wrong = run("plan", model, "-o", tmp_path / "p.json", "--macs", "50%", "--latency-table", path)
    assert wrong.returncode == 2
    assert_one_line(wrong)
