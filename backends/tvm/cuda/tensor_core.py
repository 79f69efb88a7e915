"""Products with constant weights on the tensor cores of NVIDIA's GPUs: dense, two of four, or blocks.

    sums[o, p] = Σ weights[o, k] · source[k, p]    for a tile of outputs o and positions p

Threads hold weights as tensor cores want them and read them so from memory, since they are constant; what
they multiply passes through shared memory, where patches of images are put together and rounded. While a
step is computed the next is read. Sums go through shared memory too, so that whatever is fused after the
product is computed element by element, and written line by line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script import tirx as intrinsics
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from ..schedules.common import Rule, annotated, ceil_div, extent, i32, i64, inline_around, joined
from ..vecmath import f32
from .fragments import FP16, KEPT, ROUND, ROWS, WARP, Packed, Precision
from .reading import Reading

_COLUMNS = 8  # positions of a fragment of sums
CHUNKS = 4  # of 16 bytes, in a row of a step
_BANKS = 32  # of shared memory, in words
BLOCK = "tensor_core"


@dataclass(frozen=True)
class Warps:
    """What a thread block computes.

    Attributes:
        high, wide: warps along outputs and along positions.
        rows, columns: fragments of sums that each warp has, of 16 outputs by 8 positions.
    """

    high: int
    wide: int
    rows: int
    columns: int

    @property
    def threads(self) -> int:
        return WARP * self.high * self.wide

    @property
    def outputs(self) -> int:
        return ROWS * self.high * self.rows

    @property
    def positions(self) -> int:
        return _COLUMNS * self.wide * self.columns


class Form(NamedTuple):
    """How weights are stored; see `fragments`."""

    name: str  # dense, two_of_four or blocks
    precision: Precision
    block: int = 0  # rows and columns, of blocks

    @property
    def fragments(self) -> int:
        """Of weights, in a step, for 16 outputs."""
        return 1 if self.name == "two_of_four" else 2


def kernel(source: Reading, outputs: int, form: Form, packed: Packed, warps: Warps) -> Any:
    """A PrimFunc of the operand and of the arrays of ``packed``; `TensorCore` schedules it."""
    high, wide = ceil_div(outputs, warps.outputs), ceil_div(source.positions, warps.positions)
    sizes = (warps.outputs, warps.positions)
    with IRBuilder() as builder, script.prim_func(s_tir=True):
        script.func_attr({"tirx.noalias": True})

        def argument(name: str, size: Sequence[int], dtype: str, count: Callable[[int], Any] = i32) -> Any:
            return script.arg(name, script.buffer([count(d) for d in size], dtype))

        x = argument("x", source.shape, "float32")
        arrays = [argument(f"weights{n}", a.shape, str(a.dtype)) for n, a in enumerate(packed.arrays)]
        made = argument("result", source.result(outputs), "float32", i64)
        shape = [*source.ordered(high, wide), *source.ordered(*sizes)]
        sums = script.sblock_alloc_buffer([i64(d) for d in shape], "float32")
        with script.grid(i64(high), i64(wide)) as (a, b), script.sblock(BLOCK):
            tile = script.axis.remap("SS", [a, b])
            script.sblock_attr(
                {BLOCK: f"{warps.outputs},{warps.positions},{warps.threads},{int(source.beside)}"}
            )
            script.reads(*(buffer[_whole(buffer)] for buffer in (x, *arrays)))
            # Moving a block to where it is needed wants an axis for each dimension of what it writes.
            whole = [script.axis.spatial(i64(1), i64(0)) for _ in sizes]
            region = [slice(at, at + 1) for at in source.ordered(*tile)]
            region += [slice(at * d, at * d + d) for at, d in zip(whole, shape[2:], strict=True)]
            script.writes(sums[tuple(region)])
            with script.thread_binding(i32(0), i32(warps.threads), "threadIdx.x") as thread:
                work = _Block(source, form, packed.steps, warps, x, arrays, tile, thread)
                for output, position, value in work.computed():
                    place = [*source.ordered(*tile), *source.ordered(output, position)]
                    script.buffer_store(sums, value, place)
        with script.grid(*(i64(size) for size in made.shape)) as at, script.sblock("out"):
            axes = list(script.axis.remap("S" * len(made.shape), list(at)))
            places = list(zip(source.sum_at(axes), sizes, strict=True))
            first = [tirx.floordiv(at, i64(size)) for at, size in places]
            within = [tirx.floormod(at, i64(size)) for at, size in places]
            script.buffer_store(made, sums[(*source.ordered(*first), *source.ordered(*within))], axes)
    return builder.get()


def shared_bytes(warps: Warps) -> int:
    """Of shared memory, at most: of a step and of sums, each line filled up for the banks."""
    lines = (warps.outputs + _BANKS) * (warps.positions + _BANKS)
    return 16 * (CHUNKS + 1) * warps.positions + 4 * lines


class _Block:
    """The work of a thread block, written for one of its threads."""

    def __init__(
        self,
        source: Reading,
        form: Form,
        steps: int,
        warps: Warps,
        x: Any,
        arrays: Sequence[Any],
        tile: Sequence[Any],
        thread: Any,
    ) -> None:
        self.source, self.form, self.steps, self.warps = source, form, steps, warps
        self.x, self.arrays, self.thread = x, arrays, thread
        # Threads count in 32 bits; what is read of arrays would keep the compiler from narrowing 64.
        self.tile = [at.astype("int32") for at in tile]
        self.lane, warp = thread % WARP, thread // WARP
        self.row = warp // warps.wide * warps.rows  # the first fragment of the warp, in the tile
        self.column = warp % warps.wide * (warps.columns * _COLUMNS)  # its first position
        precision, chunk = form.precision, form.precision.chunk
        # A chunk more in each row keeps eight rows in different banks.
        self.pitch = (CHUNKS + 1) * chunk
        self.chunks = warps.positions * CHUNKS // warps.threads  # that each thread reads in a step
        self.shared = _alloc(warps.positions * self.pitch, precision.dtype, "shared")
        self.next = _alloc(self.chunks * chunk, precision.dtype, "local")
        self.weights = _alloc(warps.rows * form.fragments * 4, "uint32", "local")
        self.following = _alloc(warps.rows * form.fragments * 4, "uint32", "local")
        self.metadata = _alloc(2 * warps.rows, "uint32", "local")
        self.operand = _alloc(4, "uint32", "local")
        self.kept = _alloc(warps.rows * warps.columns * 4, "float32", "local")

    def computed(self) -> Iterator[tuple[Any, Any, Any]]:
        """The sums of the thread, with the output and the position of each in the tile."""
        begin, end = i32(0), i32(self.steps)
        if self.form.name == "blocks":
            starts = self.arrays[2]
            begin, end = (starts[self.tile[0] + n] for n in (0, 1))
        with script.unroll(i32(0), i32(self.kept.shape[0])) as n:
            script.buffer_store(self.kept, f32(0), [n])
        self._read(begin)
        with script.serial(begin, end) as step:
            self._put()
            script.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))
            with script.unroll(i32(0), i32(self.weights.shape[0])) as n:
                script.buffer_store(self.weights, self.following[n], [n])
            if self.form.name == "two_of_four":
                with script.unroll(i32(0), i32(self.warps.rows)) as n:
                    script.buffer_store(self.metadata, self.metadata[self.warps.rows + n], [n])
            self._read(step + 1)
            self._multiply()
            script.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))
        # Thread 4 g + t has columns 2 t and 2 t + 1 of rows g and g + 8.
        for j in range(self.warps.columns):
            for i in range(self.warps.rows):
                for n in range(4):
                    output = (self.row + i) * ROWS + n // 2 * 8 + self.lane // 4
                    position = self.column + j * _COLUMNS + self.lane % 4 * 2 + n % 2
                    yield output, position, self.kept[i32((i * self.warps.columns + j) * 4 + n)]

    def _chunk(self, number: Any) -> tuple[Any, Any]:
        """The position in the tile, and the part of its row, of a chunk that the thread reads."""
        at = number * self.warps.threads + self.thread
        if self.source.beside:
            return at // CHUNKS, at % CHUNKS
        return at % self.warps.positions, at // self.warps.positions

    def _read(self, step: Any) -> None:
        """What the next step multiplies, into registers."""
        precision, chunk = self.form.precision, self.form.precision.chunk
        if self.form.name != "blocks":  # the last step reads itself again
            step = tirx.min(step, i32(self.steps - 1))
        wide = self.source.wide
        with (
            script.unroll(i32(0), i32(self.chunks)) as c,
            script.unroll(i32(0), i32(chunk // wide)) as e,
            script.vectorized(i32(0), i32(wide)) as lane,
        ):
            position, part = self._chunk(c)
            position = position + self.tile[1] * self.warps.positions
            column = self._column(step, part) + e * wide
            read = self.x[tuple(self.source.place(column + lane, position))]
            inside, nothing = self.source.inside(column, position), tirx.const(0, precision.dtype)
            value = tirx.if_then_else(inside, _rounded(read, precision), nothing)
            script.buffer_store(self.next, value, [c * chunk + e * wide + lane])
        fragments = self.form.fragments
        for row in range(self.warps.rows):
            with script.unroll(i32(0), i32(fragments)) as f, script.vectorized(i32(0), i32(4)) as n:
                place = [*self._fragment(step, row), f, self.lane, n]
                at = (i32(row * fragments) + f) * 4 + n
                script.buffer_store(self.following, self.arrays[0][tuple(place)], [at])
            if self.form.name == "two_of_four":
                # Two of four threads bring the places of rows g and g + 8.
                word = self.lane // 4 * 2 + self.lane % 2
                read = self.arrays[1][(*self._fragment(step, row), word)]
                script.buffer_store(self.metadata, read, [i32(self.warps.rows + row)])

    def _column(self, step: Any, part: Any) -> Any:
        """The first column of a chunk."""
        chunk = self.form.precision.chunk
        if self.form.name != "blocks":
            return step * (CHUNKS * chunk) + part * chunk
        places = self.arrays[1]
        each = CHUNKS // int(places.shape[1])  # chunks of a part
        return (places[step, part // each] * each + part % each) * chunk

    def _fragment(self, step: Any, row: int) -> tuple[Any, Any]:
        """Where the weights of a row of fragments of the warp are."""
        if self.form.name == "blocks":
            return step, self.row + row
        # Rows past the last are computed from weights of the last, and dropped.
        most = int(self.arrays[0].shape[0]) - 1
        return tirx.min(self.tile[0] * (self.warps.outputs // ROWS) + self.row + row, i32(most)), step

    def _put(self) -> None:
        chunk = self.form.precision.chunk
        with script.unroll(i32(0), i32(self.chunks)) as c, script.vectorized(i32(0), i32(chunk)) as e:
            position, part = self._chunk(c)
            at = position * self.pitch + part * chunk + e
            script.buffer_store(self.shared, self.next[c * chunk + e], [at])

    def _multiply(self) -> None:
        chunk, ptx = self.form.precision.chunk, intrinsics.ptx
        with script.unroll(i32(0), i32(self.warps.columns)) as j:
            # Eight threads each tell where the rows of one of four matrices of eight rows by 16 bytes are.
            position = self.column + j * _COLUMNS + self.lane % _COLUMNS
            address = tirx.address_of(self.shared[position * self.pitch + self.lane // _COLUMNS * chunk])
            b = [self.operand[i32(n)] for n in range(4)]
            script.evaluate(ptx.ldmatrix.sync.aligned.m8n8.x4.shared.b16(*b, address))
            for i in range(self.warps.rows):
                sums = [self.kept[(i32(i * self.warps.columns) + j) * 4 + n] for n in range(4)]
                for f in range(self.form.fragments):
                    at = (i * self.form.fragments + f) * 4
                    a = [self.weights[i32(at + n)] for n in range(4)]
                    if self.form.name == "two_of_four":
                        mma = ptx.mma.sp__ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32
                        script.evaluate(mma(*sums, *a, *b, *sums, self.metadata[i32(i)], 0))
                    elif self.form.precision is FP16:
                        mma = ptx.mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
                        script.evaluate(mma(*sums, *a, *b[2 * f : 2 * f + 2], *sums))
                    else:
                        mma = ptx.mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
                        script.evaluate(mma(*sums, *a, *b[2 * f : 2 * f + 2], *sums))


def _rounded(value: Any, precision: Precision) -> Any:
    """A float32 as tensor cores take it."""
    if precision is FP16:
        return value.astype("float16")
    bits = tirx.reinterpret("uint32", value)
    return (bits + tirx.const(ROUND, "uint32")) & tirx.const(KEPT, "uint32")


def _alloc(size: int, dtype: str, scope: str) -> Any:
    return script.sblock_alloc_buffer([i64(size)], dtype, scope=scope)


def _whole(buffer: Any) -> tuple[slice, ...]:
    return tuple(slice(i32(0), i32(int(size))) for size in buffer.shape)


class TensorCore(Rule):
    """Schedule of `kernel` with whatever elementwise operators were fused after it."""

    def schedule(self, schedule: Any) -> Any:
        found = annotated(schedule, BLOCK)
        if found is None:
            return None
        outputs, positions, threads, beside = (int(v) for v in str(found[1]).split(","))
        out = inline_around(schedule, lambda name: name == BLOCK)
        block = found[0]
        schedule.transform_block_layout(out, _by_tiles(schedule, out, bool(beside)))
        o, p = schedule.get_loops(out)[:: -1 if beside else 1]
        (o, o_in), (p, p_in) = (
            schedule.split(o, [None, outputs]),
            schedule.split(p, [None, positions]),
        )
        schedule.reorder(o, p, *((p_in, o_in) if beside else (o_in, p_in)))
        schedule.compute_at(block, p, preserve_unit_loops=True)
        schedule.set_scope(block, 0, "shared")
        # Threads that write at once, four columns by eight rows or the other way round, want different banks.
        schedule.storage_align(block, 0, 2, _BANKS, 4 if beside else 8)
        schedule.bind(o, "blockIdx.y")
        schedule.bind(p, "blockIdx.x")
        inner = schedule.fuse(*((p_in, o_in) if beside else (o_in, p_in)))
        _, each = schedule.split(inner, [None, threads])
        schedule.bind(each, "threadIdx.x")
        return schedule


def _by_tiles(schedule: Any, out: Any, beside: bool) -> Any:
    """The index map that makes two axes of those of the result: outputs and positions, as they lie."""
    sizes = [extent(schedule, loop) for loop in schedule.get_loops(out)]
    if beside:
        return tirx.IndexMap.from_func(lambda *at: [joined(sizes[:-1], at[:-1]), at[-1]], ndim=len(sizes))
    return tirx.IndexMap.from_func(
        lambda n, o, *at: [o, joined([sizes[0], *sizes[2:]], [n, *at])], ndim=len(sizes)
    )
