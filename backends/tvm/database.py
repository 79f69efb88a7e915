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
from .computed import Choice
from .machine import core_of
from .workloads import Measured, Workload, key, scheduled

_WORKLOAD, _CHOICE = "onnx_prune.workload", "onnx_prune.choice"
_ESTIMATED = "onnx_prune.estimated"  # what seconds are where they are none, such as cycles of an emulation


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
        """The fastest choice of each workload by its `workloads.key`, on a target.

        What was estimated counts where nothing was measured.
        """
        wanted = str(tvm.target.Target(dict(target)))
        found: dict[str, Measured] = {}
        for record in self._records.get_all_tuning_records():
            attributes = record.workload.mod["main"].attrs
            if str(record.target) != wanted or _WORKLOAD not in attributes or not record.run_secs:
                continue
            name = str(attributes[_WORKLOAD])
            seconds = min(float(second) for second in record.run_secs)
            choice = tuple(json.loads(str(attributes[_CHOICE])))
            new = Measured(choice, seconds, _ESTIMATED in attributes)
            old = found.get(name)
            if old is None or (new.estimated, new.seconds) < (old.estimated, old.seconds):
                found[name] = new
        return found

    def add(
        self,
        workload: Workload,
        far: bool,
        choice: Choice,
        seconds: float,
        target: Mapping[str, Any],
        estimated: str | None = None,
    ) -> None:
        """A time of a kernel on a target.

        Args:
            estimated: what ``seconds`` are, if it is no time.
        """
        wanted = tvm.target.Target(dict(target))
        core = core_of(wanted)
        function = workload.function(choice, core).with_attr(_WORKLOAD, key(workload, far))
        function = function.with_attr(_CHOICE, json.dumps(choice))
        if estimated is not None:
            function = function.with_attr(_ESTIMATED, estimated)
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
