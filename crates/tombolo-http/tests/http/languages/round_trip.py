"""Publishes with the CloudEvents package of PyPI in each of its modes, and reads the events back with it."""

import json
import os
import urllib.request

from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

TOPIC = os.environ["BUS"] + "/topics/posts/events"


def call(headers=None, body=None):
    request = urllib.request.Request(TOPIC, data=body, headers=headers or {})
    with urllib.request.urlopen(request) as answer:
        return answer.headers, answer.read()


def event(number):
    attributes = {"type": "PostCreated", "source": "/posts", "id": f"python-{number}", "subject": "p1", "extra": "ü"}
    return CloudEvent({**attributes, "specversion": "1.0", "datacontenttype": "application/json"}, {"title": f"post {number}"})


published = [event(number) for number in range(3)]
for message in [to_structured_event(published[0]), to_binary_event(published[1])]:
    call(message.headers, message.body)
batch = b"[" + JSONFormat().write(published[2]) + b"]"
call({"content-type": "application/cloudevents-batch+json"}, batch)

headers, body = call()
assert headers["content-type"] == "application/cloudevents-batch+json", headers
read = [JSONFormat().read(CloudEvent, json.dumps(it)) for it in json.loads(body)]
assert [it.get_id() for it in read] == ["python-0", "python-1", "python-2"], body
for given, got in zip(published, read):
    assert got.get_data() == given.get_data(), (got.get_data(), given.get_data())
    for name, value in given.get_attributes().items():
        assert got.get_attributes()[name] == value, (name, got.get_attributes()[name], value)
