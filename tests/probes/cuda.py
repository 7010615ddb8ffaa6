"""Calls the stand-in for a GPU's library, as it is told: a JSON object per line in, one out.

A clock is around every call, so that what the probes say can be compared.
"""

import ctypes
import json
import os
import sys
import threading

library = None


def load(path):
    global library
    library = ctypes.CDLL(path)
    return {}


def address(name):
    return ctypes.cast(getattr(library, name), ctypes.c_void_p)


def call(name, args, times=1, threads=1):
    """The clock is the library's, for an interpreter may lose the processor between a return and its own."""
    timed = library.timed
    timed.restype = ctypes.c_double
    args = [ctypes.c_long(value) for value in (args + [0, 0, 0])[:3]]
    sums = []

    def work():
        sums.append(timed(address(name), *args, ctypes.c_long(times)))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"mean": sum(sums) / (times * threads) / 1e9}


def begin(name, args):
    """A call that is not waited for."""
    threading.Thread(target=call, args=(name, args), daemon=True).start()
    return {}


def code(name):
    """The first bytes of a function, as they are now."""
    return {"code": ctypes.string_at(address(name).value, 9).hex()}


def cost(name, rounds, calls):
    fastest = library.fastest
    fastest.restype = ctypes.c_double
    return {"nanos": fastest(address(name), ctypes.c_long(rounds), ctypes.c_long(calls))}


def fork(away=False):
    """The child goes on in the place of its parent, which waits for it; in another network namespace, if it is to go away."""
    if away:
        assert ctypes.CDLL(None).unshare(0x40000000) == 0
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    return {"pid": os.getpid()}


commands = {"load": load, "call": call, "begin": begin, "code": code, "cost": cost, "fork": fork}
print(json.dumps({"pid": os.getpid()}), flush=True)
for line in sys.stdin:
    told = json.loads(line)
    print(json.dumps(commands[told.pop("do")](**told)), flush=True)
