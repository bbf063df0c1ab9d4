-- The read model of the view "order-history": nothing but the fold of three topics. Each build has tables of its own.
CREATE TABLE {orders} (
    order_id    text COLLATE "C" PRIMARY KEY,
    user_id     text   NOT NULL,
    product_id  text   NOT NULL,
    quantity    bigint NOT NULL,
    price_cents bigint NOT NULL,
    state       text   NOT NULL
);
CREATE INDEX {orders_by_user} ON {orders} (user_id, order_id);
CREATE TABLE {products} (
    product_id text PRIMARY KEY,
    title      text NOT NULL
);
CREATE TABLE {users} (
    user_id text PRIMARY KEY,
    name    text NOT NULL
);
