"""What the functions of a lowered module compute, for profiles and counts."""

from __future__ import annotations

import re
from typing import Any

import tvm
from tvm import relax, tirx

from .forms import DESCRIPTION, FLOPS


def described(module: Any) -> dict[str, tuple[str, float]]:
    """What functions compute, and their floating-point operations, by name; before they become one kernel."""
    kernels = {
        var.name_hint: (str(f.attrs[DESCRIPTION]), float(f.attrs[FLOPS]))
        for var, f in module.functions.items()
        if isinstance(f, tirx.PrimFunc) and f.attrs and DESCRIPTION in f.attrs
    }
    found = dict(kernels)
    for var, function in module.functions.items():
        if isinstance(function, relax.Function) and var.name_hint != "main":
            for inside in _called(function):
                if inside in kernels:
                    found[var.name_hint] = kernels[inside]
    return found


def _called(function: Any) -> list[str]:
    names: list[str] = []

    def visit(expression: Any) -> None:
        if isinstance(expression, tvm.ir.GlobalVar):
            names.append(expression.name_hint)

    relax.analysis.post_order_visit(function, visit)
    return names


def plain(name: str) -> str:
    """A function of TVM's without its number: what was fused."""
    return re.sub(r"\d+(?=_|$)", "", name.removeprefix("fused_"))
