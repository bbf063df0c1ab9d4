-- The read model, kept by the view "order-history": nothing but the fold of three topics.
CREATE TABLE IF NOT EXISTS history_orders (
    order_id    TEXT PRIMARY KEY,
    user_id     TEXT    NOT NULL,
    product_id  TEXT    NOT NULL,
    quantity    INTEGER NOT NULL,
    price_cents INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS history_orders_by_user ON history_orders (user_id, order_id);
CREATE TABLE IF NOT EXISTS history_products (
    product_id TEXT PRIMARY KEY,
    title      TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS history_users (
    user_id TEXT PRIMARY KEY,
    name    TEXT NOT NULL
) STRICT;
