"""A server whose greedy tokens are the prompt's sum and its successors."""

import argparse
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOAD = {"num_used_tokens": 30, "num_running_reqs": 2, "max_total_num_tokens": 600}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer("" if self.path == "/health" else json.dumps({"loads": [LOAD]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/drop":
            return
        if self.path == "/die":
            os.write(1, b"out of luck\n")
            os._exit(7)
        if self.path.startswith("/flush_cache"):
            self._answer("Cache flushed.")
            return
        length = body["sampling_params"]["max_new_tokens"]
        replies = [{"output_ids": [sum(ids) + i for i in range(length)]} for ids in body["input_ids"]]
        self._answer(json.dumps(replies))

    def _answer(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format, *args):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--refuse", action="store_true")
    args, _others = parser.parse_known_args()
    if args.refuse:
        raise SystemExit("refused by its flags")
    ThreadingHTTPServer(("127.0.0.1", args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
