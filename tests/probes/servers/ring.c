/* An HTTP server that accepts, reads and writes through io_uring only, and tells each client of the answer before when it
 * was read and written: the head says "x-read" and "x-written", in nanoseconds of CLOCK_MONOTONIC.
 *
 * It makes the system calls itself, so that nothing but a compiler is needed. It listens on any free port of 127.0.0.1
 * and says which; "REFUSED" when the kernel gives it no ring. A request is whatever ends with an empty line. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ENTRIES = 64, CONNECTIONS = 1024, ROOM = 16384 };
enum { ACCEPT, RECV, SEND };

static struct {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask, pending;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
} ring;

static struct {
    size_t filled;
    long long read, last_read, last_written;
    char in[ROOM], out[512];
} connections[CONNECTIONS];

static long long now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int set_up(void) {
    struct io_uring_params params = {0};
    ring.fd = syscall(SYS_io_uring_setup, ENTRIES, &params);
    if (ring.fd < 0) return 0;
    char *sq = mmap(0, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd,
                    IORING_OFF_SQ_RING);
    char *cq = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED,
                    ring.fd, IORING_OFF_CQ_RING);
    ring.sqes = mmap(0, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd,
                     IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || ring.sqes == MAP_FAILED) return 0;
    ring.sq_tail = (unsigned *)(sq + params.sq_off.tail);
    ring.sq_mask = (unsigned *)(sq + params.sq_off.ring_mask);
    ring.sq_array = (unsigned *)(sq + params.sq_off.array);
    ring.cq_head = (unsigned *)(cq + params.cq_off.head);
    ring.cq_tail = (unsigned *)(cq + params.cq_off.tail);
    ring.cq_mask = (unsigned *)(cq + params.cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
    return 1;
}

/* What is to be done next on a socket; the number comes back with its end. */
static void submit(int what, int fd, void *data, unsigned length) {
    unsigned tail = *ring.sq_tail, at = tail & *ring.sq_mask;
    static const int codes[] = {IORING_OP_ACCEPT, IORING_OP_RECV, IORING_OP_SEND};
    struct io_uring_sqe *entry = &ring.sqes[at];
    memset(entry, 0, sizeof *entry);
    entry->opcode = codes[what];
    entry->fd = fd;
    entry->addr = (unsigned long)data;
    entry->len = length;
    entry->user_data = (unsigned long)fd << 2 | what;
    ring.sq_array[at] = at;
    __atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
    if (++ring.pending == ENTRIES) {
        syscall(SYS_io_uring_enter, ring.fd, ring.pending, 0, 0, 0, 0);
        ring.pending = 0;
    }
}

static void receive(int fd) {
    submit(RECV, fd, connections[fd].in + connections[fd].filled, ROOM - connections[fd].filled);
}

static void has_read(int fd, int count) {
    if (count <= 0) {
        close(fd);
        return;
    }
    if (connections[fd].filled == 0) connections[fd].read = now();
    connections[fd].filled += count;
    if (!memmem(connections[fd].in, connections[fd].filled, "\r\n\r\n", 4)) {
        receive(fd);
        return;
    }
    int length = snprintf(connections[fd].out, sizeof connections[fd].out,
                          "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-read: %lld\r\nx-written: %lld\r\n\r\nok\n",
                          connections[fd].last_read, connections[fd].last_written);
    connections[fd].filled = 0;
    submit(SEND, fd, connections[fd].out, length);
}

static void ended(int what, int fd, int listener, int result) {
    if (what == ACCEPT) {
        if (result >= 0 && result < CONNECTIONS) {
            memset(&connections[result], 0, sizeof connections[result]);
            receive(result);
        }
        submit(ACCEPT, listener, 0, 0);
    } else if (what == RECV) {
        has_read(fd, result);
    } else {
        connections[fd].last_read = connections[fd].read;
        connections[fd].last_written = now();
        receive(fd);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (!set_up()) {
        printf("REFUSED: %s\n", strerror(errno));
        return 0;
    }
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 128)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("LISTENING %d\n", ntohs(address.sin_port));
    fflush(stdout);
    submit(ACCEPT, listener, 0, 0);
    for (;;) {
        int done = syscall(SYS_io_uring_enter, ring.fd, ring.pending, 1, IORING_ENTER_GETEVENTS, 0, 0);
        if (done < 0 && errno != EINTR) return 1;
        if (done > 0) ring.pending -= done;
        while (*ring.cq_head != __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE)) {
            struct io_uring_cqe *end = &ring.cqes[*ring.cq_head & *ring.cq_mask];
            ended(end->user_data & 3, end->user_data >> 2, listener, end->res);
            __atomic_store_n(ring.cq_head, *ring.cq_head + 1, __ATOMIC_RELEASE);
        }
    }
}
