"""The passes in other people's pipelines: alone and together, on a module that TVM's own frontend made."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from graphs import Graph
from numpy.typing import NDArray
from onnx_prune import Model

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
TOLERANCE = 2e-5


def model() -> Model:
    """Convolutions, a BatchNorm, a Clip, a count of channels that fills no vector, products, a softmax."""
    g = Graph()
    x = g("Relu", g.conv(g.input(1, 3, 8, 8), 3, 16, 3))
    constants = [g.weight(16) for _ in range(3)] + [g("Abs", g.weight(16))]
    x = g("Clip", g("BatchNormalization", x, *constants), g.scalar(0.0), g.scalar(6.0))
    x = g("Reshape", g.conv(x, 16, 20, 3), g.ints(1, 20, 64))
    x = g("MatMul", x, g("Transpose", x, perm=[0, 2, 1]))
    return g.model(g("MatMul", g("Softmax", g("Mul", x, g.scalar(1e-3)), axis=-1), g.weight(20, 30)))


def imported() -> Any:
    """As TVM's frontend leaves it, weights inside."""
    from tvm.relax.frontend.onnx import from_onnx

    return from_onnx(model().proto, keep_params_in_input=False)


def data() -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


def compiled(
    module: Any, steps: Sequence[Any] = (), weights: Sequence[Any] = (), given: NDArray[Any] | None = None
) -> NDArray[Any]:
    """What a module computes, of `data` or what is given, after passes and TVM's own compilation."""
    import tvm
    from onnx_prune.backends.tvm.passes import CONFIG
    from tvm import relax

    target = tvm.target.Target({"kind": "llvm", "num-cores": 1})
    with target, tvm.transform.PassContext(opt_level=3, config=CONFIG):
        module = tvm.transform.Sequential(list(steps))(module)
        executable = tvm.compile(module, target=target)
    arguments = [tvm.runtime.tensor(array) for array in (data() if given is None else given, *weights)]
    found = relax.VirtualMachine(executable, tvm.cpu())["main"](*arguments)
    return np.asarray((found if hasattr(found, "numpy") else found[0]).numpy())


@pytest.fixture(scope="module")
def plain() -> NDArray[Any]:
    """Without any of our passes."""
    return compiled(imported())


def same(got: NDArray[Any], wanted: NDArray[Any]) -> bool:
    return got.shape == wanted.shape and bool(np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max())


def marked(module: Any) -> int:
    """How many functions say that they are scheduled."""
    functions = [module[name] for name in module.get_global_vars()]
    return sum(bool(function.attrs and "tirx.is_scheduled" in function.attrs) for function in functions)


@pytest.mark.parametrize("name", ["Tidy", "PackedKernels", "LiftWeights"])
def test_each_pass_alone_leaves_what_tvm_compiles(name: str, plain: NDArray[Any]) -> None:
    from onnx_prune.backends.tvm import passes

    step = getattr(passes, name)()
    changed = step(imported())
    assert changed.script() != imported().script()
    weights = step.distinct.arrays if name == "LiftWeights" else []
    assert same(compiled(changed, weights=weights), plain)


@pytest.mark.parametrize(
    "given", [np.zeros((1, 3, 8, 9), np.float32), np.zeros((1, 3, 8, 8)), np.zeros((3, 8, 8), np.float32)]
)
def test_wrong_inputs_are_refused_though_kernels_do_not_look(given: NDArray[Any]) -> None:
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        compiled(imported(), given=given)


def test_schedules_alone_take_kernels_that_tvm_made(plain: NDArray[Any]) -> None:
    from onnx_prune.backends.tvm.passes import Schedules
    from tvm import relax

    t = relax.transform
    steps = [t.DecomposeOpsForInference(), t.LegalizeOps(), t.AnnotateTIROpPattern(), t.FuseOps()]
    assert same(compiled(imported(), [*steps, t.FuseTIR(), Schedules()]), plain)


def test_they_are_part_of_a_pipeline_of_others(plain: NDArray[Any]) -> None:
    """As docs/passes.md shows it."""
    import tvm
    from onnx_prune.backends.tvm.passes import LiftWeights, PackedKernels, Schedules, Tidy
    from tvm import relax

    seen: list[str] = []

    @tvm.transform.module_pass(opt_level=0)
    class Mine:
        def transform_module(self, module: Any, context: Any) -> Any:
            seen.extend(var.name_hint for var in module.get_global_vars())
            return module

    t, lifting = relax.transform, LiftWeights()
    steps = [Tidy(), t.FoldConstant(), PackedKernels(), Mine(), t.LegalizeOps(), t.AnnotateTIROpPattern()]
    steps += [t.FuseOps(), t.FuseTIR(), Schedules(), lifting]
    module = tvm.transform.Sequential(steps[:-2])(imported())
    assert any("conv2d" in name for name in seen)
    with tvm.target.Target({"kind": "llvm", "num-cores": 1}):
        scheduled = Schedules()(module)
    assert 0 == marked(module) < marked(scheduled) == len(scheduled.get_global_vars()) - 1
    # The weights that it takes are there once the passes have run, which is before arguments are made.
    assert same(compiled(lifting(scheduled), weights=lifting.distinct.arrays), plain)
    assert lifting.used == tuple(range(len(lifting.distinct.arrays))) and lifting.used


