-- The read model of the view "order-history": nothing but the fold of three topics. Each build has tables of its own.
CREATE TABLE {orders} (
    order_id    TEXT PRIMARY KEY,
    user_id     TEXT    NOT NULL,
    product_id  TEXT    NOT NULL,
    quantity    INTEGER NOT NULL,
    price_cents INTEGER NOT NULL,
    state       TEXT    NOT NULL
) STRICT;
CREATE INDEX {orders_by_user} ON {orders} (user_id, order_id);
CREATE TABLE {products} (
    product_id TEXT PRIMARY KEY,
    title      TEXT NOT NULL
) STRICT;
CREATE TABLE {users} (
    user_id TEXT PRIMARY KEY,
    name    TEXT NOT NULL
) STRICT;
