#!/usr/bin/env python3
"""The HTTP interface of ClickHouse over its real engine as a library (PyPI chdb), for tests.

Takes GET /ping, and GET and POST /?query=...&database=...&param_x=...: the query in the URL, in the body or in both (the rows of
an INSERT follow in the body), as it is, gzip or chunked. Errors are HTTP 500 with ClickHouse's text and X-ClickHouse-Exception-Code.
Tables live in FOLDER and survive kill -9. One query at a time. Says `ready PORT` on standard error when it listens.
"""
import argparse
import gzip
import http.server
import os
import re
import ssl
import sys
import tempfile
import threading
import urllib.parse

try:
    from chdb import session
except ImportError as error:
    sys.exit(f"{error}: `make test` installs it; by hand: pip install -r tests/requirements.txt")

INSERT = re.compile(r"^\s*INSERT\s+INTO\s+(?:TABLE\s+)?(?P<into>.+?)\s+FORMAT\s+(?P<format>\w+)\s*;?\s*$", re.I | re.S)
FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*$", re.I)

arguments = argparse.ArgumentParser()
arguments.add_argument("folder")
arguments.add_argument("port", type=int)
arguments.add_argument("--user", help="the only one who may ask")
arguments.add_argument("--password", default="")
arguments.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"))
arguments.add_argument("--may-not", help="queries that begin with this word are refused")
arguments = arguments.parse_args()
folder = os.path.abspath(arguments.folder)
os.makedirs(folder, exist_ok=True)
engine = session.Session(os.path.join(folder, "engine"))
turn = threading.Lock()


class Refused(Exception):
    """An error in the words of ClickHouse."""


def check_user(headers, args):
    if arguments.user is None:
        return
    user = headers.get("X-ClickHouse-User", args.get("user", "default"))
    password = headers.get("X-ClickHouse-Key", args.get("password", ""))
    if (user, password) != (arguments.user, arguments.password):
        raise Refused(f"Code: 516. DB::Exception: {user}: Authentication failed. (AUTHENTICATION_FAILED)")


def split(query, body):
    """The query, and the rows that an INSERT takes (None for any other query)."""
    if query and INSERT.match(query):
        return query, body
    if query:
        return query + ("\n" + body.decode() if body else ""), None
    head, end, rest = body.partition(b"\n")
    if end and INSERT.match(head.decode(errors="replace")):
        return head.decode(), rest
    return body.decode(), None


def run(query, rows, args):
    word = arguments.may_not
    if word and query.lstrip().upper().startswith(word.upper()):
        raise Refused(f"Code: 497. DB::Exception: {arguments.user}: Not enough privileges. (ACCESS_DENIED)")
    if "database" in args:
        engine.query(f"USE `{args['database']}`")
    for name, value in args.items():
        if name.startswith("param_"):
            quoted = value.replace("\\", "\\\\").replace("'", "\\'")
            engine.query(f"SET {name} = '{quoted}'")
    if rows is None:
        stated = FORMAT.search(query)
        form = stated.group(1) if stated else args.get("default_format", "TabSeparated")
        return engine.query(query[: stated.start()] if stated else query, form).bytes() or b""
    insert = INSERT.match(query)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".rows") as file:
        file.write(rows)
        file.flush()
        # One block, where it fits into one: as over HTTP.
        engine.query(f"INSERT INTO {insert['into']} FROM INFILE '{file.name}' FORMAT {insert['format']}")
    return b""


class Front(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        try:
            self.answer(self.body())
        except ConnectionError:
            # Whoever asked is gone.
            self.close_connection = True

    def reply(self, code, body, *headers):
        self.send_response(code)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        """The whole of it; one that breaks off is nobody's query."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while True:
                line = self.rfile.readline()
                if not line.strip():
                    raise ConnectionError("cut off")
                size = int(line.split(b";")[0], 16)
                piece = self.rfile.read(size)
                self.rfile.readline()
                if len(piece) < size:
                    raise ConnectionError("cut off")
                if not size:
                    break
                data += piece
        else:
            size = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(size)
            if len(data) < size:
                raise ConnectionError("cut off")
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def answer(self, body):
        url = urllib.parse.urlparse(self.path)
        args = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        if url.path == "/ping":
            return self.reply(200, b"Ok.\n")
        try:
            if "1" in (args.get("compress"), args.get("decompress")):
                raise Refused("Code: 432. DB::Exception: this server takes no lz4: turn the client's compression off")
            check_user(self.headers, args)
            query, rows = split(args.get("query", ""), body)
            with turn:
                data = run(query, rows, args)
        except Exception as error:
            text = str(error).rstrip() + "\n"
            code = re.search(r"Code: (\d+)", text)
            return self.reply(500, text.encode(), ("X-ClickHouse-Exception-Code", code.group(1) if code else "1"))
        self.reply(200, data, ("Content-Type", "application/octet-stream"))


http.server.ThreadingHTTPServer.daemon_threads = True
# Clients keep their connections: each has a thread.
server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Front)
if arguments.tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*arguments.tls)
    server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", server.server_address[1], file=sys.stderr, flush=True)
server.serve_forever()
