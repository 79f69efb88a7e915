"""Accuracy against MACs removed, ours and peers', for docs/accuracy.md and its figure (extra ``peers``).

Run: ``python tools/accuracy_table.py``. Columns of Torch-Pruning are left out where it is not installed.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".dev"))

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx_prune import Model, PlanError, load, measure, open_calibration, prune  # noqa: E402
from onnx_prune.models.digits import FOLDER, MODELS, accuracy, load_digits  # noqa: E402
from onnx_prune.passes.execute import execute  # noqa: E402
from peers import TorchPruning, torch_pruning_version  # noqa: E402
from sparse_accuracy import MAGNITUDE, OURS, PATTERNS, WANDA, made_sparse  # noqa: E402

DOCUMENT = ROOT / "docs" / "accuracy.md"
FIGURE = ROOT / "docs" / "accuracy.svg"
SHARES = (0.25, 0.5, 0.7, 0.75, 0.85)
IMAGES = 200
TOLERATED = 0.005  # a cell that removes more than this beyond its row says how much

DATA = f"{IMAGES} images"
NO_DATA = "no data"
NO_FIT = "same channels, no fit"
ENERGY = "activations, no fit"
L2_FIT = "L2, fitted"
L2 = "L2, no fit"
LOCAL = "Torch-Pruning, by layer"
GLOBAL = "Torch-Pruning, global"
PEERS = {LOCAL: False, GLOBAL: True}

PEER = """\
- **Torch-Pruning**: `MagnitudePruner` with `GroupMagnitudeImportance` on the torch sources with the
  same weights, at the least pruning ratio that meets the budget, ranked within layers and over all of them
  (`global_pruning`). It uses no data, and its authors mean a network to be trained after it; here none is.
  What its user has to do by hand for the ViT is done (`tools/peers.py`).
"""


@dataclass(frozen=True)
class Cell:
    """What one method made of one model: fraction of MACs removed and accuracy, or why there is none."""

    model: str
    method: str
    share: float
    removed: float = 0.0
    accuracy: float = 0.0
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return self.problem
        beyond = self.removed - self.share > TOLERATED
        return f"{self.accuracy:.1%}" + (f" ({self.removed:.1%})" if beyond else "")


@dataclass(frozen=True)
class Table:
    """All cells of a run, and the accuracy of each model before."""

    dense: dict[str, float]
    cells: tuple[Cell, ...]
    sparse: dict[tuple[str, str, str], float]  # accuracy by model, pattern and method

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    def at(self, model: str, method: str, share: float) -> Cell:
        return next(c for c in self.cells if (c.model, c.method, c.share) == (model, method, share))

    def drop(self, cell: Cell) -> float:
        """Points of accuracy lost."""
        return 100 * (self.dense[cell.model] - cell.accuracy)


def correct(proto: onnx.ModelProto) -> float:
    return accuracy(lambda images: execute(proto, {"x": images})["logits"], load_digits("test"))


def run() -> Table:
    cells: list[Cell] = []
    dense: dict[str, float] = {}
    sparse: dict[tuple[str, str, str], float] = {}
    for name in MODELS:
        model = load(FOLDER / f"{name}.onnx")
        dense[name] = correct(model.proto)
        print(f"{name}: {dense[name]:.1%}", flush=True)
        for made in (ours(name, model), torch_pruning(name)):
            for cell in made:
                print(f"{name}, {cell.share:.0%} of MACs removed, {cell.method}: {cell}", flush=True)
                cells.append(cell)
        images = open_calibration({"x": load_digits("train").images[:IMAGES]}, model)
        for pattern in PATTERNS:
            for method, proto in made_sparse(model, pattern, images):
                sparse[name, pattern, method] = correct(proto)
                print(f"{name}, {pattern}, {method}: {sparse[name, pattern, method]:.1%}", flush=True)
    return Table(dense, tuple(cells), sparse)


def ours(name: str, model: Model) -> Iterator[Cell]:
    real = open_calibration({"x": load_digits("train").images[:IMAGES]}, model)
    synthetic = open_calibration(None, model)
    settings: dict[str, dict[str, Any]] = {
        DATA: {"criterion": "obs", "recover": "least-squares", "calibration": real},
        NO_DATA: {"criterion": "obs", "recover": "least-squares", "calibration": synthetic},
        NO_FIT: {"criterion": "obs", "recover": "none", "calibration": real},
        ENERGY: {"criterion": "activation", "recover": "none", "calibration": real},
        L2_FIT: {"criterion": "l2", "recover": "least-squares", "calibration": real},
        L2: {"criterion": "l2", "recover": "none"},
    }
    for share in SHARES:
        for method, chosen in settings.items():
            try:
                result = prune(model, macs=1 - share, check=False, **chosen)
            except PlanError as error:  # the budget is out of reach
                yield Cell(name, method, share, problem=str(error))
            else:
                removed = 1 - result.after.macs / result.before.macs
                yield Cell(name, method, share, removed, correct(result.model.proto))


def torch_pruning(name: str) -> Iterator[Cell]:
    for method, everywhere in PEERS.items() if torch_pruning_version() else ():
        peer = TorchPruning(name, everywhere)
        for share, made in zip(SHARES, peer.smallest(SHARES), strict=True):
            if isinstance(made, str):
                yield Cell(name, method, share, problem=made)
            else:
                removed = 1 - measure(Model(made)).macs / peer.dense
                yield Cell(name, method, share, removed, correct(made))


def document(table: Table) -> str:
    count = len(load_digits("test").labels)
    peer = torch_pruning_version()
    against = f"Torch-Pruning {peer}" if peer else "(without Torch-Pruning, which was not installed)"
    parts = [
        f"""# Accuracy without training

