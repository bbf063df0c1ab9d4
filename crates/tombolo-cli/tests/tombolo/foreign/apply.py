import http.server
import json
import sqlite3
import sys
import uuid


class Events(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
        try:
            database.execute("BEGIN IMMEDIATE")  # one transaction: the effect, and the cursor
            database.execute(
                "INSERT INTO mail (customer, about) VALUES (?, ?)",
                (self.headers["ce-subject"], event["order"]),
            )
            database.execute(
                "INSERT INTO tombolo_apply (subscription, topic, partition, sequence, id) VALUES (?, ?, ?, ?, ?)",
                (
                    self.headers["tombolo-subscription"],
                    self.headers["tombolo-topic"],
                    int(self.headers["tombolo-partition"]),
                    int(self.headers["tombolo-sequence"]),
                    uuid.UUID(self.headers["ce-id"]).bytes,
                ),
            )
            database.execute("COMMIT")
            self.send_response(204)
        except sqlite3.Error as error:  # applied already, or something is wrong: the transaction is undone
            self.send_response(409, str(error))
        finally:
            database.close()
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Events)
print(server.server_port, flush=True)
server.serve_forever()
