"""Make tests/exports again: ``python tools/export_models.py [NAME ...]`` (extra ``models``).

Small nets of the architectures in use, in plain torch, each exported three times: static by the TorchScript
exporter, with dynamic axes by the TorchScript exporter, and with dynamic shapes by the dynamo exporter. The
weights are left out, as in the zoo.
"""

# mypy: disable-error-code="misc"
# torch has no types here.

from __future__ import annotations

import lzma
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx_prune.analysis.graph import walk_graphs
from onnx_prune.models import zoo
from torch import Tensor, nn
from torch.nn import functional as F

FOLDER = Path(__file__).parent.parent / "tests" / "exports"
SEED = 11
VOCABULARY = 96
POSITIONS = 32


# ---------------------------------------------------------------------- convolutions


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


def resnet() -> nn.Module:
    stem = (nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    blocks = (Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 64, 1))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Inverted(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inner
        self.same = stride == 1 and inner == outer
        self.body = nn.Sequential(
            *(nn.Conv2d(inner, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU()),
            SqueezeExcite(wide),
            *(nn.Conv2d(wide, outer, 1, bias=False), nn.BatchNorm2d(outer)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def mobilenet() -> nn.Module:
    stem = (nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish())
    blocks = (Inverted(32, 32, 1), Inverted(32, 48, 2), Inverted(48, 48, 1))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


class Shuffle(nn.Module):
    """Half of the channels pass by; the halves are mixed by a channel shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            *(nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False), nn.BatchNorm2d(half)),
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        y = torch.cat((left, self.body(right)), dim=1)
        batch, channels, height, width = y.size()
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return y.view(batch, channels, height, width)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 48, 3, 2, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.blocks = nn.Sequential(Shuffle(48), Shuffle(48), Shuffle(48))
        self.last = nn.Conv2d(48, 64, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(self.blocks(self.stem(x)))).mean([2, 3]))


def twice(inner: int, outer: int) -> nn.Module:
    first = (nn.Conv2d(inner, outer, 3, 1, 1), nn.BatchNorm2d(outer), nn.ReLU())
    return nn.Sequential(*first, nn.Conv2d(outer, outer, 3, 1, 1), nn.ReLU())


class UNet(nn.Module):
    """One step up by a transposed convolution, one by an interpolation to the size of the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = twice(3, 32), twice(32, 48), twice(48, 64)
        self.up = nn.ConvTranspose2d(64, 48, 2, 2)
        self.merge2, self.merge1 = twice(96, 48), twice(48 + 32, 32)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = self.bottom(F.max_pool2d(two, 2))
        y = self.merge2(torch.cat((two, self.up(y)), dim=1))
        y = F.interpolate(y, size=one.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.merge1(torch.cat((one, y), dim=1)))


class TextCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 48)
        self.convs = nn.ModuleList(nn.Conv1d(48, 32, width, padding=width // 2) for width in (3, 4, 5))
        self.head = nn.Linear(96, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).transpose(1, 2)
        return self.head(torch.cat([F.relu(conv(x)).amax(dim=2) for conv in self.convs], dim=1))


# ---------------------------------------------------------------------- attention


def mlp(dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class VitBlock(nn.Module):
    def __init__(self, dim: int, heads: int, chunked: bool) -> None:
        super().__init__()
        self.heads, self.chunked = heads, chunked
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out, self.mlp = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm1(x))
        if self.chunked:
            parts = qkv.chunk(3, dim=-1)
            q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        else:
            q, k, v = qkv.reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    def __init__(self, dim: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 17, dim))
        self.blocks = nn.Sequential(VitBlock(dim, heads, False), VitBlock(dim, heads, True))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(x.shape[0], -1, -1), patches), dim=1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class BertBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm1, self.norm2, self.mlp = nn.LayerNorm(dim), nn.LayerNorm(dim), mlp(dim)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.heads, self.width).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = q @ k.transpose(-1, -2) / self.width**0.5 + mask
        y = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).contiguous()
        x = self.norm1(x + self.out(y.view(*y.size()[:-2], self.heads * self.width)))
        return self.norm2(x + self.mlp(x))


class Bert(nn.Module):
    """A masked language model whose decoder is the embedding."""

    def __init__(self, dim: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, dim), nn.Embedding(POSITIONS, dim)
        self.register_buffer("ids", torch.arange(POSITIONS)[None], persistent=False)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(BertBlock(dim, heads) for _ in range(2))
        self.dense, self.last = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.decoder = nn.Linear(dim, VOCABULARY)
        self.decoder.weight = self.words.weight

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        places = self.places(self.ids[:, : tokens.size(1)])
        x = self.norm(self.words(tokens) + places)
        mask = (1.0 - attention_mask.clamp(max=1)[:, None, None, :].float()) * -1e4
        for block in self.blocks:
            x = block(x, mask)
        return self.decoder(self.last(F.gelu(self.dense(x))))


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class LlamaBlock(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, dim // heads
        narrow = kv_heads * self.width
        self.norm1, self.norm2 = RmsNorm(dim), RmsNorm(dim)
        self.q, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.k, self.v = nn.Linear(dim, narrow, bias=False), nn.Linear(dim, narrow, bias=False)
        self.gate_up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def repeat(self, x: Tensor) -> Tensor:
        """Each key-value head serves several query heads."""
        batch, kv_heads, length, width = x.shape
        times = self.heads // self.kv_heads
        x = x[:, :, None].expand(batch, kv_heads, times, length, width)
        return x.reshape(batch, kv_heads * times, length, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = self.norm1(x)
        q = self.q(y).view(batch, length, self.heads, self.width).transpose(1, 2)
        k = self.k(y).view(batch, length, self.kv_heads, self.width).transpose(1, 2)
        v = self.v(y).view(batch, length, self.kv_heads, self.width).transpose(1, 2)
        q, k = rotate(q, cos, sin), self.repeat(rotate(k, cos, sin))
        scores = (q @ k.transpose(2, 3) * self.width**-0.5 + mask).softmax(-1)
        y = (scores @ self.repeat(v)).transpose(1, 2).reshape(batch, length, -1)
        x = x + self.out(y)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """A causal language model with rotary embeddings and grouped key-value heads."""

    def __init__(self, dim: int = 64, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        width = dim // heads
        self.embed = nn.Embedding(VOCABULARY, dim)
        self.register_buffer("frequencies", 1.0 / 1e4 ** (torch.arange(0, width, 2) / width))
        self.blocks = nn.ModuleList(LlamaBlock(dim, heads, kv_heads) for _ in range(2))
        self.norm, self.head = RmsNorm(dim), nn.Linear(dim, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        places = torch.arange(length, device=tokens.device)
        angles = places[:, None].float() * self.frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        mask = torch.full((length, length), -1e4).triu(1)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin(), mask)
        return self.head(self.norm(x))


class SwinBlock(nn.Module):
    """Attention inside windows; every second block shifts the image by half a window."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out, self.mlp = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), mlp(dim)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        apart = grid.flatten(1)[:, :, None] - grid.flatten(1)[:, None, :] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        side, area = self.window, self.window**2
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), dims=(1, 2))
        y = y.view(batch, height // side, side, width // side, side, dim)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, area, dim)
        q, k, v = self.qkv(y).reshape(-1, area, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(area, area, -1).permute(2, 0, 1)
        scores = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1) + bias
        y = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, area, dim))
        y = y.view(batch, height // side, width // side, side, side, dim)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, dim)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), dims=(1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """Two stages with a merging of patches between them."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.stage1 = nn.Sequential(SwinBlock(dim, 2, 4, 0), SwinBlock(dim, 2, 4, 2))
        self.merge_norm, self.merge = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)
        self.stage2 = SwinBlock(2 * dim, 4, 4, 0)
        self.norm, self.head = nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stage1(self.patches(x).permute(0, 2, 3, 1))
        corners = (y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2])
        y = self.merge(self.merge_norm(torch.cat(corners, dim=-1)))
        return self.head(self.norm(self.stage2(y)).mean(dim=(1, 2)))


# ---------------------------------------------------------------------- recurrence


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.cell = cell(32, 48, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.cell(self.embed(tokens))
        return self.head(states.amax(dim=1))


# ---------------------------------------------------------------------- exporting


@dataclass(frozen=True)
class Net:
    """How to build a net, example inputs by name, and what their dynamic axes are called."""

    build: Callable[[], nn.Module]
    inputs: dict[str, Tensor]
    output: dict[int, str]
    axes: dict[int, str]
    step: int = 1  # what dynamic image sizes are a multiple of
    opset: int = 18  # of the dynamo export
    folded: bool = True  # folding makes a transposed copy of a tied embedding


def image(size: int) -> dict[str, Tensor]:
    return {"x": torch.randn(1, 3, size, size)}


def tokens(length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (1, length))


def masked(length: int) -> dict[str, Tensor]:
    return {"tokens": tokens(length), "attention_mask": torch.ones(1, length, dtype=torch.int64)}


ANY_IMAGE = {0: "batch", 2: "height", 3: "width"}
ANY_TEXT = {0: "batch", 1: "sequence"}
BATCH = {0: "batch"}

NETS = {
    "resnet": Net(resnet, image(48), BATCH, ANY_IMAGE),
    "mobilenet": Net(mobilenet, image(32), BATCH, ANY_IMAGE),
    "shufflenet": Net(ShuffleNet, image(32), BATCH, ANY_IMAGE),
    "unet": Net(UNet, image(32), ANY_IMAGE, ANY_IMAGE, step=4),
    "textcnn": Net(TextCnn, {"tokens": tokens(12)}, BATCH, ANY_TEXT),
    "vit": Net(Vit, image(32), BATCH, BATCH, opset=23),
    "bert": Net(Bert, masked(12), ANY_TEXT, ANY_TEXT, folded=False),
    "llama": Net(Llama, {"tokens": tokens(12)}, ANY_TEXT, ANY_TEXT),
    "swin": Net(Swin, image(32), BATCH, ANY_IMAGE, step=32),
    "lstm": Net(lambda: Recurrent(nn.LSTM), {"tokens": tokens(12)}, BATCH, ANY_TEXT),
    "gru": Net(lambda: Recurrent(nn.GRU), {"tokens": tokens(12)}, BATCH, ANY_TEXT),
}


def by_torchscript(module: nn.Module, net: Net, path: Path, dynamic: bool) -> None:
    axes = dict.fromkeys(net.inputs, net.axes) | {"y": net.output} if dynamic else None
    torch.onnx.export(
        module,
        tuple(net.inputs.values()),
        path,
        input_names=list(net.inputs),
        output_names=["y"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
        do_constant_folding=net.folded,
        # Keeps BatchNormalization as nodes, as many exports do.
        training=torch.onnx.TrainingMode.PRESERVE,
    )


def by_dynamo(module: nn.Module, net: Net, path: Path) -> None:
    shapes = {}
    for k, name in net.axes.items():
        stepped = net.step > 1 and name in ("height", "width")
        shapes[k] = net.step * torch.export.Dim(f"{name}_steps") if stepped else torch.export.Dim(name)
    # A size of one in the example would be taken as fixed.
    examples = tuple(torch.cat((value, value)) for value in net.inputs.values())
    if net.step > 1:
        examples = tuple(F.pad(value, (0, 2 * net.step, 0, net.step)) for value in examples)
    torch.onnx.export(
        module,
        examples,
        path,
        input_names=list(net.inputs),
        output_names=["y"],
        dynamic_shapes=tuple(shapes for _ in examples),
        opset_version=net.opset,
        dynamo=True,
        optimize=net.folded,
        external_data=False,
        verbose=False,
    )


def store(path: Path, name: str) -> None:
    """Without weights, and without what the exporter says of the machine it ran on."""
    model = zoo.strip(onnx.load(path))
    for graph in walk_graphs(model.graph):
        items = (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
        for item in (model, graph, *items):
            item.ClearField("doc_string")
            del item.metadata_props[:]
    target = FOLDER / f"{name}.onnx.xz"
    with lzma.open(target, "wb", preset=9 | lzma.PRESET_EXTREME) as file:
        file.write(model.SerializeToString(deterministic=True))
    print(f"{name}: {len(model.graph.node)} nodes, {target.stat().st_size} bytes")


def export(name: str) -> None:
    net = NETS[name]
    torch.manual_seed(SEED)
    module = net.build().eval()
    ways: dict[str, Callable[[Path], None]] = {
        "static": lambda path: by_torchscript(module, net, path, dynamic=False),
        "ts-dynamic": lambda path: by_torchscript(module, net, path, dynamic=True),
        "dynamo-dynamic": lambda path: by_dynamo(module, net, path),
    }
    for way, make in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            try:
                make(path)
            except Exception as error:  # torch has many ways to refuse a net
                print(f"{name}.{way}: SKIPPED, torch cannot export it: {error}", file=sys.stderr)
                continue
            store(path, f"{name}.{way}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    FOLDER.mkdir(exist_ok=True)
    for wanted in sys.argv[1:] or NETS:
        export(wanted)
