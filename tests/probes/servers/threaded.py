"""Python's http.server with a thread for each connection, which it keeps open, and which writes down by its own clock when
it read and wrote.

    threaded.py ADDRESS

It listens on any free port of ADDRESS and says which. Times are nanoseconds of CLOCK_MONOTONIC.
"""

import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ADDRESS = sys.argv[1]
SEEN = []
now = time.monotonic_ns


class Noting(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A head and a body that are written apart would wait for each other otherwise.
    disable_nagle_algorithm = True

    def parse_request(self):
        # The first line has been read, so the socket has.
        self.read = now()
        return super().parse_request()

    def do_GET(self):
        body = json.dumps({"seen": SEEN}).encode() if self.path == "/seen" else b"data: token\n\n"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        called = now()
        self.end_headers()
        first = now()
        self.wfile.write(body)
        last = now()
        record = {"path": self.path, "read": self.read, "called": called}
        SEEN.append({**record, "first": first, "recalled": first, "last": last})

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
    daemon_threads = True


server = Server((ADDRESS, 0), Noting)
print(f"LISTENING {server.server_port}", flush=True)
server.serve_forever()
