"""Sums of non-zeros times what they multiply, in registers: the inner loops of kernels of sparse weights."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as script

from ..vecmath import f32
from . import written
from .blocks import Blocks, Strip
from .common import LANES, LINE, Core, ceil_div, i64
from .sources import positions
from .turning import lanes

_GATHER = "llvm.x86.avx2.gather.d.ps.256"
_AHEAD = 8192  # bytes of weights, how far ahead non-zeros are asked for
_NEAR = 1 << 19  # bytes of weights that stay in the second cache, where asking takes longer than it saves
_APART = 8  # vectors of sums that hide the latency of a multiply-add


class Weights(NamedTuple):
    """Buffers of `Blocks`, and elements that offsets count."""

    values: Any
    offsets: Any
    starts: Any
    picks: Any = None
    unit: int = 1


def operands(blocks: Blocks, prefix: str = "") -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of the buffers of `Weights`."""
    named = zip(Weights._fields, blocks.arrays, strict=False)  # picks may not be there, and units are none
    return [(prefix + name, array.shape, str(array.dtype)) for name, array in named]


def nothing(r: Any, v: Any) -> Any:
    """Where sums begin that nothing was added to yet."""
    return f32(0)


def many(
    weights: Weights,
    data: Any,
    base: Any,
    run: Any,
    strip: Strip,
    core: Core,
    begin: Callable[[Any, Any], Any],
    offsets: Offsets,
) -> Any:
    """The sums of a run, positions in the lanes: registers (rows · positions of a tile).

    Args:
        offsets: from those of this run on.
        data: what the weights multiply, at their offsets from ``base``.
        begin: of a row and a position, where its sum begins.
    """
    rows, wide = strip.rows, strip.wide
    vectors = rows * wide // strip.vector(core.lanes)
    sets = min(strip.turn, ceil_div(_APART, vectors))  # so that no sum waits for the one before it
    kept = written.local(sets * rows * wide)

    @contextmanager
    def registers() -> Iterator[tuple[Any, Any]]:
        with script.unroll(i64(0), i64(rows)) as r, positions(strip, core.lanes) as v:
            yield r, v

    for n in range(sets):
        with registers() as (r, v):
            value = f32(0) if n else begin(r, v)
            script.buffer_store(kept, value, [(n * rows + r) * wide + v])
    with script.serial(weights.starts[run], weights.starts[run + 1]) as turn:
        first = turn.astype("int64") * strip.turn
        for n, offset in enumerate(offsets.next(turn)):
            for r, factor in enumerate(_consecutive(weights.values, (first + n) * rows, rows, core)):
                with positions(strip, core.lanes) as v:
                    read = data[base + offset * weights.unit + v]
                    place = (n % sets * rows + r) * wide + v
                    script.buffer_store(kept, kept[place] + factor * read, [place])
    for n in range(1, sets):
        with registers() as (r, v):
            script.buffer_store(kept, kept[r * wide + v] + kept[(n * rows + r) * wide + v], [r * wide + v])
    return kept


def few(weights: Weights, data: Any, base: Any, run: Any, strip: Strip, core: Core) -> Any:
    """The sums of a block of outputs at few positions, outputs in the lanes: registers (positions · rows)."""
    if strip.rows == 1:
        return _one(weights, data, base, run, strip, core)
    if strip.gathers(core):
        return _spread(weights, data, base, run, strip, core)
    rows, wide, chains = strip.rows, strip.wide, strip.chains
    kept = written.local(chains * wide * rows)

    @contextmanager
    def registers(count: int) -> Iterator[tuple[Any, Any, Any]]:
        chain, position = script.unroll(i64(0), i64(count)), script.unroll(i64(0), i64(wide))
        with chain as c, position as v, outputs(rows, core) as r:
            yield c, v, r

    def place(c: Any, v: Any, r: Any) -> Any:
        return (c * wide + v) * rows + r

    with registers(chains) as at:
        script.buffer_store(kept, f32(0), [place(*at)])
    with script.serial(weights.starts[run], weights.starts[run + 1]) as turn:
        begin = turn.astype("int64") * chains
        ask_for(weights, begin, strip)
        for c, offset in enumerate(offsets_of(weights.offsets, begin, chains, core)):
            k, at = begin + c, base + offset * weights.unit
            if strip.crossed(core):
                to = tirx.Ramp(i64(place(c, 0, 0)), i64(1), rows * wide)
                script.buffer_store(kept, kept[to] + _crossed(weights, data, k, at, strip), [to])
                continue
            for v, read in enumerate(_consecutive(data, at, wide, core)):
                with outputs(rows, core) as r:
                    factor = weights.values[k * rows + r].astype("float32")
                    script.buffer_store(kept, kept[place(c, v, r)] + factor * read, [place(c, v, r)])
    with registers(1) as (_, v, r):
        total = kept[place(0, v, r)]
        for c in range(1, chains):
            total = total + kept[place(c, v, r)]
        script.buffer_store(kept, total, [place(0, v, r)])
    return kept


