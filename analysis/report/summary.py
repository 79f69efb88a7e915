"""What a run found, as plain values: rows of the table people read, and the JSON that programs read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..cost import Cost
from ..groups import Analysis


@dataclass(frozen=True)
class Row:
    """A line of the table of what changed, as text."""

    name: str
    before: str
    after: str
    change: str

    @staticmethod
    def counts(name: str, before: int, after: int) -> Row:
        return Row(name, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}" if before else "")

    @staticmethod
    def shares(name: str, before: float, after: float) -> Row:
        """Fractions of one, shown as percentages; the change is in percentage points."""
        return Row(name, f"{before:.2%}", f"{after:.2%}", f"{100 * (after - before):+.2f} points")

    @staticmethod
    def times(name: str, before: float, after: float) -> Row:
        """Milliseconds."""
        return Row(name, f"{before:.3f} ms", f"{after:.3f} ms", f"× {after / before:.2f}" if before else "")


def cost_rows(before: Cost, after: Cost) -> list[Row]:
    """Parameters, multiply-accumulates, bytes and memory, before and after."""
    return [
        Row.counts("parameters", before.params, after.params),
        Row.counts("MACs", before.macs, after.macs),
        Row.counts("weight bytes", before.bytes, after.bytes),
        Row.counts("activation bytes", before.memory, after.memory),
    ]


def pin_reasons(analysis: Analysis) -> list[tuple[str, int]]:
    """Why axes of weights are pinned, and how many for each reason, the most frequent first."""
    return Counter(pin.reason for pin in analysis.pins).most_common()


def cost_json(before: Cost, after: Cost) -> dict[str, Any]:
    """Each cost as ``{before, after}``, and the names of uncounted nodes."""
    counts = {
        key: {"before": getattr(before, key), "after": getattr(after, key)}
        for key in ("params", "macs", "bytes", "memory")
    }
    return counts | {"uncounted": list(before.uncounted)}


def analysis_json(analysis: Analysis) -> dict[str, Any]:
    """``groups`` with their explanation, ``blocks``, and ``pinned`` axes with the reason of each."""
    groups = [
        {
            "id": group.id,
            "size": group.size,
            "exactness": group.exactness,
            "params_per_unit": group.params_per_unit,
            "members": [member._asdict() for member in group.members],
            "limits": list(group.limits),
            "explanation": group.explain(),
        }
        for group in analysis.groups
    ]
    return {
        "groups": groups,
        "blocks": [asdict(block) for block in analysis.blocks],
        "pinned": [asdict(pin) for pin in analysis.pins],
    }


class Fitted(Protocol):
    """A layer that was fitted again, with the error of its outputs over their energy."""

    @property
    def before(self) -> float: ...

    @property
    def after(self) -> float: ...


def recovery_json(refits: Sequence[Fitted]) -> dict[str, Any]:
    """How many layers were fitted again, and the mean of their errors."""
    count = len(refits)
    return {
        "layers": count,
        "error_before": sum(r.before for r in refits) / count if count else None,
        "error_after": sum(r.after for r in refits) / count if count else None,
    }


class Sparse(Protocol):
    """What became of a weight."""

    @property
    def weight(self) -> str: ...

    @property
    def node(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def pattern(self) -> object | None: ...

    @property
    def reason(self) -> str: ...

    @property
    def density(self) -> float: ...


def sparse_json(layers: Sequence[Sparse]) -> dict[str, Any]:
    """``layers``: of every weight its pattern, or why it stays dense."""
    return {
        "layers": [
            {
                "weight": layer.weight,
                "node": layer.node,
                "shape": list(layer.shape),
                "pattern": str(layer.pattern) if layer.pattern is not None else None,
                "reason": layer.reason,
                "density": layer.density,
            }
            for layer in layers
        ]
    }


class Export(Protocol):
    """A model whose weights are stored sparsely where that is smaller."""

    @property
    def sparse(self) -> Sequence[str]: ...

    @property
    def before(self) -> int: ...

    @property
    def after(self) -> int: ...


def export_json(export: Export) -> dict[str, Any]:
    """How many weights are stored sparsely, and what that does to the file."""
    return {
        "weights": len(export.sparse),
        "bytes": {"before": export.before, "after": export.after},
    }
