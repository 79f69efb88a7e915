"""Elementary functions as polynomials: libm calls stay scalar in LLVM loops and cost ten times as much."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

LOG2_E = math.log2(math.e)


def f32(value: float) -> Any:
    return tirx.const(float(value), "float32")


def _horner(x: Any, coefficients: Sequence[float]) -> Any:
    out = f32(coefficients[0])
    for c in coefficients[1:]:
        out = out * x + f32(c)
    return out


def exp(x: Any) -> Any:
    """Relative error below 2e-7. Range reduction by powers of two as in Cephes' expf, degree 5."""
    x = tirx.max(tirx.min(x, f32(88.0)), f32(-87.33))
    n = tirx.floor(x * f32(LOG2_E) + f32(0.5))
    r = x - n * f32(0.693359375) + n * f32(2.12194440e-4)  # log 2 in two parts
    p = _horner(r, [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5])
    power = tirx.reinterpret(
        "float32", (n.astype("int32") + tirx.const(127, "int32")) << tirx.const(23, "int32")
    )
    return (p * r * r + r + f32(1.0)) * power


def exp2(x: Any) -> Any:
    """Two to the power of x, which is below 128. Relative error below 1e-7, exact at whole x; degree 6, by
    interpolation at Chebyshev's points on [0, 1]: TVM vectorises floor, and not nearbyint.
    """
    x = tirx.max(x, f32(-126.0))
    n = tirx.floor(x)
    c = [2.0817914e-4, 1.26921662e-3, 9.6521955e-3, 5.5496022e-2, 0.240227208, 0.693147183, 1.0]
    bits = tirx.reinterpret("int32", _horner(x - n, c))
    return tirx.reinterpret("float32", bits + (n.astype("int32") << tirx.const(23, "int32")))


def erf(x: Any) -> Any:
    """Absolute error below 3e-7. x times a polynomial of degree 14 in x², interpolated at Chebyshev points
    on [-3.75, 3.75]: there is nothing to divide.
    """
    x = tirx.max(tirx.min(x, f32(3.75)), f32(-3.75))
    z = x * x * f32(2 / 3.75**2) - f32(1.0)
    c = [0.000939341411, -0.00226422878, 0.00167600848, -0.00287039654, 0.00941680137]
    c += [-0.0168950371, 0.0247422457, -0.0372212679, 0.0536938331, -0.0716387546]
    c += [0.0907282925, -0.111936396, 0.139269441, -0.188030159, 0.377056928]
    return x * _horner(z, c)


def tanh(x: Any) -> Any:
    """Absolute error below 4e-7. Rational approximation on [-7.9, 7.9] as in Eigen."""
    x = tirx.max(tirx.min(x, f32(7.90531110763549805)), f32(-7.90531110763549805))
    z = x * x
    above = [-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08]
    above += [1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03]
    below = [1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03]
    return x * _horner(z, above) / _horner(z, below)


def sigmoid(x: Any) -> Any:
    return f32(1) / (f32(1) + exp(f32(0) - x))


def silu(x: Any) -> Any:
    return x * sigmoid(x)


def gelu(x: Any) -> Any:
    """Error below 3e-7 of x, and of 1 where that is more; below 1e-6 of small results. The larger of x and 0,
    less |x| / 2 · erfc(|x| / √2): |x| times the eighth power of a polynomial of degree 7 that is exact at 0
    and elsewhere in [0, 5.8] has the least largest error, by linear programming.
    """
    a = tirx.min(tirx.abs(x), f32(5.8))
    c = [3.39033696e-6, -3.76486219e-5, -2.9963487e-5, 1.60463385e-3]
    c += [-7.56639681e-4, -0.0318928824, -0.0914628776, 0.917004043]
    root = _horner(a, c)
    square = root * root
    fourth = square * square
    return tirx.max(x, f32(0)) - a * (fourth * fourth)


def gelu_tanh(x: Any) -> Any:
    return x * sigmoid(f32(2 * math.sqrt(2 / math.pi)) * (x + f32(0.044715) * x * x * x))


# Relax operator of two tensors -> what computes it.
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "relax.add": operator.add,
    "relax.subtract": operator.sub,
    "relax.multiply": operator.mul,
    "relax.divide": operator.truediv,
    "relax.maximum": tirx.max,
    "relax.minimum": tirx.min,
}
# And of one.
ELEMENTWISE = {
    "relax.exp": exp,
    "relax.erf": erf,
    "relax.tanh": tanh,
    "relax.sigmoid": sigmoid,
    "relax.nn.silu": silu,
    "relax.nn.gelu": gelu,
    "relax.nn.gelu_tanh": gelu_tanh,
}
