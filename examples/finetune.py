"""Fine-tune a pruned network in PyTorch from the index lists of a plan, and export it again.

    onnx-prune plan models/digits_resnet.onnx -o plan.json --macs 50% --export indices.json
    python examples/finetune.py models/digits_resnet.onnx indices.json trained.onnx
    onnx-prune apply models/digits_resnet.onnx plan.json -o smaller.onnx --weights trained.onnx

Needs the extra ``models``. docs/finetune.md explains the steps.
"""

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx_prune.models.digits import accuracy, load_digits
from onnx_prune.models.train import NETS
from torch.nn import functional as F


def source(path: str) -> torch.nn.Module:
    """The dense network with its trained weights: in your project, your module and its checkpoint."""
    net = NETS[Path(path).stem][0]()
    weights = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in onnx.load(path).graph.initializer}
    net.load_state_dict(weights, strict=False)  # an export leaves out what only training counts
    return net.eval()


def shrink(net: torch.nn.Module, lists: dict[str, Any]) -> torch.nn.Module:
    """Leave the kept positions of parameters and buffers."""
    tensors = net.state_dict(keep_vars=True)
    for name, weight in lists["weights"].items():
        for axis, kept in weight["keep"].items():
            tensors[name].data = tensors[name].data.index_select(int(axis), torch.tensor(kept))
    for change in lists["attributes"]:  # "group" of a depthwise Conv is "groups" of the module of its weight
        net.get_submodule(change["weights"][0].rpartition(".")[0]).groups = change["after"]
    return net


def distil(net: torch.nn.Module, dense: torch.nn.Module, images: torch.Tensor, epochs: int) -> None:
    """Train ``net`` to give the logits of ``dense``, without labels."""
    wanted = dense(images).detach()
    optimizer = torch.optim.AdamW(net.train().parameters(), 1e-3)
    for batch in (b for _ in range(epochs) for b in torch.randperm(len(images)).split(64)):
        y, z = net(images[batch]), wanted[batch]
        optimizer.zero_grad()
        (F.mse_loss(y, z) + F.kl_div(y.log_softmax(1), z.softmax(1), reduction="batchmean")).backward()
        optimizer.step()
    net.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)  # batches this small only make threads wait for each other
    images = torch.from_numpy(load_digits("train").images)
    net = shrink(source(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
    for epochs in (0, 5):
        distil(net, source(sys.argv[1]), images, epochs)
        print("accuracy", accuracy(lambda x: net(torch.from_numpy(x)).detach().numpy(), load_digits()))
    names = {"input_names": ["x"], "output_names": ["logits"], "dynamic_axes": {"x": [0], "logits": [0]}}
    torch.onnx.export(net, (images[:2],), sys.argv[3], opset_version=17, dynamo=False, **names)
