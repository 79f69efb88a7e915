// What the CUDA source of a kernel takes to run on this processor: each thread of a block is a fiber, which waits
// where its warp works together or its block meets. Fibers go on in a random order, so that a kernel that waits
// too seldom gives other results than it should. Shared memory is not-a-number until it is written.
//
// Matrix instructions follow the fragments of the PTX ISA, "Warp-level matrix instructions".

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

using half = _Float16;
using uint = unsigned;
using uchar = unsigned char;
using std::max;
using std::min;

struct alignas(16) uint4 {
  uint x, y, z, w;
};
inline uint4 make_uint4(uint x, uint y, uint z, uint w) { return {x, y, z, w}; }
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct alignas(8) half4 {
  half x, y, z, w;
};
inline half4 make_half4(half x, half y, half z, half w) { return {x, y, z, w}; }
struct alignas(8) uint2 {
  uint x, y;
};

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n)
#define erff std::erf
#define __float2half_rn(value) static_cast<half>(value)

namespace emulated {

constexpr int kWarp = 32;
constexpr size_t kShared = 227 << 10, kStack = 1 << 16;

struct Index {
  int x = 0, y = 0, z = 0;
};

enum class State { kReady, kBlock, kWarp, kDone };

using Work = void (*)(void* const*);  // of a warp, on what each of its threads gave

struct Thread {
  ucontext_t context;
  Index index;
  State state = State::kReady;
  Work work = nullptr;
  void* given = nullptr;
  std::unique_ptr<char[]> stack{new char[kStack]};
};

inline Thread* current;
inline Index block;
inline ucontext_t scheduler;
inline void (*body)();

inline const char* failure;  // what is wrong with the kernel, which ends it

inline void Wait(State state) {
  current->state = state;
  swapcontext(&current->context, &scheduler);
}

inline void Together(Work work, void* given) {
  current->work = work;
  current->given = given;
  Wait(State::kWarp);
}

inline void Run() {
  body();
  current->state = State::kDone;
}

inline bool All(const std::vector<Thread>& threads, size_t first, size_t count, State state) {
  return std::all_of(threads.begin() + first, threads.begin() + first + count,
                     [=](const Thread& thread) { return thread.state == state; });
}

// Warps whose threads are all there do their work, and a block whose threads all wait goes on.
inline bool Meet(std::vector<Thread>& threads) {
  bool met = false;
  for (size_t first = 0; first < threads.size(); first += kWarp) {
    if (!All(threads, first, kWarp, State::kWarp)) continue;
    void* given[kWarp];
    for (int lane = 0; lane < kWarp; ++lane) {
      given[lane] = threads[first + lane].given;
      if (threads[first + lane].work != threads[first].work) failure = "threads of a warp are at different instructions";
    }
    threads[first].work(given);
    for (int lane = 0; lane < kWarp; ++lane) threads[first + lane].state = State::kReady;
    met = true;
  }
  if (All(threads, 0, threads.size(), State::kBlock)) {
    for (Thread& thread : threads) thread.state = State::kReady;
    met = true;
  }
  return met;
}

inline void Block(std::vector<Thread>& threads, std::mt19937& random) {
  std::vector<Thread*> order;
  for (size_t n = 0; n < threads.size(); ++n) {
    Thread& thread = threads[n];
    thread.index.x = static_cast<int>(n);
    thread.state = State::kReady;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, Run, 0);
    order.push_back(&thread);
  }
  while (!failure && !All(threads, 0, threads.size(), State::kDone)) {
    std::shuffle(order.begin(), order.end(), random);
    bool ran = false;
    for (Thread* thread : order) {
      if (thread->state != State::kReady) continue;
      current = thread;
      ran = true;
      swapcontext(&scheduler, &thread->context);
    }
    if (!Meet(threads) && !ran) failure = "threads wait for others that never come";
  }
}

}  // namespace emulated

#define threadIdx (emulated::current->index)
#define blockIdx (emulated::block)

