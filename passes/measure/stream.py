"""Run a model piece by piece over many batches, and keep what later pieces read: on disk where it is much."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from ...analysis.errors import ModelError
from ...analysis.graph import Array, subgraphs, tensor_of, walk_graphs
from ..execute import Arrays, first_line, open_session

THREADS = 2
_ROOM = 1 << 28  # bytes of activations that stay in memory; others are on disk


class Stream:
    """A model and where it stands: nodes before ``position`` have run on all batches.

    Args:
        inputs: batches of the model's inputs; read once and kept in ``folder``.
        threads: to run with.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        inputs: Iterator[Arrays] | Sequence[Arrays],
        folder: Path,
        threads: int = THREADS,
    ) -> None:
        self.proto = proto
        self.nodes = list(proto.graph.node)
        self.weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.position = 0
        self.batches = 0
        self._folder = folder
        self._threads = threads
        folder.mkdir(parents=True, exist_ok=True)
        self._room = _ROOM
        self._memory: dict[tuple[str, int], Array] = {}
        self._stored: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._last_read: dict[str, int] = {}
        for k, node in enumerate(self.nodes):
            self._last_read.update(dict.fromkeys(read_by(node), k))
        for batch, arrays in enumerate(inputs):
            self.batches += 1
            for name, value in arrays.items():
                self._store(name, batch, value)
        self._stored.update(info.name for info in proto.graph.input if info.name not in self.weights)

    @cached_property
    def dependent(self) -> set[str]:
        """Tensors that the inputs have a say in."""
        found = {info.name for info in self.proto.graph.input if info.name not in self.weights}
        for node in self.nodes:
            if any(name in found for name in read_by(node)):
                found.update(node.output)
        return found

    def set_weight(self, name: str, value: Array) -> None:
        """Nodes that have not run yet see another value of an initializer, or a new one."""
        self.weights[name] = tensor_of(value, name)

    def set_input(self, position: int, i: int, name: str) -> None:
        """The node at ``position``, which has not run yet, reads ``name`` as its input ``i``."""
        node = onnx.NodeProto()
        node.CopyFrom(self.nodes[position])
        node.input.extend([""] * (i + 1 - len(node.input)))
        node.input[i] = name
        self.nodes[position] = node

    def hold(self, name: str, stop: int) -> None:
        """Keep a tensor until the nodes before ``stop`` have run, even when none of them reads it."""
        self._last_read[name] = max(stop, self._last_read.get(name, -1))

    def advance(self, stop: int, wanted: Sequence[str]) -> Iterator[Arrays]:
        """Run the nodes before ``stop`` on every batch, giving the wanted tensors of each; exhaust it."""
        made = {name for node in self.nodes[self.position : stop] for name in node.output if name}
        live = {name for name in made if self._last_read.get(name, -1) >= stop}
        yield from self._run(stop, wanted, live)
        self.position = max(stop, self.position)
        for name in [n for n in self._stored if self._last_read.get(n, -1) < self.position]:
            self._forget(name)
        self._stored |= live

    def peek(
        self, stop: int, wanted: Sequence[str], instead: Callable[[int], Arrays] = lambda batch: {}
    ) -> Iterator[Arrays]:
        """`advance`, but the stream stays where it is.

        Args:
            instead: of a batch, tensors made before that are to be taken as something else.
        """
        yield from self._run(stop, wanted, (), instead)

    def _run(
        self,
        stop: int,
        wanted: Sequence[str],
        live: Collection[str],
        instead: Callable[[int], Arrays] = lambda batch: {},
    ) -> Iterator[Arrays]:
        nodes = self.nodes[self.position : stop]
        made = {name for node in nodes for name in node.output if name}
        outputs = sorted(made & {*wanted, *live})
        read = {name for node in nodes for name in read_by(node)}
        session: onnxruntime.InferenceSession | None = None
        for batch in range(self.batches):
            given = {name: self._load(name, batch) for name in sorted((read - made) & self._stored)}
            given |= instead(batch)
            results: Arrays = {}
            if outputs:
                session = session or self._open(nodes, given, outputs, read)
                try:
                    results = dict(zip(outputs, session.run(outputs, given), strict=True))
                except Exception as error:  # the runtime raises its own classes, one for each failure
                    raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from None
            for name in live:
                self._store(name, batch, results[name])
            yield {name: results[name] if name in results else self._load(name, batch) for name in wanted}

    def _open(
        self,
        nodes: Sequence[onnx.NodeProto],
        given: Mapping[str, Array],
        outputs: Sequence[str],
        read: set[str],
    ) -> onnxruntime.InferenceSession:
        inputs = [
            helper.make_value_info(name, helper.make_tensor_type_proto(_elem_type(value), None))
            for name, value in given.items()
        ]
        graph = onnx.GraphProto(name="segment", node=nodes, input=inputs)
        graph.initializer.extend(self.weights[name] for name in sorted(read & self.weights.keys()))
        graph.sparse_initializer.extend(
            s for s in self.proto.graph.sparse_initializer if s.values.name in read
        )
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        model = onnx.ModelProto(
            graph=graph,
            ir_version=self.proto.ir_version,
            opset_import=self.proto.opset_import,
            functions=self.proto.functions,
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self._threads
        # Pieces are short, and linear algebra runs in between: threads that spin meanwhile slow it down.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return open_session(model, options)
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from None

    # ------------------------------------------------------------------ tensors that are kept

    def holds(self, name: str) -> bool:
        """Whether a tensor is kept for later nodes."""
        return name in self._stored

    def stored(self, name: str, batch: int) -> Array:
        """A tensor that later nodes read."""
        return self._load(name, batch)

    def _path(self, name: str, batch: int) -> Path:
        number = self._numbers.setdefault(name, len(self._numbers))
        return self._folder / f"{number}.{batch}.npy"

    def _store(self, name: str, batch: int, value: Array) -> None:
        if self._room >= value.nbytes:
            self._room -= value.nbytes
            self._memory[name, batch] = value
        else:
            np.save(self._path(name, batch), value)

    def _load(self, name: str, batch: int) -> Array:
        if (name, batch) in self._memory:
            return self._memory[name, batch]
        value: Array = np.load(self._path(name, batch))
        return value

    def _forget(self, name: str) -> None:
        self._stored.discard(name)
        for batch in range(self.batches):
            if (name, batch) in self._memory:
                self._room += self._memory.pop((name, batch)).nbytes
            else:
                self._path(name, batch).unlink(missing_ok=True)


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names a node reads, those its bodies capture among them."""
    yield from filter(None, node.input)
    for body in subgraphs(node):
        for graph in walk_graphs(body):
            inner = itertools.chain.from_iterable(n.input for n in graph.node)
            yield from filter(None, [*inner, *(output.name for output in graph.output)])


def _elem_type(value: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))
