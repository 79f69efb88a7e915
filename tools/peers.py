"""The digits models pruned by Torch-Pruning, from their torch sources, for tools/accuracy_table.py.

Set up as its README does for such nets: the last layer is left whole, attention names its heads and the
position embedding its axis. What Torch-Pruning leaves to its user is done here too: numbers that the ViT's
forward holds are set to the new widths, and the scale of its attention stays what it was.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx_prune import Model, measure
from onnx_prune.models.digits import FOLDER, load_digits
from onnx_prune.passes.execute import execute, first_line

SAME = 1e-4  # between the outputs of the torch module and of the .onnx file its weights are from
STEPS, COARSE = 256, 16  # pruning ratios tried: sixteenths, then between two of them to 1/256


def torch_pruning_version() -> str | None:
    """Of the installed Torch-Pruning; None where it or torch is missing."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "torch_pruning")):
        return None
    return version("torch-pruning")


class TorchPruning:
    """One of the digits models under MagnitudePruner with GroupMagnitudeImportance.

    Args:
        everywhere: rank the channels of all layers together (``global_pruning``), not layer by layer.

    Raises:
        RuntimeError: the torch source with the weights of the .onnx file computes something else.
    """

    def __init__(self, name: str, everywhere: bool) -> None:
        import torch
        from onnx_prune.models.train import NETS

        torch.set_num_threads(1)  # the networks are small, and threads wait for each other
        self.everywhere = everywhere
        self._made: dict[int, tuple[onnx.ModelProto | str, float]] = {}
        proto = onnx.load(FOLDER / f"{name}.onnx")
        self.dense = _macs(proto)
        weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in proto.graph.initializer}
        self.net = NETS[name][0]().eval()
        self.net.load_state_dict(weights, strict=False)
        images = load_digits("test").images
        with torch.no_grad():
            got = self.net(torch.from_numpy(images)).numpy()
        error = float(np.abs(got - execute(proto, {"x": images})["logits"]).max())
        counted = _macs(_export(self.net))
        if error > SAME or counted != self.dense:
            raise RuntimeError(
                f"{name}: the torch source is another network: outputs differ by {error:.1e},"
                f" {counted} MACs and not {self.dense}"
            )

    def smallest(self, shares: Sequence[float]) -> list[onnx.ModelProto | str]:
        """For each share of MACs to remove: the network least pruned of those that reach it, or why none."""
        return [self._least(share) for share in shares]

    def _least(self, share: float) -> onnx.ModelProto | str:
        # The MACs need not fall with the ratio: a layer whose channels would all go is left whole.
        above = next((k for k in range(COARSE, STEPS, COARSE) if self._removed(k) >= share), None)
        if above is None:
            failures = [net for net, _ in self._made.values() if isinstance(net, str)]
            most = max(removed for _, removed in self._made.values())
            return failures[0] if failures else f"at most {most:.0%} of MACs go"
        below = above - COARSE
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (below, middle) if self._removed(middle) >= share else (middle, above)
        return self._made[above][0]

    def _removed(self, step: int) -> float:
        """The share of MACs that goes at a ratio of step / STEPS; below 0 where pruning breaks."""
        if step not in self._made:
            net = self._pruned(step / STEPS)
            self._made[step] = net, -1.0 if isinstance(net, str) else 1 - _macs(net) / self.dense
        return self._made[step][1]

    def _pruned(self, ratio: float) -> onnx.ModelProto | str:
        """The network at a pruning ratio of Torch-Pruning, or how it broke."""
        import torch
        import torch_pruning as tp

        net = copy.deepcopy(self.net)
        blocks = list(getattr(net, "blocks", []))
        try:
            tp.pruner.MagnitudePruner(
                net,
                torch.zeros(1, 1, 8, 8),
                tp.importance.GroupMagnitudeImportance(),
                global_pruning=self.everywhere,
                pruning_ratio=ratio,
                ignored_layers=[[m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]],
                num_heads={layer: block.heads for block in blocks for layer in (block.q, block.k, block.v)},
                unwrapped_parameters=[(net.position, 2)] if blocks else None,
                # Left out, these are dictionaries that all pruners of the process share.
                in_channel_groups={},
                out_channel_groups={},
            ).step()
            for block in blocks:
                width = block.q.out_features // block.heads
                with torch.no_grad():  # forward divides by the root of the width there is now
                    for parameter in block.q.parameters():
                        parameter *= (width / block.width) ** 0.5
                block.width = width
            if blocks:
                net.dim = net.patches.out_channels
            return _export(net)
        except Exception as error:  # whatever pruning or running the result raises
            return f"fails: {first_line(error)}"


def _macs(proto: onnx.ModelProto) -> int:
    return measure(Model(proto)).macs


def _export(net: Any) -> onnx.ModelProto:
    """As models/train.py writes the models."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that are constant here
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, 8, 8),),
            file,
            input_names=["x"],
            output_names=["logits"],
            dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
            opset_version=17,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    return onnx.load_model_from_string(file.getvalue())
