// Where a launch joins its stream. From compute capability 9.0 on it may begin before the one before it has ended (programmatic
// dependent launch), if its launcher allows that.
#pragma once

namespace promptmix {

// Waits until the launches before are done and all that they wrote is there, and lets the launch after this one begin: its blocks start
// where these leave room, and wait here in turn. Every kernel calls it, as what is after waits for this launch alone. Before the
// call a kernel may fill its shared memory, and neither read nor write what others do.
__device__ __forceinline__ void wait_for_earlier_launches() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// A number that no launch writes while this one runs, through the read-only cache; not where this one may have begun while the launch that
// writes it still ran.
template <typename T> __device__ __forceinline__ T read_frozen(const T* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return *from;
#else
    return __ldg(from);
#endif
}

}  // namespace promptmix