def test_packing_tells_what_can_be_tuned() -> None:
    from onnx_prune.backends.tvm.passes import PackedKernels, Tidy

    packing = PackedKernels()
    packing(Tidy()(imported()))
    names = sorted(workload.name for workload in packing.choices.seen)
    zeros = len(packing.choices.layers)  # the small integers of the weights are zero now and then
    assert names == ["batched", "conv2d", "conv2d", "gemm", *["sparse"] * zeros]
    assert zeros and set(packing.choices.seen.values()) == {1}


def test_quotients_by_constants_are_products_unless_they_are_rounded() -> None:
    """Before: Round(x / 3) + x / 3 + x / 0. After: Round(x / 3) + x · (1 / 3) + x / 0."""
    from onnx_prune.backends.tvm.constants import tidy
    from tvm import relax

    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([5], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            thirds = [builder.emit(relax.op.divide(x, relax.const(3.0, "float32"))) for _ in range(2)]
            none = builder.emit(relax.op.divide(x, relax.const(0.0, "float32")))
            total = builder.emit(relax.op.add(builder.emit(relax.op.round(thirds[0])), thirds[1]))
            total = builder.emit_output(builder.emit(relax.op.add(total, none)))
        builder.emit_func_output(total)
    made = operators(tidy(builder.finalize()))
    assert made.count("relax.divide") == 2 and made.count("relax.multiply") == 1


def operators(module: Any) -> list[str]:
    """Those that ``main`` calls."""
    from tvm import relax

    blocks = module["main"].body.blocks
    values = [binding.value for block in blocks for binding in block.bindings]
    return [str(value.op.name) for value in values if isinstance(value, relax.Call)]


def test_what_the_importer_stacks_is_compared_and_added_two_by_two() -> None:
    """Before: max(stack(spread(x), spread(row))). After: maximum(x, row), which spreads it itself."""
    from onnx_prune.backends.tvm.constants import tidy
    from tvm.relax.frontend.onnx import from_onnx
    from tvm.relax.transform import DeadCodeElimination

    g = Graph()
    x = g.input(3, 4)
    largest = g("Max", x, g("ReduceMax", x, axes=[0], keepdims=1), g.scalar(1.0))
    module = from_onnx(g.model(g("Min", g("Sum", largest, x), g.weight(2, 1, 1))).proto)
    made = operators(DeadCodeElimination()(tidy(module)))
    assert [made.count(f"relax.{name}") for name in ("maximum", "add", "minimum")] == [2, 1, 1]
    assert not any(made.count(f"relax.{name}") for name in ("stack", "broadcast_to", "sum", "min"))


@pytest.mark.parametrize(
    ("order", "left"),
    [
        ("torch", ["gelu"]),
        ("half first", ["gelu"]),
        ("not halved", ["gelu", "multiply"]),
        ("another scale", ["multiply", "erf", "add", "multiply", "multiply"]),
        ("another factor", ["multiply", "erf", "add", "tanh", "multiply", "multiply"]),
        ("more axes", ["multiply", "erf", "add", "multiply", "multiply"]),
    ],
)
def test_what_is_written_as_gelu_becomes_one(order: str, left: list[str]) -> None:
    """Before: x · (1 + erf(x / √2)) / 2. After: gelu(x)."""
    from onnx_prune.backends.tvm.constants import tidy
    from tvm import relax

    def module() -> Any:
        builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(data().shape, "float32"))
        op, half = relax.op, relax.const(np.float32(0.5))
        with builder.function("main", [x]):
            with builder.dataflow():
                scale = relax.const(np.float32(2.0 if order == "another scale" else 2**0.5))
                one = relax.const(np.ones((1,) * (5 if order == "more axes" else 0), np.float32))
                total = builder.emit(op.add(one, builder.emit(op.erf(builder.emit(op.divide(x, scale))))))
                factor = builder.emit(op.tanh(x)) if order == "another factor" else x
                if order == "half first":
                    factor = builder.emit(op.multiply(half, factor))
                result = builder.emit(op.multiply(factor, total))
                if order not in ("half first", "not halved"):
                    result = builder.emit(op.multiply(result, half))
                result = builder.emit_output(result)
            builder.emit_func_output(result)
        return builder.finalize()

    t = relax.transform
    tidied = t.DeadCodeElimination()(t.CanonicalizeBindings()(tidy(module())))
    assert [name.split(".")[-1] for name in operators(tidied)] == left
    assert same(compiled(tidied), compiled(module()))
