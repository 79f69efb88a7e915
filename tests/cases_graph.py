"""Cases of control flow, recurrent layers, lookups by computed positions and sampling."""

from __future__ import annotations

import numpy as np
from casebook import SIZE, Net, add, case
from onnx import TensorProto

S = SIZE
CUBE = (S, S, S)
SQUARE = (S, S)
FLOAT, BOOL, INT = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64


# ------------------------------------------------------------------ control flow


def _flag(g: Net, x: str, holds: bool) -> str:
    """Whether the sum of magnitudes of ``x`` is positive, or is not; computed at run time."""
    total = g("ReduceSum", g("Abs", x), keepdims=0)
    return str(g("Greater" if holds else "Less", total, g.scalar(0)))


def _branches(holds: bool) -> None:
    def body(g: Net) -> list[str]:
        h = g.free(*CUBE)
        then, other = g.inside("then"), g.inside("other")
        outputs = []
        for net, scale, w in ((then, 2, "w"), (other, 3, "u")):
            first = net("MatMul", h, net.weight(S, S, name=w))
            second = net("Transpose", net("Mul", h, net.scalar(scale)), perm=[1, 2, 0])
            outputs.append(net.body([(first, CUBE, FLOAT), (second, CUBE, FLOAT)]))
        flag = _flag(g, "x0", holds)
        y, t = g("If", flag, outputs=2, then_branch=outputs[0], else_branch=outputs[1])
        return [g.use(y, *CUBE), g.use(t, *CUBE, name="y")]

    add("If", f"the {'first' if holds else 'second'} branch", "a012 w:0 w:1 u:0 u:1 z012 y012", body)


_branches(True)
_branches(False)


@case("If", "a012 b02 z012")
def branches_of_different_tensors(g: Net) -> str:
    h, k = g.free(*CUBE), g.free(S, 1, S, name="b")
    then, other = g.inside("then"), g.inside("other")
    sum_, neg = then("Add", h, k), other("Neg", h)
    graphs = [then.body([(sum_, CUBE, FLOAT)]), other.body([(neg, CUBE, FLOAT)])]
    return g.use(g("If", _flag(g, "x0", True), then_branch=graphs[0], else_branch=graphs[1]), *CUBE)


@case("If", "a01 z01")
def branches_that_never_meet(g: Net) -> str:
    """Each branch has a tensor of its own: only the If ties them."""
    then, other = g.inside("then"), g.inside("other")
    left, right = g.free(*SQUARE), g.free(*SQUARE, name="b")
    graphs = [
        then.body([(then("Relu", left), SQUARE, FLOAT)]),
        other.body([(other("Neg", right), SQUARE, FLOAT)]),
    ]
    return g.use(g("If", _flag(g, "x0", False), then_branch=graphs[0], else_branch=graphs[1]), *SQUARE)


@case("If", "a01 z01")
def a_condition_known_beforehand(g: Net) -> str:
    h = g.free(*SQUARE)
    then, other = g.inside("then"), g.inside("other")
    graphs = [
        then.body([(then("Relu", h), SQUARE, FLOAT)]),
        other.body([(other("Neg", h), SQUARE, FLOAT)]),
    ]
    flag = g.const(True, bool)
    return g.use(g("If", flag, then_branch=graphs[0], else_branch=graphs[1]), *SQUARE)


def _loop_body(g: Net, states: int) -> tuple[Net, list[str], str]:
    net = g.inside("loop")
    net.takes(name="step", kind=INT)
    on = net.takes(name="on", kind=BOOL)
    return net, [net.takes(*SQUARE, name=f"state{i}") for i in range(states)], str(net("Identity", on))


@case("Loop", "a01 b01 z01 y12")
def a_state_and_what_it_was(g: Net) -> list[str]:
    k, h = g.free(*SQUARE, name="b"), g.free(*SQUARE)
    net, (state,), on = _loop_body(g, 1)
    new = net("Add", net("Mul", state, net.scalar(-2)), k)
    body = net.body([(on, [], BOOL), (new, SQUARE, FLOAT), (net("Neg", new), SQUARE, FLOAT)])
    last, all_ = g("Loop", g.const(3, np.int64), "", h, outputs=2, body=body)
    return [g.use(last, *SQUARE), g.use(all_, 3, *SQUARE, name="y")]


@case("Loop", "a01 z01")
def two_states_that_change_places(g: Net) -> list[str]:
    h, k = g.free(*SQUARE), g.free(*SQUARE, name="b")
    net, (one, other), on = _loop_body(g, 2)
    sum_ = net("Add", one, net("Mul", other, net.scalar(2)))
    body = net.body([(on, [], BOOL), (net("Identity", other), SQUARE, FLOAT), (sum_, SQUARE, FLOAT)])
    first, second = g("Loop", g.const(3, np.int64), "", h, k, outputs=2, body=body)
    return [g.use(first, *SQUARE), g.use(second, *SQUARE, name="y")]


