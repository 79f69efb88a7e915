"""Cases of the operators that act on each position alone."""

from __future__ import annotations

from typing import Any

from casebook import SIZE, Net, add
from onnx import TensorProto

S = SIZE
CUBE = (S, S, S)
ALL = "a012 z012"

# Operator -> what maps whole numbers into its domain (factor, low, high), and its attributes.
_REAL: dict[str, tuple[float, float, float]] = dict.fromkeys(
    [
        *"Identity Relu LeakyRelu ThresholdedRelu Sigmoid Tanh Erf Gelu Exp Neg Abs Softplus".split(),
        *"Softsign HardSigmoid HardSwish Elu Selu Celu Mish Swish Ceil Floor Round Sign Sin Cos Tan".split(),
        *"Atan Sinh Cosh Asinh Dropout Shrink".split(),
    ],
    (0.05, -8, 8),
)
_REAL |= dict.fromkeys(("Asin", "Acos", "Atanh"), (0.02, -0.9, 0.9))
_REAL |= dict.fromkeys(("Sqrt", "Log", "Reciprocal", "Acosh"), (0.1, 1.0, 20.0))
_ATTRS: dict[str, dict[str, Any]] = {"Shrink": {"lambd": 0.6, "bias": 0.3}}
_OPSETS = {"Gelu": 20, "Swish": 24, "Mish": 18, "HardSwish": 17, "BitwiseNot": 18}


def _grain(g: Net, x: str) -> str:
    """Back to whole numbers: what a function gives can differ in the last bit by where it stands."""
    return str(g("Round", g("Mul", x, g.scalar(16))))


def _float(g: Net, x: str) -> str:
    return str(g("Cast", x, to=TensorProto.FLOAT))


def _unary(op: str, factor: float, low: float, high: float) -> None:

    def body(g: Net) -> str:
        h = g("Clip", g("Mul", g.free(*CUBE), g.scalar(factor)), g.scalar(low), g.scalar(high))
        y = g(op, h, **_ATTRS.get(op, {}))
        return g.use(g("Ceil", y) if op == "Round" else _grain(g, y), *CUBE)

    add(op, "every axis free", ALL, body, opset=_OPSETS.get(op, 17))


for _operator, _domain in _REAL.items():
    _unary(_operator, *_domain)


def _logical(g: Net, name: str) -> str:
    return str(g("Greater", g.free(*CUBE, name=name), g.scalar(1)))


def _whole(g: Net, name: str, to: int = TensorProto.INT32) -> str:
    x = g.free(*CUBE, name=name)
    return str(g("Cast", g("Mod", g("Abs", x), g.scalar(7), fmod=1), to=to))


def _add_unary_of(op: str, make: Any, opset: int = 17) -> None:
    add(op, "every axis free", ALL, lambda g: g.use(_float(g, g(op, make(g))), *CUBE), opset=opset)


add("Cast", "of truths", ALL, lambda g: g.use(_float(g, _logical(g, "a")), *CUBE))
_add_unary_of("Not", lambda g: _logical(g, "a"))
_add_unary_of("BitwiseNot", lambda g: _whole(g, "a"), opset=18)
_add_unary_of("IsNaN", lambda g: g("Sqrt", g.free(*CUBE)))
_add_unary_of("IsInf", lambda g: g("Reciprocal", g("Relu", g.free(*CUBE))))

# How the right operand is laid out against (6, 6, 6); and which of its weights then exist.
_OPERANDS = {"same shape": CUBE, "fewer axes": (S, S), "a row": (S,), "ones between": (S, 1, S)}


def _binary(op: str, make: Any, finish: Any, opset: int = 17, **attrs: Any) -> None:
    for name, sizes in _OPERANDS.items():
        made = "".join(str(k) for k, size in enumerate(sizes) if size > 1)

        def body(g: Net, sizes: tuple[int, ...] = sizes) -> str:
            left, right = make(g, g.free(*CUBE)), make(g, g.free(*sizes, name="b"))
            return g.use(finish(g, g(op, left, right, **attrs)), *CUBE)

        add(op, name, f"{ALL} b{made}", body, opset=opset)
        if op == "PRelu":
            continue

        def swapped(g: Net, sizes: tuple[int, ...] = sizes) -> str:
            left, right = make(g, g.free(*sizes, name="b")), make(g, g.free(*CUBE))
            return g.use(finish(g, g(op, left, right, **attrs)), *CUBE)

        if name == "fewer axes":
            add(op, "fewer axes on the left", f"{ALL} b{made}", swapped, opset=opset)


def _plain(g: Net, x: str) -> str:
    return x


def _clipped(low: float, high: float) -> Any:
    return lambda g, x: g("Clip", x, g.scalar(low), g.scalar(high))


def _positive(g: Net, x: str) -> str:
    return str(g("Cast", g("Mod", g("Abs", x), g.scalar(7), fmod=1), to=TensorProto.INT32))


for _op in "Add Sub Mul Min Max Sum PRelu".split():
    _binary(_op, _plain, _plain)
for _op in "Div Mean".split():
    _binary(_op, _clipped(1, 9), _grain)
_binary("Pow", _clipped(1, 3), _plain)
_binary("Mod", _clipped(1, 9), _plain, fmod=1)
for _op in "Equal Greater GreaterOrEqual Less LessOrEqual".split():
    _binary(_op, _clipped(-4, 4), _float)
for _op in "And Or Xor".split():
    _binary(_op, lambda g, x: g("Greater", x, g.scalar(1)), _float)
for _op in "BitwiseAnd BitwiseOr BitwiseXor".split():
    _binary(_op, _positive, _float, opset=18)
_binary(
    "BitShift",
    lambda g, x: g("Cast", g("Mod", g("Abs", x), g.scalar(7), fmod=1), to=TensorProto.UINT32),
    _float,
    direction="LEFT",
)


def _where(g: Net) -> str:
    condition = g("Greater", g.free(S, 1, S, name="b"), g.scalar(0))
    y = g("Where", condition, g.free(*CUBE), g.free(S, S, name="c"))
    return g.use(y, *CUBE)


add("Where", "three shapes", f"{ALL} b02 c01", _where)
add("Clip", "two bounds", ALL, lambda g: g.use(g("Clip", g.free(*CUBE), g.scalar(-5), g.scalar(7)), *CUBE))


def _three(op: str) -> None:
    def body(g: Net) -> str:
        inputs = [g.free(S, 1, 1), g.free(1, S, 1, name="b"), g.free(1, 1, S, name="c")]
        return g.use(_grain(g, g(op, *inputs)), *CUBE)

    add(op, "one axis each", "a0 b1 c2 z012", body)


for _op in "Sum Mean Min Max".split():
    _three(_op)


def _parameter(op: str) -> None:
    """A constant on the right whose axes must shrink too."""

    def body(g: Net) -> str:
        return g.use(g(op, g.free(*CUBE), g.weight(S, 1, S, name="p")), *CUBE)

    add(op, "a parameter", f"{ALL} p:0 p:2", body)


for _op in "Add Sub Mul Min Max Sum PRelu".split():
    _parameter(_op)
