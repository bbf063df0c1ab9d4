// Posts: takes them, and knows them from its own events, which the bus sends back to it as to everybody.

const { randomUUID } = require("node:crypto");
const { publish, serve } = require("./service");

const posts = {};

const routes = {
  "GET /posts": async () => [200, Object.values(posts)],
  "POST /posts": async (_, { title, id = randomUUID() }) => {
    if (!title) return [400, { error: "a post needs a title" }];
    await publish("PostCreated", { id, title });
    return [201, { id, title }];
  },
};

serve(4000, routes, async ({ type, data }) => {
  if (type === "PostCreated") posts[data.id] = data;
});
