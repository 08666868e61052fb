#!/usr/bin/env python3
"""An origin with ranges that sends slowly: origin.py PORT FILE BYTES-A-SECOND (each connection)."""
import http.server
import re
import sys
import time

PORT, CONTENT, RATE = int(sys.argv[1]), open(sys.argv[2], "rb").read(), int(sys.argv[3])


class Origin(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]) if asked and asked[2] else len(CONTENT), len(CONTENT) - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        for at in range(first, last + 1 if body else first, RATE // 10):
            self.wfile.write(CONTENT[at : min(at + RATE // 10, last + 1)])
            time.sleep(0.1)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """Clients may leave when they like."""


Server(("", PORT), Origin).serve_forever()
