"""Rules broken on purpose, by machine: every mutant is one small error in the rule of one operator.

A mutant wraps the rule, or the functions of the algebra that the rule calls while it runs. It is

- *without effect* when each case of the operator gives the same plan, the same pruned model and the same
  masked original, byte for byte, as with the right rule: it is no error in any of these models;
- *killed* when, for some case, analysis or rewriting raises, a model does not run, the certificate fails,
  equality to the last bit is lost, or a weight axis that must shrink does not;
- a *survivor* otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any, Literal

import numpy as np
from cases import CASES, Case
from graphs import shapes
from onnx_prune import Model, Plan, analyze, verify
from onnx_prune.analysis import axes as algebra
from onnx_prune.analysis import facts
from onnx_prune.analysis.axes import Axis, atom, atoms, factor, find, view
from onnx_prune.analysis.criteria import L2, Setting
from onnx_prune.analysis.goal import Goal
from onnx_prune.analysis.graph import Node
from onnx_prune.analysis.plan import make_plan, select
from onnx_prune.analysis.rules import RULES, Rule
from onnx_prune.analysis.walk import Outputs, Walk
from onnx_prune.passes.cleanup import Cleanup
from onnx_prune.passes.shrink import shrink
from onnx_prune.passes.verify import masked_original

# The weights of a case, and the ratio it is pruned by. Chance may let a wrong rule keep the right units once.
PROBES = ((0, 0.5), (0, 0.25), (1, 0.5), (1, 0.25), (2, 0.5))
# Of calls that a rule makes in a loop, the first few stand for the others.
CALLS = 12

# Operators whose output positions all hold the same number: in which order they come is no error.
UNIFORM = {"ConstantOfShape"}

Kind = Literal[
    "untie", "free", "swap", "exchange", "roll", "reverse", "drop", "misplace", "forget", "distort"
]
KINDS: dict[Kind, str] = {
    "untie": "an output axis that could shrink is not tied to anything",
    "free": "an output axis that cannot shrink is said to be free",
    "swap": "two output axes of equal size are mistaken for each other",
    "exchange": "two outputs of equal shape are mistaken for each other",
    "roll": "the positions of an output axis are off by one",
    "reverse": "the positions of an output axis are counted backwards",
    "drop": "a fact is not stated",
    "misplace": "a contraction or normalisation is said to run along the axis after the right one",
    "forget": "two axes are not unified, or an axis is not pinned",
    "distort": "a cut is off by one, factors or segments come in the wrong order",
}


@dataclass(frozen=True, order=True)
class Mutant:
    """One error in the rule of ``operator``. ``at`` says where: outputs and axes, a fact, or a call."""

    operator: str
    kind: Kind
    at: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.operator}: {self.kind} {' '.join(map(str, self.at))}"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant; ``how`` names the case and what it noticed."""

    state: Literal["killed", "survived", "no effect"]
    how: str = ""


# ---------------------------------------------------------------------------------- sabotage

_FORGET = ("unify", "pin", "tie", "retype")
_DISTORT = ("cut", "cuts", "factor", "view", "total", "prod", "ragged")
_FACTS = {kind for kind in vars(facts).values() if isinstance(kind, type) and kind is not facts.Work}


