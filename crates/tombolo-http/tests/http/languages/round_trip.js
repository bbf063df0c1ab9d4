// Publishes with the CloudEvents package of npm in each of its modes, and reads the events back with it.

const assert = require("node:assert");
const { CloudEvent, HTTP, emitterFor, httpTransport } = require("cloudevents");

const url = `${process.env.BUS}/topics/posts/events`;

function event(number) {
  return new CloudEvent({
    type: "PostCreated", source: "/posts", id: `node-${number}`, subject: "p1", extra: "ü", data: { title: `post ${number}` },
  });
}

async function send(message) {
  const answer = await fetch(url, { method: "POST", headers: message.headers, body: message.body });
  assert.ok(answer.ok, await answer.text());
}

async function main() {
  const published = [0, 1, 2].map(event);
  await send(HTTP.structured(published[0]));
  await send(HTTP.binary(published[1]));
  // The package's own transport.
  await emitterFor(httpTransport(url))(published[2]);

  const answer = await fetch(url);
  const read = HTTP.toEvent({ headers: Object.fromEntries(answer.headers), body: await answer.text() });
  assert.deepStrictEqual(read.map((it) => it.id), ["node-0", "node-1", "node-2"]);
  for (const [at, got] of read.entries()) {
    const given = published[at];
    assert.deepStrictEqual(got.data, given.data);
    for (const name of ["type", "source", "subject", "extra", "time"]) {
      assert.strictEqual(new Date(got[name]).getTime() || got[name], new Date(given[name]).getTime() || given[name], name);
    }
  }
}

main();