Made by `make accuracy`, in one run with fixed seeds, with ONNX Runtime {onnxruntime.__version__} and
{against}. The three models of `models/` are pruned to a budget of MACs
(`prune --macs`), and nothing is trained afterwards. A cell is the accuracy on the {count} test images, which
no method reads; settings of onnx-prune were chosen while such figures were looked at, so its own are a little
bright. MACs are those of the resulting .onnx by `onnx_prune.measure`; a budget is never exceeded,
and where more than half a point more was removed than the row says, the cell says how much.

- **{DATA}**: `--criterion obs --recover least-squares --calibration`, on the first {IMAGES} training images
  without their labels.
- **{NO_DATA}**: the same on synthetic inputs, without `--calibration`.
- **{NO_FIT}**: the channels of the first column go, and the weights that stay are left as they were
  (`--criterion obs --recover none --calibration`).
- **{ENERGY}**: channels chosen as Wanda does weights, by their norm times that of what they read, and
  no fit (`--criterion activation --recover none --calibration`).
- **{L2_FIT}**: channels chosen by the norm of their weights, layers fitted as in the first column
  (`--criterion l2 --recover least-squares --calibration`).
- **{L2}**: magnitude pruning (`--criterion l2 --recover none`).
"""
    ]
    if peer:
        parts.append(PEER)
    for name, before in table.dense.items():
        parts += [f"\n## {name}: {before:.1%} before\n\n", rows(["MACs removed", *table.methods])]
        parts.append(rows(["---"] + ["---:"] * len(table.methods)))
        for share in SHARES:
            parts.append(rows([f"{share:.0%}", *(str(table.at(name, m, share)) for m in table.methods)]))
    parts.append("\n![Accuracy lost against MACs removed, for each model and method](accuracy.svg)\n\n")
    told = textwrap.fill(" ".join(reading(table)), 110)
    return "".join(parts) + told + "\n\n" + sparse_tables(table)


def sparse_tables(table: Table) -> str:
    text = """\
## Zeros instead of fewer channels

The same images for `sparsify --pattern`, against the same pattern in every layer by the weights alone, and by
weights times activations as Wanda chooses them, both with the weights that stay left as they were.

