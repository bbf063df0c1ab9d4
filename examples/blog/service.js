// What the four services share: a server with JSON routes, and the two addresses of an event bus. No package is needed.
//
// Invariant: what a service knows follows from the events alone, so it may be stopped at any moment: it publishes first, and
// at its start it reads what there is.

const http = require("node:http");

const BUS = process.env.BUS || "http://127.0.0.1:4005/events";

/** Tells the bus what happened; it is on disk when this returns. Tries again while the bus is away. */
async function publish(type, data) {
  for (let pause = 50; ; pause = Math.min(pause * 2, 1000)) {
    try {
      const body = JSON.stringify({ type, data });
      const answer = await fetch(BUS, { method: "POST", headers: { "content-type": "application/json" }, body });
      if (answer.ok) return;
      if (answer.status < 500) throw new Refused(`the bus refused ${type}: ${await answer.text()}`);
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

class Refused extends Error {}

/** All events since the beginning. */
async function everything() {
  for (;;) {
    try {
      const answer = await fetch(BUS);
      if (answer.ok) return await answer.json();
    } catch {
      // The bus is away; so are its deliveries.
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/**
 * Serves `routes`, each `"METHOD /path/:name": async (names, body) => [status, answer]`, and hands every event to `on`: those of
 * the past first, without what follows from them, then those that the bus delivers, one after the other.
 */
async function serve(port, routes, on, { rebuilds = true } = {}) {
  let isReady = false;
  const past = rebuilds ? everything() : Promise.resolve([]);
  const ready = past.then(async (events) => {
    for (const event of events) await on(event, { isReplay: true });
    isReady = true;
  });
  const all = {
    ...routes,
    "GET /ready": async () => (isReady ? [200, "ready"] : [503, "reading events"]),
    "POST /events": async (_, event) => {
      await ready;
      await on(event, { isReplay: false });
      return [200, {}];
    },
  };
  const server = http.createServer(async (request, response) => {
    const [status, answer] = await answered(all, request);
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(answer));
  });
  const listen = process.env.TOMBOLO_LISTEN;
  server.listen(listen ? Number(listen.split(":").pop()) : port, "127.0.0.1");
  process.on("SIGTERM", () => process.exit(0));
}

async function answered(routes, request) {
  try {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    for (const [route, handler] of Object.entries(routes)) {
      const names = matched(route, request);
      if (names) return await handler(names, text && JSON.parse(text));
    }
    return [404, { error: `there is no ${request.method} ${request.url}` }];
  } catch (error) {
    return [error instanceof SyntaxError ? 400 : 500, { error: error.message }];
  }
}

function matched(route, request) {
  const [method, path] = route.split(" ");
  const [wanted, found] = [path.split("/"), request.url.split("?")[0].split("/")];
  if (method !== request.method || wanted.length !== found.length) return null;
  const names = {};
  for (const [at, word] of wanted.entries()) {
    if (word.startsWith(":")) names[word.slice(1)] = decodeURIComponent(found[at]);
    else if (word !== found[at]) return null;
  }
  return names;
}

module.exports = { publish, serve };
