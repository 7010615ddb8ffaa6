/* A stand-in for a GPU's library: functions with chosen first instructions, which take as long as they are told. */

#define _GNU_SOURCE
#include <time.h>

#define USED __attribute__((used, visibility("hidden")))

/* A function that begins so, and does the rest in another. */
#define FUNCTION(name, first, rest)                                                                                    \
    __asm__(".text\n.globl " #name "\n.type " #name ",@function\n.p2align 4\n" #name ":\n" first "\njmp " #rest           \
            "\n.size " #name ",.-" #name "\n")

#define NOP5 ".byte 0x0f,0x1f,0x44,0x00,0x00"
#define PUSH "push %rbp\npop %rbp"
#define ENDBR_PUSH "endbr64\npush %rbp\npop %rbp"
#define MOV "mov %rdi,%rdi"

static int take(long nanos) {
    struct timespec rest = {nanos / 1000000000, nanos % 1000000000};
    if (nanos > 0)
        while (clock_nanosleep(CLOCK_MONOTONIC, 0, &rest, &rest) != 0)
            ;
    return 0;
}

USED int wait_for(long nanos) { return take(nanos); }
USED int copy(void *to, long nanos, unsigned long bytes) { return take(nanos); }
USED int nothing(void) { return 0; }

/* More than a TiB there is not. */
USED int allocate(void **at, unsigned long bytes) { return bytes > 1ul << 40 ? 2 : 0; }

FUNCTION(cuStreamSynchronize, NOP5, wait_for);
FUNCTION(cuEventSynchronize, PUSH, wait_for);
FUNCTION(cuCtxSynchronize, ENDBR_PUSH, wait_for);
FUNCTION(cuMemcpyDtoH_v2, PUSH, copy);
FUNCTION(cuMemcpyHtoDAsync_v2_ptsz, NOP5, nothing);
FUNCTION(cuMemAlloc_v2, ENDBR_PUSH, allocate);
FUNCTION(cuMemFree_v2, MOV, nothing);
FUNCTION(cuLaunchKernel, PUSH, nothing);
FUNCTION(cuUnknown, PUSH, nothing);

/* A breakpoint of somebody else's, over which the kernel puts none. */
#ifdef BROKEN
FUNCTION(cuMemHostAlloc, "int3", nothing);
#endif

extern int cuMemAlloc_v2(void **, unsigned long);

/* The older variant calls the newer one. */
USED int allocate_by_the_newer(void **at, unsigned long bytes) { return cuMemAlloc_v2(at, bytes) + 0 * (int)bytes; }
FUNCTION(cuMemAlloc, PUSH, allocate_by_the_newer);

/* Calls itself so many times. */
extern int cuGraphLaunch(long);
USED int again(long depth) { return depth > 1 ? cuGraphLaunch(depth - 1) + 0 * (int)take(1000) : 0; }
FUNCTION(cuGraphLaunch, PUSH, again);

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1e9 + at.tv_nsec;
}

/* Nanoseconds that so many calls took together, by a clock around each. */
double timed(int (*function)(long, long, long), long first, long second, long third, long calls) {
    double sum = 0;
    for (long call = 0; call < calls; call++) {
        double from = now();
        function(first, second, third);
        sum += now() - from;
    }
    return sum;
}

/* Mean of the fastest round in nanoseconds, of so many calls: what a probe costs, without an interpreter around. */
double fastest(int (*function)(long, long, long), long rounds, long calls) {
    double best = 1e18;
    for (long round = 0; round < rounds; round++) {
        double from = now();
        for (long call = 0; call < calls; call++)
            function(0, 0, 0);
        double took = now() - from;
        if (took / calls < best)
            best = took / calls;
    }
    return best;
}
