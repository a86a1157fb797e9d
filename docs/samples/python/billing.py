#!/usr/bin/python3
# Writes one invoice for each request. For `keyward run -listen=…`: a new password is a new process on the same socket.
import os, signal, socket, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from psycopg_pool import ConnectionPool

pool = ConnectionPool(min_size=2, max_size=8, open=False)  # PGUSER, PGPASSWORD, PGHOST and so on: from the environment
WRITE = "INSERT INTO invoices DEFAULT VALUES RETURNING session_user || ' wrote invoice ' || id"

class Billing(BaseHTTPRequestHandler):
    log_message = lambda *_: None
    def do_GET(self):
        with pool.connection() as db:
            answer = db.execute(WRITE).fetchone()[0] + "\n"
        self.send_response(200), self.end_headers(), self.wfile.write(answer.encode())

server = ThreadingHTTPServer(("", 0), Billing, bind_and_activate=False)
server.socket, server.daemon_threads = socket.socket(fileno=3), False  # the socket of `keyward run`; answer all before the end
server.socket.setblocking(False)  # another process may take a connection first
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
pool.open(wait=True)  # fresh logins, then what the service really does, undone: only a password that works is ready
with pool.connection() as db, db.transaction(force_rollback=True):
    db.execute(WRITE)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
server.serve_forever()
server.server_close(), pool.close()