@case("Loop", "a01 b01 w:0 w:1 z01 y01")
def a_layer_applied_again_and_again(g: Net) -> list[str]:
    h, k = g.free(*SQUARE), g.free(*SQUARE, name="b")
    w = g.weight(S, S, name="w")
    net, (state, other), on = _loop_body(g, 2)
    new = net("Clip", net("MatMul", state, w), net.scalar(-9), net.scalar(9))
    body = net.body([(on, [], BOOL), (new, SQUARE, FLOAT), (net("Neg", other), SQUARE, FLOAT)])
    first, second = g("Loop", g.const(2, np.int64), "", h, k, outputs=2, body=body)
    return [g.use(first, *SQUARE), g.use(second, *SQUARE, name="y")]


def _scan(name: str, shrinks: str, along: int, stack: int, back: int) -> None:
    def body(g: Net) -> list[str]:
        start, x = g.free(S, S, name="b"), g.free(*CUBE)
        net = g.inside("scan")
        state, step = net.takes(*SQUARE, name="state"), net.takes(*SQUARE, name="step")
        new = net("Add", net("Mul", state, net.scalar(-2)), step)
        inner = net.body([(new, SQUARE, FLOAT), (net("Relu", new), SQUARE, FLOAT)])
        last, all_ = g(
            "Scan",
            start,
            x,
            outputs=2,
            body=inner,
            num_scan_inputs=1,
            scan_input_axes=[along],
            scan_output_axes=[stack],
            scan_input_directions=[back],
        )
        return [g.use(last, *SQUARE), g.use(all_, *CUBE, name="y")]

    add("Scan", name, shrinks, body)


_scan("along the first", "a12 b01 z01 y12", 0, 0, 0)
_scan("along the middle, laid out last", "a02 b01 z01 y01", 1, 2, 1)
_scan("along the last, laid out in the middle", "a01 b01 z01 y02", -1, -2, 0)


# ------------------------------------------------------------------ recurrent layers


def _recurrent(op: str, gates: int, name: str, directions: int = 1, full: bool = False) -> None:
    def body(g: Net) -> list[str]:
        x = g("Mul", g.free(*CUBE), g.scalar(0.01))
        w = g.weight(directions, gates * S, S, name="w")
        r = g.weight(directions, gates * S, S, name="r")
        inputs = [x, w, r]
        if full:
            state = g("Mul", g.free(directions, S, S, name="b"), g.scalar(0.02))
            lengths = g.const([S, 3, S, 4, S, 5], np.int32)
            inputs += [g.weight(directions, 2 * gates * S, name="bias"), lengths, state]
        if full and op == "LSTM":
            inputs += [state, g.weight(directions, 3 * S, name="p")]
        way = {"direction": "bidirectional"} if directions == 2 else {}
        count = 3 if op == "LSTM" else 2
        made = g(op, *inputs, outputs=count, hidden_size=S, **way)
        outs = [g.use(made[0], S, directions, S, S, name="z")]
        outs += [g.use(y, directions, S, S, name=n) for y, n in zip(made[1:], "yv", strict=False)]
        return outs

    shrinks = "a12 w:1 w:2 r:1 r:2 z23 y12" + (" v12" if op == "LSTM" else "")
    if full:
        shrinks += " bias:1 b2" + (" p:1" if op == "LSTM" else "")
    add(op, name, shrinks, body, exact=False)


def _of_heads(op: str, gates: int) -> None:
    """Batch and features are factors of one axis; both shrink, since the features are an axis of the cell."""

    def body(g: Net) -> str:
        w, r = g.weight(1, gates * 4, 4, name="w"), g.weight(1, gates * 4, 4, name="r")
        return g.joined(g(op, g("Mul", g.heads((1, 4, 4)), g.scalar(0.05)), w, r, hidden_size=4))

    add(op, "of heads", "a:1/4 z:0/4", body, exact=False)


for _op, _gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    _recurrent(_op, _gates, "forward")
    _recurrent(_op, _gates, "two directions", directions=2)
    _recurrent(_op, _gates, "with every input", directions=2, full=True)
    _of_heads(_op, _gates)


# ------------------------------------------------------------------ lookups


def _positions(g: Net, *shape: int, below: int = S) -> str:
    """Positions computed at run time."""
    return str(g("Cast", g("Mod", g("Abs", g.whole(*shape)), g.scalar(below), fmod=1), to=INT))


@case("GatherElements", "b0 b2 z0 z2")
def along_the_middle(g: Net) -> str:
    index = g("Cast", g("Mod", g("Abs", g.free(*CUBE, name="b")), g.scalar(S), fmod=1), to=INT)
    return g.use(g("GatherElements", g.free(*CUBE), index, axis=1), *CUBE)


@case("GatherElements", "a12 b12 z12")
def along_the_first(g: Net) -> str:
    index = g("Cast", g("Mod", g("Abs", g.free(4, S, S, name="b")), g.scalar(S), fmod=1), to=INT)
    return g.use(g("GatherElements", g.free(*CUBE), index, axis=0), 4, S, S)


