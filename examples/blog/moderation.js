// Moderation: looks at each comment, and rejects the word "orange". It remembers nothing, so it reads nothing at its start: what it
// missed is delivered to it.

const { publish, serve } = require("./service");

async function moderate({ type, data }) {
  if (type !== "CommentCreated") return;
  const status = data.content.includes("orange") ? "rejected" : "approved";
  await publish("CommentModerated", { ...data, status });
}

serve(4003, {}, moderate, { rebuilds: false });
