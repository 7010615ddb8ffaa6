"""A GPU's driver that is none: a file whose ioctls are answered here, and somebody who calls them.

Why: CUSE is not in every kernel, but a file system in user space is, and its root may be a plain file. An ioctl on it goes
through the same system call and the same table of files as one on /dev/nvidia0.

Runs in a mount namespace of its own, so that nothing is left when it ends, however it does. Writes one JSON value per line.
On the first SIGUSR1 it calls, on the second it lets the call return that hangs, on the third it ends. With `serve` it is a
server of HTTP instead, whose answers each need a call.
"""

import ctypes
import fcntl
import http.server
import json
import os
import select
import signal
import struct
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000

# Opcodes of the protocol (the kernel's fuse.h).
FORGET, GETATTR, OPEN, RELEASE, FLUSH, INIT, INTERRUPT, IOCTL, BATCH_FORGET = 2, 3, 14, 18, 25, 26, 36, 39, 42
EINTR, ENOSYS = 4, 38

# For ever, and for less than that, in seconds, by the number of the command.
HANGS = 0x4E
DELAYS = {0x2A: 0, 0x2B: 0.0002, 0x29: 0.005}


def command(number):
    """_IOWR('F', number, 32 bytes)"""
    return 0xC0200000 | ord("F") << 8 | number


def check(result, what):
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def tell(value):
    print(json.dumps(value), flush=True)


def attributes():
    times = (0,) * 9
    return struct.pack("<QII6Q10I", 1 << 30, 0, 0, 1, 0, 0, *times[:3], *times[:3], 0o100666, 1, 0, 0, 0, 4096, 0)


class Server:
    """Answers what the kernel asks of the file system."""

    def __init__(self, fuse, control):
        self.fuse, self.control, self.held = fuse, control, None

    def answer(self, unique, data=b"", error=0):
        os.write(self.fuse, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)

    def run(self):
        while True:
            ready, _, _ = select.select([self.fuse, self.control], [], [])
            if self.control in ready:
                if not os.read(self.control, 1):
                    return
                self.called(*self.held)
            if self.fuse in ready:
                self.serve(os.read(self.fuse, 1 << 20))

    def serve(self, request):
        _, opcode, unique = struct.unpack_from("<IIQ", request)
        if opcode == INIT:
            self.answer(unique, struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 16, 12, 1 << 16, 1, 0, 0, 0, *(0,) * 7))
        elif opcode == GETATTR:
            self.answer(unique, attributes())
        elif opcode == OPEN:
            self.answer(unique, struct.pack("<QII", 1, 0, 0))
        elif opcode in (FLUSH, RELEASE):
            self.answer(unique)
        elif opcode == IOCTL:
            self.call(unique, request[40:])
        elif opcode == INTERRUPT and self.held:
            # Whoever is killed in a call ends when the call does.
            self.answer(self.held[0], error=EINTR)
            self.held = None
        elif opcode not in (FORGET, INTERRUPT, BATCH_FORGET):
            self.answer(unique, error=ENOSYS)

    def call(self, unique, arguments):
        number, size = struct.unpack_from("<12xI12xI", arguments)
        if number & 0xFF == HANGS:
            self.held = (unique, size)
            return
        delay = DELAYS.get(number & 0xFF, 0)
        if delay:
            time.sleep(delay)
        self.called(unique, size)

    def called(self, unique, size):
        self.answer(unique, struct.pack("<iIII", 0, 0, 0, 0) + bytes(size))


def start(path):
    """Puts the file system over a file, and gives the end of a pipe that lets the call return that hangs."""
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=100000,user_id=0,group_id=0,allow_other".encode()
    check(LIBC.mount(b"device", path.encode(), b"fuse.device", 0, options), "mount")
    control, release = os.pipe()
    if os.fork() == 0:
        os.close(release)
        unhurried()
        Server(fuse, control).run()
        os._exit(0)
    os.close(fuse)
    os.close(control)
    return release


def unhurried():
    """Nobody else shall run when we could, where that may be asked for: it would look like time in the call."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        try:
            os.nice(-20)
        except OSError:
            pass


def calls(file, number, count):
    """Calls so often, and tells how long that took by our own clock."""
    took = 0
    for _ in range(count):
        argument = bytearray(32)
        begin = time.monotonic_ns()
        fcntl.ioctl(file, command(number), argument)
        took += time.monotonic_ns() - begin
    tell({"number": number, "count": count, "seconds": took / count / 1e9})


def in_child(body):
    child = os.fork()
    if child == 0:
        body()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise ChildProcessError(status)


def in_another_network(file):
    check(LIBC.unshare(CLONE_NEWNET), "unshare")
    calls(file, 0x41, 10)


def elsewhere(folder, number):
    """The same command on files that are no devices of ours."""
    other = os.path.join(folder, "other")
    pipe, _ = os.pipe()
    files = [os.open("/dev/null", os.O_RDWR), os.open(other, os.O_CREAT | os.O_RDWR), pipe]
    for file in files:
        for _ in range(10):
            try:
                fcntl.ioctl(file, command(number), bytearray(32))
            except OSError:
                pass


def serve(file):
    """Each answer needs a call of 5 ms, made by a thread that has not read the request, as in an engine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            argument = bytearray(32)
            worker = threading.Thread(target=fcntl.ioctl, args=(file, command(0x29), argument))
            worker.start()
            worker.join()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tell({"port": server.server_port})
    server.serve_forever()


def main(folder, *serves):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    path = os.path.join(folder, "nvidia0")
    open(path, "w").close()
    release = start(path)
    file = os.open(path, os.O_RDWR)
    tell({"device": f"/proc/{os.getpid()}/root{path}"})
    if serves:
        serve(file)
    signal.sigwait([signal.SIGUSR1])
    unhurried()
    calls(file, 0x2A, 2000)
    calls(file, 0x2B, 500)
    calls(file, 0x29, 50)
    calls(os.dup(file), 0x34, 10)
    in_child(lambda: calls(file, 0x35, 10))
    in_child(lambda: in_another_network(file))
    elsewhere(folder, 0x39)
    hanging = threading.Thread(target=calls, args=(file, HANGS, 1))
    hanging.start()
    tell({"hangs": HANGS})
    signal.sigwait([signal.SIGUSR1])
    os.write(release, b"x")
    hanging.join()
    tell({"released": HANGS})
    signal.sigwait([signal.SIGUSR1])


main(*sys.argv[1:])