class _Saboteur:
    """Stands between the walk and the rules. Without a mutant it only notes where one could be made."""

    def __init__(self, operator: str, mutant: Mutant | None) -> None:
        self.operator = operator
        self.mutant = mutant
        self.sites: set[Mutant] = set()
        self._calls: dict[str, int] | None = None  # None while no rule of the operator runs
        self._foreign: set[int] = set()  # facts that rules of other nodes stated, in a body

    def _is(self, kind: Kind, *at: int | str) -> bool:
        """Whether the mutant is this one; notes it as one that can be made."""
        site = Mutant(self.operator, kind, at)
        self.sites.add(site)
        return site == self.mutant

    def rule(self, operator: str, right: Rule) -> Rule:
        def run(walk: Walk, node: Node) -> Outputs:
            outer = self._calls
            lists = _lists_of_facts(walk)
            before = {name: len(stated) for name, stated in lists.items()}
            self._calls = {} if operator == self.operator else None
            try:
                outputs = right(walk, node)
            finally:
                self._calls = outer
            if operator != self.operator:
                self._foreign.update(id(f) for name, old in before.items() for f in lists[name][old:])
                return outputs
            for name, old in before.items():
                stated = lists[name][old:]
                kept = [f for f in stated if id(f) in self._foreign or not self._dropped(f)]
                lists[name][old:] = [f if id(f) in self._foreign else self._moved(walk, f) for f in kept]
            return self._outputs(outputs)

        return run

    def _dropped(self, fact: object) -> bool:
        return type(fact) in _FACTS and self._is("drop", type(fact).__name__)

    def _moved(self, walk: Walk, fact: Any) -> Any:
        field = {"Contraction": "places", "Normalisation": "inputs"}.get(type(fact).__name__)
        if field is None:
            return fact
        for i in dict.fromkeys(i for i, _ in getattr(fact, field)):
            rank = len(walk.axes(fact.node, i))
            right = getattr(fact, field)
            places = tuple((j, (k + 1) % rank if j == i else k) for j, k in right)
            if set(places) != set(right) and self._is("misplace", type(fact).__name__, i):
                return replace(fact, **{field: places})
        return fact

    def _outputs(self, outputs: Outputs) -> Outputs:
        out = [None if types is None else list(types) for types in outputs]
        for o, types in enumerate(out):
            for k, axis in enumerate(types or ()):
                if axis.size > 1 and find(axis).kind != "ragged":
                    assert types is not None
                    types[k] = self._axis(axis, o, k)
        for o, types in enumerate(out):
            for k, m in combinations(range(len(types or ())), 2):
                assert types is not None
                if _alike(types[k], types[m]) and self._is("swap", o, k, m):
                    types[k], types[m] = types[m], types[k]
        for o, p in combinations(range(len(out)), 2):
            a, b = out[o], out[p]
            if a and b and _of_one_shape(a, b) and self._is("exchange", o, p):
                out[o], out[p] = b, a
        return out

    def _axis(self, axis: Axis, o: int, k: int) -> Axis:
        if next(atoms(axis), None) is None:
            return atom(axis.size) if self._is("free", o, k) else axis
        if self._is("untie", o, k):
            return atom(axis.size)
        if self.operator in UNIFORM:
            return axis
        if self._is("roll", o, k):
            return view(axis, np.roll(np.arange(axis.size), 1))
        if axis.size > 2 and self._is("reverse", o, k):
            return view(axis, np.arange(axis.size)[::-1])
        return axis

    def call(self, name: str, right: Callable[..., Any]) -> Callable[..., Any]:
        """``right``, an operation of the algebra, as the rules see it."""

        def run(*arguments: Any) -> Any:
            if self._calls is None:
                return right(*arguments)
            n = self._calls[name] = self._calls.get(name, -1) + 1
            if name in _FORGET:
                if _matters(name, arguments) and (
                    self._is("forget", name, "all") | (n < CALLS and self._is("forget", name, n))
                ):
                    return None
                return right(*arguments)
            if _is_free(arguments) and n < CALLS and self._is("distort", name, n):
                return _DISTORTED[name](*arguments)
            return right(*arguments)

        return run


def _alike(a: Axis, b: Axis) -> bool:
    """Two axes of one size that are not the same, and not both pinned."""
    return a.size == b.size and find(a) is not find(b) and any(next(atoms(x), None) for x in (a, b))


def _of_one_shape(a: list[Axis], b: list[Axis]) -> bool:
    """Two tensors of one shape whose axes are not all the same."""
    same = [x.size for x in a] == [x.size for x in b]
    return same and any(_alike(x, y) for x, y in zip(a, b, strict=True))


def _lists_of_facts(walk: Walk) -> dict[str, list[Any]]:
    return {
        name: value
        for name, value in vars(walk).items()
        if isinstance(value, list) and name not in ("nodes", "opsets", "work")
    }


def _matters(name: str, arguments: Sequence[Any]) -> bool:
    """Whether a call can change anything: it meets two different axes, or pins a free one."""
    if name == "pin":
        return next(atoms(arguments[0]), None) is not None
    if name in ("unify", "tie"):
        return find(arguments[0]) is not find(arguments[1]) and _is_free(arguments)
    return True


def _is_free(arguments: Sequence[Any]) -> bool:
    given = [*arguments[0], *arguments[1:]] if isinstance(arguments[0], list | tuple) else arguments
    return any(isinstance(axis, Axis) and next(atoms(axis), None) is not None for axis in given)


def _shifted(sizes: Sequence[int]) -> list[int]:
    """Every boundary one position later; or earlier, where the last piece would be empty."""
    first, *middle, last = sizes
    return [first + 1, *middle, last - 1] if last > 1 else [first - 1, *middle, last + 1]


