-- All of this is one transaction, and replicas that start at once take turns in it.
SELECT pg_advisory_xact_lock(hashtext('shop-orders tables'));
CREATE TABLE IF NOT EXISTS orders (
    id          text COLLATE "C" PRIMARY KEY,
    user_id     text   NOT NULL,
    product_id  text   NOT NULL,
    quantity    bigint NOT NULL,
    price_cents bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS orders_by_user ON orders (user_id, id);
-- What became of an order: paid or cancelled, once. One without an outcome is open.
CREATE TABLE IF NOT EXISTS order_outcomes (
    order_id text PRIMARY KEY,
    outcome  text NOT NULL
);
CREATE OR REPLACE VIEW orders_with_state AS
    SELECT o.*, coalesce(c.outcome, 'open') AS state FROM orders o LEFT JOIN order_outcomes c ON c.order_id = o.id;
