// Query: the read model. It only stores what it is told, and so answers alone.

const { serve } = require("./service");

const posts = {};

function post(id) {
  return (posts[id] ??= { id, title: null, comments: {} });
}

const routes = {
  "GET /posts": async () => [200, Object.values(posts).map((it) => ({ ...it, comments: Object.values(it.comments) }))],
};

serve(4002, routes, async ({ type, data }) => {
  if (type === "PostCreated") post(data.id).title = data.title;
  if (type === "CommentCreated") post(data.postId).comments[data.id] ??= { id: data.id, content: data.content, status: data.status };
  if (type === "CommentUpdated") post(data.postId).comments[data.id] = { id: data.id, content: data.content, status: data.status };
});
