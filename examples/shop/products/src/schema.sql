CREATE TABLE IF NOT EXISTS products (
    id          TEXT PRIMARY KEY,
    title       TEXT    NOT NULL,
    price_cents INTEGER NOT NULL
) STRICT;
