"""onnx-prune: prune ONNX models at graph level, prove the result, compile it.

    import onnx_prune

    model = onnx_prune.load("model.onnx")
    result = onnx_prune.prune(model, ratio=0.5)
    print(result.before.params, result.after.params, result.verdict.max_relative_error)
    onnx_prune.save(result.model, "smaller.onnx")

`prune` is `plan`, `apply` and `verify` in a row; each can be called by itself. `compile` needs the extra
``tvm``; everything else works without it.
"""

from __future__ import annotations

from .analysis.blocks import Block
from .analysis.cost import Cost, measure, predict
from .analysis.errors import (
    BackendError,
    CheckError,
    ModelError,
    OnnxPruneError,
    OutputError,
    PlanError,
    PluginError,
    PluginWarning,
    UsageError,
)
from .analysis.explain import Explanation, explain
from .analysis.goal import Goal
from .analysis.groups import Analysis, Group, Member, Pin, analyze
from .analysis.model import Model, load
from .analysis.patterns.discover import Discovery, discover
from .analysis.patterns.profile import Profile, all_profiles, read_profile
from .analysis.patterns.validate import Finding, Validation, validate
from .analysis.plan import Entry, Plan
from .analysis.sensitivity import Curve, Sensitivity
from .analysis.truncation import Ranks
from .backends.conformance.run import Result as CaseResult
from .backends.conformance.run import run_suite
from .backends.conformance.suite import Suite, write_suite
from .backends.emulator.report import Emulated
from .backends.remote import RemoteTiming
from .backends.run import bench, bench_remote, compile, emulate, emulate_gpu, latency_table, profile, tune
from .passes.data.calibrate import Calibration, open_calibration
from .passes.data.calibrate import Spec as CalibrationSource
from .passes.options import Options, load_sensitivity
from .passes.prune import (
    PruneResult,
    apply,
    export_lists,
    load_plan,
    plan,
    prune,
    verify,
    without_blocks,
)
from .passes.recover import Refit
from .passes.satisfy import Satisfied, satisfy
from .passes.save import save
from .passes.sensitivity import sensitivity
from .passes.soundness import check_rule
from .passes.sparse_export import SparseExport, as_sparse_initializers, check_sparse_export
from .passes.sparsify import SparseLayer, Sparsified, sparsify
from .passes.verify import Verdict
from .passes.weights import take_weights

__all__ = [
    "Analysis",
    "BackendError",
    "Block",
    "Calibration",
    "CalibrationSource",
    "CaseResult",
    "CheckError",
    "Cost",
    "Curve",
    "Discovery",
    "Emulated",
    "Entry",
    "Explanation",
    "Finding",
    "Goal",
    "Group",
    "Member",
    "Model",
    "ModelError",
    "OnnxPruneError",
    "Options",
    "OutputError",
    "Pin",
    "Plan",
    "PlanError",
    "PluginError",
    "PluginWarning",
    "Profile",
    "PruneResult",
    "Ranks",
    "Refit",
    "RemoteTiming",
    "Satisfied",
    "Sensitivity",
    "SparseExport",
    "SparseLayer",
    "Sparsified",
    "Suite",
    "UsageError",
    "Validation",
    "Verdict",
    "all_profiles",
    "analyze",
    "apply",
    "as_sparse_initializers",
    "bench",
    "bench_remote",
    "check_rule",
    "check_sparse_export",
    "compile",
    "discover",
    "emulate",
    "emulate_gpu",
    "explain",
    "export_lists",
    "latency_table",
    "load",
    "load_plan",
    "load_sensitivity",
    "measure",
    "open_calibration",
    "plan",
    "predict",
    "profile",
    "prune",
    "read_profile",
    "run_suite",
    "satisfy",
    "save",
    "sensitivity",
    "sparsify",
    "take_weights",
    "tune",
    "validate",
    "verify",
    "without_blocks",
    "write_suite",
]
