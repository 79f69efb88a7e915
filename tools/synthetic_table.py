"""Compare synthetic calibration inputs with real ones on the digits models, for docs/calibration.md.

Run: ``python tools/synthetic_table.py``
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".dev"))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from onnx_prune import Model, load, open_calibration, prune  # noqa: E402
from onnx_prune.models.digits import FOLDER, MODELS, accuracy, load_digits  # noqa: E402
from onnx_prune.passes import synthetic  # noqa: E402
from onnx_prune.passes.data.synthetic import fields, images  # noqa: E402
from onnx_prune.passes.execute import execute  # noqa: E402

DOCUMENT = ROOT / "docs" / "calibration.md"
MARK = "<!-- made by tools/synthetic_table.py -->\n"
HEAD = """| model | inputs | mean | deviation | Gram | accuracy at 50 % of MACs |
| --- | --- | --- | --- | --- | --- |
"""
SAMPLES = 256
SHAPE = (SAMPLES, 1, 8, 8)
LAYERS = frozenset(["Conv", "Gemm", "MatMul"])


def families(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    train = load_digits("train").images
    yield "real", train[:200]
    yield "white noise", np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    yield "1/f, normal", fields(np.random.default_rng(0), SHAPE, np.ones(SAMPLES, np.float32))
    yield "images, general", images(np.random.default_rng(0), SHAPE)
    known = synthetic.statistics(model.proto)
    for title, count in (("matched, first BatchNormalization", 1), ("matched, all of them", len(known))):
        if known:
            with mock.patch.object(synthetic, "statistics", return_value=known[:count]):
                batches = open_calibration(None, model).batches()
                yield title, np.concatenate([batch["x"] for batch in batches])


def activations(model: Model, x: np.ndarray) -> list[np.ndarray]:
    """What each inner layer with weights reads, as rows of channels."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model.proto)
    weights = {t.name for t in whole.graph.initializer} | {"x"}
    names = [n.input[0] for n in whole.graph.node if n.op_type in LAYERS and n.input[0] not in weights]
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    made = execute(whole, {"x": x})
    convolved = {n.input[0] for n in whole.graph.node if n.op_type == "Conv"}
    channels = (np.moveaxis(v, 1, -1) if name in convolved else v for name, v in made.items())
    return [v.reshape(-1, v.shape[-1]) for v in channels]


def distances(real: list[np.ndarray], made: list[np.ndarray]) -> tuple[float, float, float]:
    """Medians over layers: errors of means in deviations, of the log of deviations, of the Gram matrix."""
    means, deviations, grams = [], [], []
    for a, b in zip(real, made, strict=True):
        spread = a.std(0) + 1e-3 * a.std() + 1e-9
        means.append(np.sqrt((((a.mean(0) - b.mean(0)) / spread) ** 2).mean()))
        deviations.append(np.abs(np.log((b.std(0) + 1e-3 * a.std() + 1e-9) / spread)).mean())
        one, other = (m.T.astype(np.float64) @ m / len(m) for m in (a, b))
        grams.append(np.linalg.norm(one - other) / np.linalg.norm(one))
    return float(np.median(means)), float(np.median(deviations)), float(np.median(grams))


def rows() -> Iterator[str]:
    test, other = load_digits("test"), load_digits("train").images[200:456]
    for name in MODELS:
        model = load(FOLDER / f"{name}.onnx")
        reference = activations(model, other)
        for title, x in families(model):
            mean, deviation, gram = distances(reference, activations(model, x))
            smaller = prune(model, macs=0.5, calibration={"x": x}, check=False).model
            right = accuracy(lambda images, m=smaller: execute(m.proto, {"x": images})["logits"], test)
            row = f"| {name} | {title} | {mean:.2f} | {deviation:.2f} | {gram:.2f} | {right:.1%} |\n"
            print(row, end="", flush=True)
            yield row


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text().partition(MARK)
    after = rest.partition(MARK)[2]
    DOCUMENT.write_text(before + MARK + HEAD + "".join(rows()) + MARK + after)
