"""Make the fused graphs of tests/exports again: ``python tools/fuse_exports.py`` (extra ``models``).

Graphs that ``tools/export_models.py`` made, and graphs of the zoo, as ONNX Runtime's optimizer for
transformers rewrites them: with Attention, SkipLayerNormalization and other operators of com.microsoft. It is
run here because it needs more packages than the tests have.
"""

from __future__ import annotations

import logging
import lzma
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
from onnx_prune.models import zoo
from onnx_prune.passes.execute import open_session
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_by_fusion

FOLDER = Path(__file__).parent.parent / "tests" / "exports"


@dataclass(frozen=True)
class Fusion:
    """What to fuse and how.

    Attributes:
        source: an export, or a graph of the zoo.
        kind: the optimizer's name for the architecture.
        basic: fold constants first.
        separate: MultiHeadAttention with its projections outside instead of Attention.
    """

    source: str
    kind: str
    heads: int = 4
    width: int = 64
    basic: bool = False
    separate: bool = False


FUSIONS = {
    "bert.fused": Fusion("bert.static", "bert"),
    "bert.fused-dynamic": Fusion("bert.ts-dynamic", "bert", basic=True),
    "bert.mha-dynamic": Fusion("bert.dynamo-dynamic", "bert", basic=True, separate=True),
    "llama.fused": Fusion("llama.static", "qwen3"),
    "llama.fused-dynamic": Fusion("llama.ts-dynamic", "qwen3", basic=True),
    "vit.fused": Fusion("vit.static", "vit"),
    "swin.fused": Fusion("swin.static", "swin"),
    "hf_bert.fused": Fusion("hf_bert", "bert", 0, 0),
    "hf_gpt2_tied.fused": Fusion("hf_gpt2_tied", "gpt2", 0, 0),
    "hf_llama_gqa.fused": Fusion("hf_llama_gqa", "qwen3", 0, 0),
}


def read(name: str) -> onnx.ModelProto:
    if name in zoo.names():
        return zoo.load(name)
    with lzma.open(FOLDER / f"{name}.onnx.xz") as file:
        return zoo.fill(onnx.load_from_string(file.read()))


def folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/model.onnx"
        open_session(proto, options)
        return onnx.load(f"{folder}/model.onnx")


def fuse(fusion: Fusion) -> onnx.ModelProto:
    source = read(fusion.source)
    options = FusionOptions(fusion.kind)
    options.use_multi_head_attention = fusion.separate
    if fusion.basic:
        source = folded(source)
    fused: onnx.ModelProto = optimize_by_fusion(
        source, fusion.kind, fusion.heads, fusion.width, options
    ).model
    return fused


def main() -> None:
    logging.disable(logging.WARNING)
    for name, fusion in FUSIONS.items():
        model = fuse(fusion)
        custom = Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft")
        target = FOLDER / f"{name}.onnx.xz"
        with lzma.open(target, "wb", preset=9 | lzma.PRESET_EXTREME) as file:
            file.write(zoo.strip(model).SerializeToString(deterministic=True))
        print(f"{name}: {dict(custom)}, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