"""
    text += rows(["model", "pattern", OURS, WANDA, MAGNITUDE]) + rows(["---", "---", *["---:"] * 3])
    for name in table.dense:
        for pattern in PATTERNS:
            found = [table.sparse[name, pattern, method] for method in (OURS, WANDA, MAGNITUDE)]
            text += rows([name, pattern, *(f"{value:.1%}" for value in found)])
    return text


def rows(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def reading(table: Table) -> Iterator[str]:
    """What the table says of half of the MACs and of three quarters, in sentences."""

    def points(method: str, share: float) -> str:
        cells = [table.at(name, method, share) for name in table.dense]
        told = ["none (not reached)" if c.problem else f"{table.drop(c):.1f}" for c in cells]
        return f"{', '.join(told[:-1])} and {told[-1]}"

    *names, last = table.dense
    yield (
        f"In points of accuracy lost on {', '.join(names)} and {last}, below zero where it rose:"
        f" removing half of the MACs costs {points(DATA, 0.5)} with {IMAGES} unlabelled images, and"
        f" {points(NO_DATA, 0.5)} without any data; three quarters"
        f" cost {points(DATA, 0.75)}, and {points(NO_DATA, 0.75)}."
    )
    yield (
        f"At half of the MACs the same channels without the fit lose {points(NO_FIT, 0.5)}, and channels"
        f" chosen by their norm but fitted {points(L2_FIT, 0.5)}."
    )
    if set(PEERS) <= set(table.methods):
        yield (
            f"Magnitude pruning loses {points(L2, 0.5)}, Torch-Pruning {points(LOCAL, 0.5)} by layer and"
            f" {points(GLOBAL, 0.5)} globally."
        )
    else:
        yield f"Magnitude pruning loses {points(L2, 0.5)}."


def draw(table: Table) -> None:
    """Points lost against MACs removed: a panel for each model, a curve for each method."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, in whatever font the page has: half the size of outlines.
    matplotlib.rcParams |= {"svg.hashsalt": "onnx-prune", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    styles = {
        DATA: (f"onnx-prune, {IMAGES} images", "#0b5cad", "-", "o"),
        NO_DATA: ("onnx-prune, no data", "#4aa3df", "--", "o"),
        L2_FIT: ("L2, fitted", "#2a9d5c", "-", "^"),
        NO_FIT: ("same channels, no fit", "#9a6fb0", ":", "v"),
        L2: ("magnitude pruning (L2)", "#8a8a8a", "-", "s"),
        "peer": ("Torch-Pruning (better of two)", "#d1495b", "-", "D"),
    }
    figure, panels = pyplot.subplots(1, len(table.dense), figsize=(9, 3.4), sharey=True)
    for panel, name in zip(panels, table.dense, strict=True):
        for method, (label, colour, line, mark) in styles.items():
            shown = curve(table, name, tuple(PEERS) if method == "peer" else (method,))
            x, y = [100 * c.removed for c in shown], [table.drop(c) for c in shown]
            if x:
                panel.plot(x, y, line, color=colour, marker=mark, markersize=3.5, linewidth=1.4, label=label)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("MACs removed, %")
        panel.set_yscale("symlog", linthresh=1, linscale=0.6)
        panel.yaxis.set_major_locator(FixedLocator([0, 1, 3, 10, 30, 90]))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_locator(FixedLocator([25, 50, 75]))
        panel.set_xlim(22, 89)
        panel.set_ylim(-0.8, 110)
        panel.grid(color="#e4e4e4", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy lost, points")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(FIGURE, facecolor="white", metadata={"Date": None})
    # The writer leaves blanks at line ends.
    FIGURE.write_text("".join(f"{line.rstrip()}\n" for line in FIGURE.read_text().splitlines()))


def curve(table: Table, name: str, methods: Sequence[str]) -> list[Cell]:
    """The cell of each share that has one: of several methods the most accurate."""
    found = []
    for share in SHARES:
        cells = [c for c in table.cells if (c.model, c.share) == (name, share) and c.method in methods]
        cells = [cell for cell in cells if cell.problem is None]
        if cells:
            found.append(max(cells, key=lambda cell: cell.accuracy))
    return found


def main() -> None:
    table = run()
    DOCUMENT.write_text(document(table))
    draw(table)


if __name__ == "__main__":
    main()