namespace emulated {

alignas(128) inline uchar shared[kShared];

// What went wrong, or nothing.
inline const char* Launch(void (*kernel)(), int x, int y, int z, int threads, unsigned seed) {
  failure = threads % kWarp ? "a block is no whole number of warps" : nullptr;
  std::mt19937 random(seed);
  std::vector<Thread> fibers(threads);
  body = kernel;
  for (block.z = 0; block.z < z; ++block.z)
    for (block.y = 0; block.y < y; ++block.y)
      for (block.x = 0; !failure && block.x < x; ++block.x) {
        std::memset(shared, 0xff, kShared);
        Block(fibers, random);
      }
  return failure;
}

template <typename T>
T As(uint word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// A value of a register of two float16.
inline double Half(uint word, int which) { return As<half>(word >> (16 * which) & 0xffff); }

// Tensor cores do not see the last 13 bits.
inline double Tf32(uint word) { return As<float>(word & 0xffffe000u); }

struct Product {
  float* d[4];
  uint a[4], b[4];
  float c[4];
  uint metadata;
};

// Sums of (row, k) of the first operand times (k, column) of the second, as threads hold them.
template <typename A, typename B>
void Multiply(Product* const* lanes, int depth, A a, B b) {
  double sums[16][8];
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      const int lane = row % 8 * 4 + column / 2, n = row / 8 * 2 + column % 2;
      double sum = lanes[lane]->c[n];
      for (int k = 0; k < depth; ++k) sum += a(row, k) * b(k, column);
      sums[row][column] = sum;
    }
  for (int lane = 0; lane < kWarp; ++lane)
    for (int n = 0; n < 4; ++n)
      *lanes[lane]->d[n] = static_cast<float>(sums[lane / 4 + n / 2 * 8][lane % 4 * 2 + n % 2]);
}

inline void MultiplyHalves(void* const* given) {
  auto lanes = reinterpret_cast<Product* const*>(given);
  Multiply(
      lanes, 16,
      [=](int row, int k) {
        return Half(lanes[row % 8 * 4 + k % 8 / 2]->a[row / 8 + k / 8 * 2], k % 2);
      },
      [=](int k, int column) { return Half(lanes[column * 4 + k % 8 / 2]->b[k / 8], k % 2); });
}

inline void MultiplyTf32(void* const* given) {
  auto lanes = reinterpret_cast<Product* const*>(given);
  Multiply(
      lanes, 8, [=](int row, int k) { return Tf32(lanes[row % 8 * 4 + k % 4]->a[row / 8 + k / 4 * 2]); },
      [=](int k, int column) { return Tf32(lanes[column * 4 + k % 4]->b[k / 4]); });
}

// With selector 0, threads 4 g and 4 g + 1 bring metadata: of columns 0 to 15 and 16 to 31, rows g (low half) and
// g + 8 (high half); two places of two bits for every four columns.
inline void MultiplySparse(void* const* given) {
  auto lanes = reinterpret_cast<Product* const*>(given);
  double a[16][32] = {};
  for (int row = 0; row < 16; ++row)
    for (int four = 0; four < 8; ++four) {
      const uint places = lanes[row % 8 * 4 + four / 4]->metadata >> (row / 8 * 16 + four % 4 * 4) & 15;
      if ((places & 3) >= places >> 2) failure = "metadata of a sparse product is not in order";
      const Product* lane = lanes[row % 8 * 4 + four % 4];
      for (int n = 0; n < 2; ++n)
        a[row][four * 4 + (places >> (2 * n) & 3)] = Half(lane->a[row / 8 + four / 4 * 2], n);
    }
  Multiply(
      lanes, 32, [&](int row, int k) { return a[row][k]; },
      [=](int k, int column) { return Half(lanes[column * 4 + k % 8 / 2]->b[k / 8], k % 2); });
}

struct Rows {
  uint* r[4];
  uint address;
};

// Thread n tells where row n % 8 of matrix n / 8 is, and gets word n % 4 of row n / 4 of each.
inline void LoadRows(void* const* given) {
  auto lanes = reinterpret_cast<Rows* const*>(given);
  for (int lane = 0; lane < kWarp; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const uint address = lanes[matrix * 8 + lane / 4]->address;
      if (address % 16 || address + 16 > kShared) {
        failure = "ldmatrix reads a row that is not aligned, or outside of shared memory";
        return;
      }
      std::memcpy(lanes[lane]->r[matrix], shared + address + lane % 4 * 4, 4);
    }
}

}  // namespace emulated

inline void __syncthreads() { emulated::Wait(emulated::State::kBlock); }

inline uint tvm_builtin_cuda_cvta_generic_to_shared(void* p) {
  return static_cast<uint>(static_cast<uchar*>(p) - emulated::shared);
}

inline void tvm_builtin_ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16(uint& r0, uint& r1, uint& r2, uint& r3, uint p) {
  emulated::Rows given{{&r0, &r1, &r2, &r3}, p};
  emulated::Together(emulated::LoadRows, &given);
}

inline void tvm_builtin_ptx_mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, float c0, float c1,
    float c2, float c3) {
  emulated::Product given{{&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, 0};
  emulated::Together(emulated::MultiplyHalves, &given);
}

inline void tvm_builtin_ptx_mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(
    float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, float c0, float c1,
    float c2, float c3) {
  emulated::Product given{{&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, 0};
  emulated::Together(emulated::MultiplyTf32, &given);
}

inline void tvm_builtin_ptx_mma_sp_pair_sp__ordered_metadata_sync_aligned_m16n8k32_row_col_f32_f16_f16_f32_0(
    float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, uint b2, uint b3,
    float c0, float c1, float c2, float c3, uint metadata) {
  emulated::Product given{{&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1, b2, b3}, {c0, c1, c2, c3}, metadata};
  emulated::Together(emulated::MultiplySparse, &given);
}
