// The instructions that compute capability 9.0 alone has, one function each: tensor copies, barriers in shared memory, products of
// a warpgroup (PTX ISA: cp.async.bulk.tensor, mbarrier, wgmma).
#pragma once
#include <cstdint>
#include "dependent.cuh"
#include "mma.cuh"

namespace promptmix {

// A matrix as tensor copies see it: what cuTensorMapEncodeTiled wrote.
struct alignas(64) TensorMap {
    uint64_t words[16];
};
constexpr int MAX_SHARED = 232448;  // bytes of shared memory of a block

__device__ __forceinline__ void start_barrier(uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes barriers that were started known to tensor copies and to other blocks of the cluster.
__device__ __forceinline__ void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives, and has the phase wait for so many bytes too.
__device__ __forceinline__ void expect_bytes(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Arrives at the barrier at that place in a block of the cluster.
__device__ __forceinline__ void arrive_at(uint32_t barrier, uint32_t block) {
    asm volatile("{\n\t.reg .b32 there;\n\t"
                 "mapa.shared::cluster.u32 there, %0, %1;\n\t"
                 "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n\t}" ::"r"(barrier),
                 "r"(block)
                 : "memory");
}
// Waits until the phase of that parity is over; of a barrier that was just started, the one before the first, parity 1, is.
__device__ __forceinline__ void wait_for_phase(uint32_t barrier, uint32_t parity) {
    uint32_t over;
    do {
        asm volatile("{\n\t.reg .pred over;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, over;\n\t}"
                     : "=r"(over)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (over == 0);
}

// A barrier of all threads of the cluster, in two parts.
__device__ __forceinline__ void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_arrivals() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_cluster() {
    arrive_at_cluster();
    wait_for_arrivals();
}

// Four numbers that lie at `from` in another block of the cluster.
__device__ __forceinline__ float4 load_from_block(uint32_t from, uint32_t block) {
    float4 four;
    asm volatile("{\n\t.reg .b32 there;\n\t"
                 "mapa.shared::cluster.u32 there, %4, %5;\n\t"
                 "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n\t}"
                 : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
                 : "r"(from), "r"(block)
                 : "memory");
    return four;
}
// The same for four words to `to` there.
__device__ __forceinline__ void store_to_block(uint32_t to, uint32_t block, const uint4& four) {
    asm volatile("{\n\t.reg .b32 there;\n\t"
                 "mapa.shared::cluster.u32 there, %0, %1;\n\t"
                 "st.shared::cluster.v4.b32 [there], {%2, %3, %4, %5};\n\t}" ::"r"(to),
                 "r"(block), "r"(four.x), "r"(four.y), "r"(four.z), "r"(four.w)
                 : "memory");
}
// Orders what this thread wrote to shared memory, its own block's or another's, before products and copies that read it.
__device__ __forceinline__ void fence_writes() { asm volatile("fence.proxy.async;" ::: "memory"); }

// Copies a box of a matrix to shared memory, from `column` and `row` on; what lies outside comes as zeros, and all of the box
// counts at the barrier.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& from, uint32_t barrier, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"(&from), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}

// The same to that place in each block of the cluster whose bit is set; the bytes count at the barrier of each.
__device__ __forceinline__ void copy_box_to_all(uint32_t to, const TensorMap& from, uint32_t barrier, int column, int row, uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
                 "l"(&from), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
                 : "memory");
}

// A barrier of some of the block's threads, whole warps.
__device__ __forceinline__ void wait_together(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// Where a warpgroup's operand lies in shared memory, written by a tensor copy with 128-byte swizzle: atoms of eight times 128
// bytes. Along k the next eight rows lie `stride` bytes on. Across k an atom is 64 rows or columns by eight of k: the next of
// the former lie `leading` bytes on, of the latter `stride`.
__device__ __forceinline__ uint64_t describe_operand(uint32_t start, uint32_t leading, uint32_t stride) {
    return static_cast<uint64_t>((start & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
           static_cast<uint64_t>(stride >> 4) << 32 | 1ull << 62;
}
// The same operand so many bytes, a multiple of 16, further on.
__device__ __forceinline__ uint64_t operand_after(uint64_t operand, uint32_t bytes) { return operand + (bytes >> 4); }
// Orders what this warp did with the registers of sums before the products that follow.
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending> __device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// Keeps the compiler from moving what it does with registers across this place.
template <int Count> __device__ __forceinline__ void keep(float (&numbers)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(numbers[i])::"memory");
}
template <int Count> __device__ __forceinline__ void keep(uint32_t (&words)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) asm volatile("" : "+r"(words[i])::"memory");
}

// d = a b, or where it Adds, or `adds` is not 0 or not asked for, d += a b: a 64x16, b 16 by 32, 64, 128 or 192 columns, d 64 by as many, by
// the four warps of a warpgroup. Lane l of warp w holds of d rows 16w + l / 4 and eight on, columns 8j + 2·(l % 4) and the next, for all
// j. Across: b's rows along k are not neighbours in memory, its columns are.
#define SUMS_8(how, i) \
    how(d[i]), how(d[i + 1]), how(d[i + 2]), how(d[i + 3]), how(d[i + 4]), how(d[i + 5]), how(d[i + 6]), how(d[i + 7])
#define WRITTEN "=f"
#define CHANGED "+f"
#define NUMBERS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NUMBERS_32 NUMBERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NUMBERS_64 \
    NUMBERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, " \
               "%55, %56, %57, %58, %59, %60, %61, %62, %63"
template <bool Adds> __device__ __forceinline__ void multiply_32(float (&d)[16], uint64_t a, uint64_t b) {
    if constexpr (Adds) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" NUMBERS_16 "}, %16, %17, 1, 1, 1, 0, 0;"
                     : SUMS_8(CHANGED, 0), SUMS_8(CHANGED, 8)
                     : "l"(a), "l"(b));
    } else {
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" NUMBERS_16 "}, %16, %17, 0, 1, 1, 0, 0;"
                     : SUMS_8(WRITTEN, 0), SUMS_8(WRITTEN, 8)
                     : "l"(a), "l"(b));
    }
}
template <bool Across> __device__ __forceinline__ void multiply_64(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NUMBERS_32 "}, %32, %33, 1, 1, 1, 0, %34;"
                 : SUMS_8(CHANGED, 0), SUMS_8(CHANGED, 8), SUMS_8(CHANGED, 16), SUMS_8(CHANGED, 24)
                 : "l"(a), "l"(b), "n"(Across ? 1 : 0));
}
template <bool Across> __device__ __forceinline__ void multiply_64(float (&d)[32], uint64_t a, uint64_t b, uint32_t adds) {
    asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.u32 adds, %34, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NUMBERS_32 "}, %32, %33, adds, 1, 1, 0, %35;\n\t}"
                 : SUMS_8(CHANGED, 0), SUMS_8(CHANGED, 8), SUMS_8(CHANGED, 16), SUMS_8(CHANGED, 24)
                 : "l"(a), "l"(b), "r"(adds), "n"(Across ? 1 : 0));
}
// The same with a in registers: lane l of warp w holds rows 16w + l / 4 and eight on, columns 2·(l % 4) and the next of the first eight,
// then of the second. The rows of b along k are neighbours.
template <bool Adds> __device__ __forceinline__ void multiply_own(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
    if constexpr (Adds) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" NUMBERS_16 "}, {%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
                     : SUMS_8(CHANGED, 0), SUMS_8(CHANGED, 8)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    } else {
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" NUMBERS_16 "}, {%16, %17, %18, %19}, %20, 0, 1, 1, 0;"
                     : SUMS_8(WRITTEN, 0), SUMS_8(WRITTEN, 8)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
}
template <bool Adds> __device__ __forceinline__ void multiply_own(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    if constexpr (Adds) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NUMBERS_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
                     : SUMS_8(CHANGED, 0), SUMS_8(CHANGED, 8), SUMS_8(CHANGED, 16), SUMS_8(CHANGED, 24)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    } else {
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NUMBERS_32 "}, {%32, %33, %34, %35}, %36, 0, 1, 1, 0;"
                     : SUMS_8(WRITTEN, 0), SUMS_8(WRITTEN, 8), SUMS_8(WRITTEN, 16), SUMS_8(WRITTEN, 24)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
}
// d += a b with such an a, and b Across.
__device__ __forceinline__ void multiply_own_across(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NUMBERS_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : SUMS_8(CHANGED, 0), SUMS_8(CHANGED, 8), SUMS_8(CHANGED, 16), SUMS_8(CHANGED, 24)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <bool Across>
__device__ __forceinline__ void multiply_128(float (&d)[64], uint64_t a, uint64_t b, uint32_t adds) {
    asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.u32 adds, %66, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{" NUMBERS_64 "}, %64, %65, adds, 1, 1, 0, %67;\n\t}"
                 : SUMS_8(CHANGED, 0), SUMS_8(CHANGED, 8), SUMS_8(CHANGED, 16), SUMS_8(CHANGED, 24), SUMS_8(CHANGED, 32), SUMS_8(CHANGED, 40),
                   SUMS_8(CHANGED, 48), SUMS_8(CHANGED, 56)
                 : "l"(a), "l"(b), "r"(adds), "n"(Across ? 1 : 0));
}
template <bool Across>
__device__ __forceinline__ void multiply_192(float (&d)[96], uint64_t a, uint64_t b, uint32_t adds) {
    asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.u32 adds, %98, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
                 "{" NUMBERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, "
                 "%90, %91, %92, %93, %94, %95}, %96, %97, adds, 1, 1, 0, %99;\n\t}"
                 : SUMS_8(CHANGED, 0), SUMS_8(CHANGED, 8), SUMS_8(CHANGED, 16), SUMS_8(CHANGED, 24), SUMS_8(CHANGED, 32), SUMS_8(CHANGED, 40),
                   SUMS_8(CHANGED, 48), SUMS_8(CHANGED, 56), SUMS_8(CHANGED, 64), SUMS_8(CHANGED, 72), SUMS_8(CHANGED, 80), SUMS_8(CHANGED, 88)
                 : "l"(a), "l"(b), "r"(adds), "n"(Across ? 1 : 0));
}
#undef NUMBERS_64
#undef NUMBERS_32
#undef NUMBERS_16
#undef CHANGED
#undef WRITTEN
#undef SUMS_8

}  // namespace promptmix
