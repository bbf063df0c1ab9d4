"""Counts words of posts in a database of its own, with the CloudEvents package of PyPI and nothing of Tombolo.

The place in the topic is stored in the same transaction as the effect, so each event counts once, whatever crashes.
Run it beside the blog: pip install cloudevents; python consumer.py
"""

import json
import os
import sqlite3
import urllib.parse
import urllib.request

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

BUS = os.environ.get("TOMBOLO_HTTP", "http://127.0.0.1:7200")
EVENTS = BUS + "/topics/events/events"


def main(path="words.db", rounds=None):
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("CREATE TABLE IF NOT EXISTS words (word TEXT PRIMARY KEY, count INTEGER NOT NULL)")
    database.execute("CREATE TABLE IF NOT EXISTS place (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), after TEXT NOT NULL)")
    while rounds is None or rounds > 0:
        rounds = rounds and rounds - 1
        row = database.execute("SELECT after FROM place").fetchone()
        query = urllib.parse.urlencode({"after": row[0] if row else "0", "wait": 10})
        with urllib.request.urlopen(f"{EVENTS}?{query}") as answer:
            after, events = answer.headers["Tombolo-Cursor"], json.load(answer)
        database.execute("BEGIN IMMEDIATE")
        for event in events:
            handle(database, JSONFormat().read(CloudEvent, json.dumps(event)))
        database.execute("INSERT OR REPLACE INTO place VALUES (1, ?)", (after,))
        database.execute("COMMIT")


def handle(database, event):
    if event.get_type() == "PostCreated":
        for word in event.get_data()["data"]["title"].split():
            database.execute("INSERT INTO words VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1", (word.lower(),))


if __name__ == "__main__":
    main()
