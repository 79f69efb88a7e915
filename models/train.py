"""Make the three digits models again: ``python models/train.py [NAME ...]`` (extra ``models``).

Trains on the training split of ``digits.npz`` from a fixed seed, on the CPU, and exports to ONNX with a
dynamic batch axis. Also writes ``digits.npz`` itself when it is missing, from scikit-learn's copy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).parent
SEED = 7
OPSET = 17


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        same = stride == 1 and inner == outer
        self.skip = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32, 32),
        Residual(32, 64, 2),
        Residual(64, 64),
        Residual(64, 96, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gate)


class Inverted(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int = 1, expand: int = 4) -> None:
        super().__init__()
        wide = inner * expand
        self.same = stride == 1 and inner == outer
        self.body = nn.Sequential(
            nn.Conv2d(inner, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            SqueezeExcite(wide),
            nn.Conv2d(wide, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.same else y


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, 1, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.Hardswish(),
        Inverted(24, 24),
        Inverted(24, 40, 2),
        Inverted(40, 40),
        Inverted(40, 64, 2),
        Inverted(64, 64),
        nn.Conv2d(64, 160, 1, bias=False),
        nn.BatchNorm2d(160),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, 10),
    )


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 16, self.heads, self.width).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = self.split(self.q(y)), self.split(self.k(y)), self.split(self.v(y))
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.width**-0.5, dim=-1)
        mixed = (weights @ v).permute(0, 2, 1, 3).reshape(-1, 16, self.heads * self.width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Sixteen patches of 2×2 pixels."""

    def __init__(self, dim: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.dim = dim
        self.patches = nn.Conv2d(1, dim, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).reshape(-1, self.dim, 16).permute(0, 2, 1) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


# Name, how to build it, epochs, learning rate.
NETS = {
    "digits_resnet": (resnet, 30, 2e-3),
    "digits_mobilenet": (mobilenet, 40, 3e-3),
    "digits_vit": (ViT, 120, 1.5e-3),
}


def write_data(path: Path) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = data.images.astype(np.uint8)  # 0 to 16
    labels = data.target.astype(np.uint8)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.3, stratify=labels, random_state=SEED)
    np.savez_compressed(
        path,
        images=images,
        labels=labels,
        train=np.sort(train).astype(np.int16),
        test=np.sort(test).astype(np.int16),
    )


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """The batch moved by up to one pixel in each direction."""
    dy, dx = (int(v) for v in torch.randint(-1, 2, (2,), generator=generator))
    padded = F.pad(x, (1, 1, 1, 1))
    return padded[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx]


def train(name: str) -> None:
    build, epochs, rate = NETS[name]
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    data = np.load(HERE / "digits.npz")
    x = torch.from_numpy(data["images"].astype(np.float32) / 16)[:, None]
    y = torch.from_numpy(data["labels"].astype(np.int64))
    fit, test = (
        torch.from_numpy(data["train"].astype(np.int64)),
        torch.from_numpy(data["test"].astype(np.int64)),
    )
    net = build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.02)
    steps = epochs * -(-len(fit) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        net.train()
        for batch in fit[torch.randperm(len(fit), generator=generator)].split(64):
            loss = F.cross_entropy(net(shifted(x[batch], generator)), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        accuracy = (net(x[test]).argmax(1) == y[test]).float().mean().item()
    path = HERE / f"{name}.onnx"
    torch.onnx.export(
        net,
        (x[:2],),
        path,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
        opset_version=OPSET,
        dynamo=False,
        # Keeps BatchNormalization as nodes, as many exports do.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    model = onnx.load(path)
    model.ir_version = 8
    onnx.save(model, path)
    print(f"{name}: {accuracy:.2%} of {len(test)} test images, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    torch.set_num_threads(2)
    if not (HERE / "digits.npz").exists():
        write_data(HERE / "digits.npz")
    for wanted in sys.argv[1:] or NETS:
        train(wanted)
