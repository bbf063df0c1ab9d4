CREATE TABLE IF NOT EXISTS orders (
    id          TEXT PRIMARY KEY,
    user_id     TEXT    NOT NULL,
    product_id  TEXT    NOT NULL,
    quantity    INTEGER NOT NULL,
    price_cents INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS orders_by_user ON orders (user_id, id);
-- What became of an order: paid or cancelled, once. One without an outcome is open.
CREATE TABLE IF NOT EXISTS order_outcomes (
    order_id TEXT PRIMARY KEY,
    outcome  TEXT NOT NULL
) STRICT;
CREATE VIEW IF NOT EXISTS orders_with_state AS
    SELECT o.*, coalesce(c.outcome, 'open') AS state FROM orders o LEFT JOIN order_outcomes c ON c.order_id = o.id;
