import json
import sqlite3
import sys

database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
database.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, cents INTEGER)")
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    order = {"order": f"order-{number}", "cents": 100 + number}
    database.execute("BEGIN IMMEDIATE")  # one transaction: the order, and the event that says so
    database.execute("INSERT INTO orders (id, cents) VALUES (:order, :cents)", order)
    database.execute(
        "INSERT INTO tombolo_events (event_type, event_key, data) VALUES (?, ?, ?)",
        ("orders.placed.v1", f"customer-{number % 5}", json.dumps(order)),
    )
    database.execute("COMMIT")