def _inside_out(axis: Axis, low: int) -> tuple[Axis, Axis]:
    """The factors of ``axis`` as if it were laid out column by column."""
    outer, inner = factor(axis, axis.size // low)
    return inner, outer


_DISTORTED: dict[str, Callable[..., Any]] = {
    "cut": lambda axis, at: algebra.cut(axis, at + 1 if at + 1 < axis.size else at - 1),
    "cuts": lambda axis, sizes: algebra.cuts(axis, _shifted(sizes)),
    "factor": _inside_out,
    "view": lambda axis, index: view(axis, np.roll(np.asarray(index), 1)),
    "total": lambda parts: algebra.total(list(parts)[::-1]),
    "prod": lambda parts: algebra.prod(list(parts)[::-1]),
    "ragged": lambda blocks: algebra.ragged(list(blocks)[::-1]),
}


@contextmanager
def sabotage(operator: str, mutant: Mutant | None) -> Iterator[set[Mutant]]:
    """Analyse with the mutant in place of the rule of ``operator``; gives the mutants that could be made."""
    saboteur = _Saboteur(operator, mutant)
    rules = dict(RULES)
    patched: list[tuple[Any, str, Any]] = [(Walk, "retype", Walk.retype)]
    for name, module in list(sys.modules.items()):
        if name.startswith("onnx_prune.analysis.rules."):
            for operation in (*_FORGET, *_DISTORT):
                right = getattr(algebra, operation, None)
                if right is not None and vars(module).get(operation) is right:
                    patched.append((module, operation, right))
    try:
        RULES.update({op: saboteur.rule(op, rule) for op, rule in rules.items()})
        for owner, name, right in patched:
            setattr(owner, name, saboteur.call(name, right))
        yield saboteur.sites
    finally:
        RULES.update(rules)
        for owner, name, right in patched:
            setattr(owner, name, right)


# ---------------------------------------------------------------------------------- judgement


@dataclass(frozen=True)
class Trace:
    """All that an analysis leads to: the plan, the pruned model and the masked original."""

    plan: Plan
    pruned: Model
    masked: bytes

    def same_as(self, other: Trace) -> bool:
        mine, yours = (
            (t.plan.to_json(), t.pruned.proto.SerializeToString(deterministic=True), t.masked)
            for t in (self, other)
        )
        return mine == yours


Probe = tuple[int, float]


@cache
def model_of(case: Case, draw: int) -> Model:
    return case.build(draw)


def trace(case: Case, probe: Probe) -> Trace:
    """Analyse, plan and rewrite a case. Raises whatever a step does."""
    draw, ratio = probe
    model = model_of(case, draw)
    analysis = analyze(model)
    chosen = make_plan(analysis, Goal(ratio=ratio), L2.rank(Setting(analysis)))
    masked = masked_original(analysis, select(analysis, chosen))
    smaller = Cleanup(fold_batch_norm=False)(shrink(model, chosen))
    return Trace(chosen, smaller, masked.SerializeToString(deterministic=True))


@cache
def right_trace(case: Case, probe: Probe) -> Trace:
    return trace(case, probe)


def unshrunk(case: Case, draw: int, after: Model) -> list[str]:
    """Axes of weights, as "name:axis", that are larger in ``after`` than the case asks for."""
    before, left = shapes(model_of(case, draw)), shapes(after)
    missed = []
    for axis, parts in case.shrinks.items():
        name, _, k = axis.partition(":")
        old, new = before[name][int(k)], left[name][int(k)]
        if new == old or new * parts > old:
            missed.append(axis)
    return missed


def complaint(case: Case, probe: Probe, made: Trace) -> str:
    """What is wrong with what an analysis led to; empty when nothing is. Raises when a model does not run."""
    draw, ratio = probe
    if ratio == 0.5 and (missed := unshrunk(case, draw, made.pruned)):
        return f"{', '.join(missed)} did not shrink"
    verdict = verify(model_of(case, draw), made.pruned, made.plan)
    if not verdict.ok:
        return "the certificate fails"
    return "bits differ" if case.exact and verdict.max_relative_error else ""


@cache
def fault(case: Case, probe: Probe) -> str:
    """What is wrong with a case by the right rule: nothing can be learned about mutants from it."""
    try:
        return complaint(case, probe, right_trace(case, probe))
    except Exception as error:  # whatever is raised says that the rule, or the case, is not right
        return f"{type(error).__name__}: {error}"


@cache
def mutants_of(operator: str) -> tuple[Mutant, ...]:
    """Every mutant that can be made in some case of ``operator``, in a stable order."""
    found: set[Mutant] = set()
    for case in CASES[operator]:
        with sabotage(operator, None) as sites:
            analyze(model_of(case, 0))
        found |= sites
    return tuple(sorted(found, key=str))


def judge(mutant: Mutant) -> Outcome:
    """What becomes of a mutant, over the cases of its operator."""
    changed = False
    for probe in PROBES:
        for case in CASES[mutant.operator]:
            if fault(case, probe):
                continue
            try:
                with sabotage(mutant.operator, mutant):
                    made = trace(case, probe)
                    if made.same_as(right_trace(case, probe)):
                        continue
                    changed = True
                    found = complaint(case, probe, made)
            except Exception as error:  # an error of any kind is what the mutant is noticed by
                found = f"{type(error).__name__} is raised"
            if found:
                return Outcome("killed", f"{case.name}: {found}")
    return Outcome("survived" if changed else "no effect")
