"""One page that shows what changed, group by group. No scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..groups import Analysis
from ..plan import Plan
from .summary import Row


@dataclass(frozen=True)
class _GroupLine:
    id: str
    size: int
    kept: int
    exactness: str
    explanation: str


def render(
    title: str,
    rows: Sequence[Row],
    certificate: str,
    holds: bool,
    analysis: Analysis,
    plan: Plan,
    notes: Sequence[str] = (),
) -> str:
    """The page as text; the same arguments give the same text.

    Args:
        title: names the model.
        rows: the table of what changed.
        certificate: what the check found, as a sentence that follows the word "certificate".
        holds: whether it held.
        analysis: of the model before pruning; its groups and pins are listed.
        plan: what was removed.
        notes: sentences below the table, such as how times were taken.
    """
    kept = {entry.group: len(entry.keep) for entry in plan.entries}
    groups = [
        _GroupLine(g.id, g.size, kept.get(g.id, g.size), g.exactness, g.explain()) for g in analysis.groups
    ]
    environment = Environment(
        loader=PackageLoader("onnx_prune.analysis.report", "."),
        autoescape=True,  # names in a model are anybody's text
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        rows=rows,
        notes=notes,
        certificate=certificate,
        holds=holds,
        groups=groups,
        pins=analysis.pins,
        options={name: _text(value) for name, value in plan.options.items()},
        digest=plan.digest,
    )


def _text(value: object) -> str:
    return (", ".join(map(str, value)) or "nothing") if isinstance(value, list) else str(value)