def _crossed(weights: Weights, data: Any, k: Any, at: Any, strip: Strip) -> Any:
    """The products of the rows of a block at a non-zero with all positions, in the order of the sums."""
    rows, wide = strip.rows, strip.wide
    factors = weights.values[tirx.Ramp(k * rows, i64(1), rows)].astype(f"float32x{rows}")
    read, places = data[tirx.Ramp(at, i64(1), wide)], range(rows * wide)
    by_row, by_position = [n % rows for n in places], [n // rows for n in places]
    return picked(factors, rows, by_row) * picked(read, wide, by_position)


def _spread(weights: Weights, data: Any, base: Any, run: Any, strip: Strip, core: Core) -> Any:
    """The sums of a block of outputs at one position, as many non-zeros to a vector as it has room for the
    outputs: what they multiply is put together and spread over these.
    """
    rows, chains, wide = strip.rows, strip.chains, core.lanes
    kept = written.local(chains * rows)
    with script.unroll(i64(0), i64(chains * rows // wide)) as v, script.vectorized(i64(0), i64(wide)) as lane:
        script.buffer_store(kept, f32(0), [v * i64(wide) + lane])
    with script.serial(weights.starts[run], weights.starts[run + 1]) as turn:
        begin = turn.astype("int64") * chains
        ask_for(weights, begin, strip)
        for u in range(0, chains, LANES):
            read = script.bind(_elements(data, base, weights.offsets, begin + u, core))
            for n in range(0, LANES, wide // rows):
                values = weights.values[tirx.Ramp((begin + u + n) * rows, i64(1), wide)]
                spread = picked(read, LANES, [n + lane // rows for lane in range(wide)])
                to = tirx.Ramp(i64((u + n) * rows), i64(1), wide)
                script.buffer_store(kept, kept[to] + values.astype(f"float32x{wide}") * spread, [to])
    written.join_halves(kept, 1, chains * rows, operator.add, rows)
    return kept


def picked(vector: Any, count: int, lanes: Sequence[int]) -> Any:
    """Elements of a vector of ``count``, repeated since TVM makes no more lanes than it is given."""
    order = [tirx.const(lane, "int32") for lane in lanes]
    return tirx.Shuffle([script.bind(vector)] * (len(lanes) // count), order)


def _one(weights: Weights, data: Any, base: Any, run: Any, strip: Strip, core: Core) -> Any:
    """The sums of one output, its non-zeros in the lanes: what they multiply is put together."""
    wide, vectors = strip.wide, strip.chains // LANES
    kept, sums = written.local(wide * strip.chains), written.local(wide)
    with script.unroll(i64(0), i64(wide * vectors)) as v:
        script.buffer_store(kept, tirx.Broadcast(f32(0), LANES), [lanes(v * i64(LANES))])
    with script.serial(weights.starts[run], weights.starts[run + 1]) as turn:
        begin = turn.astype("int64") * strip.chains
        ask_for(weights, begin, strip)
        for u in range(vectors):
            k = begin + u * LANES
            values = script.bind(weights.values[lanes(k)].astype(f"float32x{LANES}"))
            for v in range(wide):
                at = lanes(i64((v * vectors + u) * LANES))
                script.buffer_store(
                    kept, kept[at] + values * _elements(data, base + v, weights.offsets, k, core), [at]
                )
    with script.unroll(i64(0), i64(wide)) as v:
        total = kept[v * strip.chains]
        for lane in range(1, strip.chains):
            total = total + kept[v * strip.chains + lane]
        script.buffer_store(sums, total, [v])
    return sums


def offsets_of(offsets: Any, first: Any, count: int, core: Core) -> list[Any]:
    """Those of non-zeros that follow each other: parts of a word, which is one load for several, or each read
    where vectors are multiplied by elements of others, for then loads are few.
    """
    each = 1 if core.elements else _in_word(offsets, count)
    found = []
    for begin in range(0, count, each):
        if each == 1:
            found.append(offsets[first + begin].astype("int64"))
        else:
            found += _apart(script.bind(_word(offsets, first + begin, each)), offsets, each)
    return found


class Offsets:
    """Those of runs that follow each other, read a turn before they are needed, so that what waits for them
    does not wait for memory, too; not where elements of vectors multiply, which takes so much longer.
    """

    def __init__(self, weights: Weights, run: Any, strip: Strip, core: Core) -> None:
        self.offsets, self.count, self.core = weights.offsets, strip.turn, core
        self.each = _in_word(self.offsets, self.count)
        if not core.elements:
            self.words = written.local(self.count // self.each, "uint64")
            self._read(weights.starts[run])

    def next(self, turn: Any) -> list[Any]:
        """Those of a turn; those of the next one are read."""
        if self.core.elements:
            return offsets_of(self.offsets, turn.astype("int64") * self.count, self.count, self.core)
        words = [script.bind(self.words[n]) for n in range(self.count // self.each)]
        self._read(turn + 1)
        return [offset for word in words for offset in _apart(word, self.offsets, self.each)]

    def _read(self, turn: Any) -> None:
        first = turn.astype("int64") * self.count
        for n in range(self.count // self.each):
            word = _word(self.offsets, first + n * self.each, self.each)
            script.buffer_store(self.words, word, [n])


def _in_word(offsets: Any, count: int) -> int:
    """How many of so many offsets are one word."""
    return math.gcd(count, 8 // _itemsize(offsets))


def _word(offsets: Any, first: Any, count: int) -> Any:
    some = offsets[tirx.Ramp(first, i64(1), count)] if count > 1 else offsets[first]
    return tirx.reinterpret(f"uint{8 * _itemsize(offsets) * count}", some).astype("uint64")


def _apart(word: Any, offsets: Any, count: int) -> list[Any]:
    """The offsets of a word."""
    size = _itemsize(offsets)
    mask = tirx.const(256**size - 1, "uint64")
    return [script.bind(((word >> (8 * size * n)) & mask).astype("int64")) for n in range(count)]


def _consecutive(buffer: Any, first: Any, count: int, core: Core) -> list[Any]:
    """Factors of vectors: elements of a vector where these multiply, or read one by one."""
    if not core.elements or count % 2:
        return [buffer[first + n] for n in range(count)]
    vector = script.bind(buffer[tirx.Ramp(first, i64(1), count)])
    return [tirx.Shuffle([vector], [tirx.const(n, "int32")]) for n in range(count)]


def _elements(data: Any, first: Any, offsets: Any, at: Any, core: Core) -> Any:
    """A vector of the elements that are the offsets at ``at`` away from ``first``."""
    if core.gathers:
        none, read = tirx.Broadcast(f32(0), LANES), tirx.Broadcast(f32(-1), LANES)  # a sign has one read
        places = [tirx.address_of(data[first]), offsets[lanes(at)].astype(f"int32x{LANES}")]
        return tirx.call_llvm_intrin(f"float32x{LANES}", _GATHER, none, *places, read, tirx.const(4, "int8"))
    each = [data[first + offset] for offset in offsets_of(offsets, at, LANES, core)]
    return tirx.Shuffle(each, [tirx.const(n, "int32") for n in range(LANES)])


def ask_for(weights: Weights, begin: Any, strip: Strip) -> None:
    """Have many weights that are needed soon read from memory: for few positions that is what takes time."""
    rows, size = strip.rows, _itemsize(weights.values)
    if int(weights.offsets.shape[0]) * rows * size < _NEAR:
        return
    for buffer, each in ((weights.values, rows), (weights.offsets, 1), (weights.picks, rows // strip.alike)):
        if buffer is None:
            continue
        width = _itemsize(buffer)
        for line in range(0, strip.chains * each * width, LINE):
            written.ask_for(buffer[(begin + _AHEAD // (rows * size)) * each + line // width], 3)


def _itemsize(buffer: Any) -> int:
    return np.dtype(str(buffer.dtype)).itemsize


@contextmanager
def outputs(rows: int, core: Core) -> Iterator[Any]:
    """Loops over the outputs of a block, as vectors where they make any."""
    wide = core.lanes if rows % core.lanes == 0 else min(rows, LANES)
    with script.unroll(i64(0), i64(rows // wide)) as u, script.vectorized(i64(0), i64(wide)) as lane:
        yield u * i64(wide) + lane
