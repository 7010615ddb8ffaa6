/* Waits for fences that are signaled as late as we say, without a GPU: vgem, a module of the kernel for tests, has a fence put
 * on a buffer by one call and signals it by another, and who reads the buffer waits for it.
 *
 * It says "READY" and the number of its descriptor of the buffer. A line of input, milliseconds, is one wait that takes at
 * least so long from when the kernel says that we are in it. The answer are three numbers of nanoseconds of CLOCK_MONOTONIC:
 * the wait took at least the first, for we saw ourselves in it for so long, and at most the second, for that is what the call
 * took; with the calls that put the fence there and signal it it was the third. With an argument the program is in a network
 * namespace of its own. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* As in drm_mode.h, drm.h and vgem_drm.h, which not every machine has. */
struct dumb { uint32_t height, width, bpp, flags, handle, pitch; uint64_t size; };
struct prime { uint32_t handle, flags; int32_t fd; };
struct attach { uint32_t handle, flags, fence, pad; };
struct signal { uint32_t fence, flags; };
#define CREATE_DUMB _IOWR('d', 0xB2, struct dumb)
#define HANDLE_TO_FD _IOWR('d', 0x2D, struct prime)
#define FENCE_ATTACH _IOWR('d', 0x41, struct attach)
#define FENCE_SIGNAL _IOW('d', 0x42, struct signal)
enum { FENCE_WRITE = 1 };

static int card, waiter;
static long late;
static struct signal fence;
static long long least;

static long long now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void rest(long long nanos) {
    struct timespec left = {nanos / 1000000000, nanos % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) != 0)
        ;
}

static void need(int done, const char *what) {
    if (done < 0) {
        printf("REFUSED %s\n", what);
        fflush(stdout);
        perror(what);
        exit(1);
    }
}

/* Whether the kernel has the first thread wait for a fence. */
static int is_waiting(void) {
    char path[64], where[64] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/wchan", waiter);
    int file = open(path, O_RDONLY);
    if (file < 0)
        return 0;
    if (read(file, where, sizeof where - 1) < 0)
        where[0] = 0;
    close(file);
    return strncmp(where, "dma_fence_", 10) == 0;
}

static void *signals(void *unused) {
    while (!is_waiting())
        rest(100000);
    long long seen = now();
    rest(late * 1000000LL);
    least = now() - seen;
    need(ioctl(card, FENCE_SIGNAL, &fence), "signal");
    return unused;
}

int main(int count, char **arguments) {
    (void)arguments;
    if (count > 1)
        need(unshare(CLONE_NEWNET), "unshare");
    waiter = syscall(SYS_gettid);
    card = open("/dev/dri/card0", O_RDWR | O_CLOEXEC);
    need(card, "card");
    struct dumb dumb = {.height = 1, .width = 1024, .bpp = 32};
    need(ioctl(card, CREATE_DUMB, &dumb), "buffer");
    struct prime prime = {.handle = dumb.handle, .flags = O_CLOEXEC};
    need(ioctl(card, HANDLE_TO_FD, &prime), "descriptor");
    printf("READY %d\n", prime.fd);
    fflush(stdout);
    while (scanf("%ld", &late) == 1) {
        struct attach attach = {.handle = dumb.handle, .flags = FENCE_WRITE};
        long long begun = now();
        need(ioctl(card, FENCE_ATTACH, &attach), "attach");
        fence.fence = attach.fence;
        pthread_t other;
        need(-pthread_create(&other, NULL, signals, NULL), "thread");
        struct dma_buf_sync sync = {DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ};
        long long before = now();
        need(ioctl(prime.fd, DMA_BUF_IOCTL_SYNC, &sync), "wait");
        long long most = now() - before;
        pthread_join(other, NULL);
        printf("%lld %lld %lld\n", least, most, now() - begun);
        fflush(stdout);
    }
    return 0;
}
