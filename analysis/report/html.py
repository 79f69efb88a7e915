"""One page that shows what changed, group by group. No scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from ..groups import Analysis
from ..plan import Plan


@dataclass(frozen=True)
class Row:
    """A line of the table of what changed, as text."""

    name: str
    before: str
    after: str
    change: str

    @staticmethod
    def counts(name: str, before: int, after: int) -> Row:
        return Row(name, f"{before:,}", f"{after:,}", f"−{1 - after / before:.1%}" if before else "")

    @staticmethod
    def times(name: str, before: float, after: float) -> Row:
        """Milliseconds."""
        return Row(name, f"{before:.3f} ms", f"{after:.3f} ms", f"× {after / before:.2f}")


@dataclass(frozen=True)
class _GroupLine:
    id: str
    size: int
    kept: int
    exactness: str
    explanation: str


def render(title: str, rows: Sequence[Row], certificate: str, analysis: Analysis, plan: Plan) -> str:
    """The page as text."""
    kept = {entry.group: len(entry.keep) for entry in plan.entries}
    groups = [
        _GroupLine(g.id, g.size, kept.get(g.id, g.size), g.exactness, g.explain()) for g in analysis.groups
    ]
    environment = Environment(loader=PackageLoader("onnx_prune.analysis.report", "."), autoescape=True)
    return environment.get_template("report.html.j2").render(
        title=title, rows=rows, certificate=certificate, groups=groups, pins=analysis.pins, digest=plan.digest
    )


def write_html(
    path: Path, title: str, rows: Sequence[Row], certificate: str, analysis: Analysis, plan: Plan
) -> None:
    path.write_text(render(title, rows, certificate, analysis, plan), encoding="utf-8")
