// Comments: takes them as pending, and says what became of one when moderation has looked at it.

const { randomUUID } = require("node:crypto");
const { publish, serve } = require("./service");

const comments = {};

const routes = {
  "GET /posts/:post/comments": async ({ post }) => [200, Object.values(comments).filter((it) => it.postId === post)],
  "POST /posts/:post/comments": async ({ post }, { content, id = randomUUID() }) => {
    if (!content) return [400, { error: "a comment needs a content" }];
    const comment = { id, content, postId: post, status: "pending" };
    await publish("CommentCreated", comment);
    return [201, comment];
  },
};

serve(4001, routes, async ({ type, data }, { isReplay }) => {
  if (type === "CommentCreated") comments[data.id] ??= data;
  if (type === "CommentModerated") {
    const comment = { ...comments[data.id], ...data };
    comments[data.id] = comment;
    // Published from within the handler: the bus answers before it delivers.
    if (!isReplay) await publish("CommentUpdated", comment);
  }
  if (type === "CommentUpdated") comments[data.id] = data;
});
