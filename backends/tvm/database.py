"""Times of kernels in the database format of TVM's MetaSchedule, so that others can read them.

A record is a kernel (a function, not scheduled yet, that carries its workload and its choice as attributes),
the trace of its schedule, the target, and the seconds of a call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm
from tvm.s_tir import meta_schedule

from ...analysis.errors import BackendError
from ...passes.execute import first_line
from .machine import core_of
from .workloads import Choice, Measured, Workload, key, scheduled

_WORKLOAD, _CHOICE = "onnx_prune.workload", "onnx_prune.choice"


class Database:
    """A folder of records.

    Args:
        folder: made where there is none.

    Raises:
        BackendError: the folder cannot be written, or holds no such database.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._records = meta_schedule.database.JSONDatabase(work_dir=str(folder))
        except Exception as error:  # TVM raises what its parser does
            raise BackendError(f"cannot open the database '{folder}': {first_line(error)}") from error

    def best(self, target: Mapping[str, Any]) -> dict[str, Measured]:
        """The fastest choice of each workload by its `workloads.key`, as measured on a target."""
        wanted = str(tvm.target.Target(dict(target)))
        found: dict[str, Measured] = {}
        for record in self._records.get_all_tuning_records():
            attributes = record.workload.mod["main"].attrs
            if str(record.target) != wanted or _WORKLOAD not in attributes or not record.run_secs:
                continue
            name = str(attributes[_WORKLOAD])
            seconds = min(float(second) for second in record.run_secs)
            if name not in found or seconds < found[name].seconds:
                found[name] = Measured(tuple(json.loads(str(attributes[_CHOICE]))), seconds)
        return found

    def add(
        self, workload: Workload, far: bool, choice: Choice, seconds: float, target: Mapping[str, Any]
    ) -> None:
        """A time of a kernel on a target."""
        wanted = tvm.target.Target(dict(target))
        core = core_of(wanted)
        function = workload.function(choice, core).with_attr(_WORKLOAD, key(workload, far))
        function = function.with_attr(_CHOICE, json.dumps(choice))
        module = tvm.IRModule({"main": function})
        with wanted:
            schedule = scheduled(workload, module, core)
        record = meta_schedule.database.TuningRecord(
            schedule.trace,
            self._records.commit_workload(module),
            [seconds],
            wanted,
            meta_schedule.arg_info.ArgInfo.from_prim_func(function),
        )
        self._records.commit_tuning_record(record)