@case("GatherND", "a2 z1")
def rows(g: Net) -> str:
    return g.use(g("GatherND", g.free(*CUBE), _positions(g, S, 2)), *SQUARE)


@case("GatherND", "a02 b0 z02")
def by_batch(g: Net) -> str:
    index = g("Cast", g("Mod", g("Abs", g.free(S, S, 1, name="b")), g.scalar(S), fmod=1), to=INT)
    return g.use(g("GatherND", g.free(*CUBE), index, batch_dims=1), *CUBE)


@case("ScatterND", "a2 b1 z2")
def whole_rows(g: Net) -> str:
    index = g.const([[k, (2 * k + 1) % S] for k in range(S)], np.int64)
    return g.use(g("ScatterND", g.free(*CUBE), index, g.free(*SQUARE, name="b")), *CUBE)


@case("ScatterND", "a12 b12 z12")
def added_up(g: Net) -> str:
    index = _positions(g, 4, 1)
    h = g("ScatterND", g.free(*CUBE), index, g.free(4, S, S, name="b"), reduction="add")
    return g.use(h, *CUBE)


def _scatter(op: str, axis: int, others: str, opset: int = 17) -> None:
    def body(g: Net) -> str:
        shuffled = np.argsort(g.rng.random(CUBE), axis=axis)
        updates = g.free(*CUBE, name="b")
        return g.use(g(op, g.free(*CUBE), g.const(shuffled, np.int64), updates, axis=axis), *CUBE)

    add(op, f"along {axis}", f"a{others} b{others} z{others}", body, opset=opset)


_scatter("ScatterElements", 1, "02")
_scatter("ScatterElements", -1, "01")
_scatter("Scatter", 0, "12", opset=10)


@case("OneHot", "a01 z02")
def in_the_middle(g: Net) -> str:
    index = g("Cast", g("Mod", g("Abs", g.free(*SQUARE)), g.scalar(S), fmod=1), to=INT)
    y = g("OneHot", index, g.ints(S), g.const([-1, 2]), axis=1)
    return g.use(y, *CUBE)


@case("OneHot", "a01 z01")
def at_the_end(g: Net) -> str:
    index = g("Cast", g("Mod", g("Abs", g.free(*SQUARE)), g.scalar(S), fmod=1), to=INT)
    return g.use(g("OneHot", index, g.ints(S), g.const([-1, 2])), *CUBE)


# ------------------------------------------------------------------ sampling and triangles


@case("GridSample", "a1 z1")
def between_pixels(g: Net) -> str:
    grid = g("Mul", g.whole(S, S, S, 2), g.scalar(0.13))
    return g.use(g("Round", g("GridSample", g.free(S, S, S, S), grid)), S, S, S, S)


@case("GridSample", "a01 b012 z0123")
def by_a_computed_grid(g: Net) -> str:
    grid = g("Mul", g.free(S, S, S, 2, name="b"), g.scalar(0.002))
    return g.use(g("Round", g("GridSample", g.free(S, S, S, S), grid)), S, S, S, S)


@case("RoiAlign", "a1 z1")
def boxes(g: Net) -> str:
    corners = g.const([[0, 0, 3, 4], [1, 1, 5, 5]])
    which = g.const([3, 1], np.int64)
    y = g("RoiAlign", g.free(S, S, S, S), corners, which, output_height=2, output_width=2)
    return g.use(g("Round", y), 2, S, 2, 2)


@case("LRN", "a0123 z0123", exact=False)
def over_neighbours(g: Net) -> str:
    return g.use(g("LRN", g.free(S, S, S, S), size=3, alpha=0.5), S, S, S, S)


def _triangle(name: str, upper: int, *more: int) -> None:
    def body(g: Net) -> str:
        return g.use(g("Trilu", g.free(*CUBE), *(g.const(k, np.int64) for k in more), upper=upper), *CUBE)

    add("Trilu", name, "a0 z0", body)


_triangle("upper", 1)
_triangle("lower", 0)
_triangle("below the diagonal", 0, -2)
_triangle("above the diagonal", 1, 1)


@case("EyeLike", "a01 z01")
def added(g: Net) -> str:
    h = g("Relu", g.free(*SQUARE))
    z = g.use(h, *SQUARE)
    eye = g.use(g("EyeLike", g.free(*SQUARE, name="b"), k=1), *SQUARE, name="y")
    return str(g("Add", z, eye))


@case("CastLike", "a012 z012")
def like_a_float(g: Net) -> str:
    truth = g("Greater", g.free(*CUBE), g.scalar(1))
    return g.use(g("CastLike", truth, g.scalar(1)), *CUBE)


@case("CastLike", "a012 z012 b0")
def like_another_tensor(g: Net) -> list[str]:
    """What it is like says nothing of axes."""
    other = g.free(S, name="b")
    truth = g("Greater", g.free(*CUBE), g.scalar(1))
    return [g.use(g("CastLike", truth, other), *CUBE), g.use(other, S, name="y")]
