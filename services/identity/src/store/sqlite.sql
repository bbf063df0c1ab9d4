CREATE TABLE IF NOT EXISTS users (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    email TEXT NOT NULL,
    roles TEXT NOT NULL DEFAULT '',
    blocked INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 1,
    created_ms INTEGER NOT NULL
) STRICT;

-- Who can sign in: an address belongs to one account, whatever is written in it large or small.
CREATE TABLE IF NOT EXISTS passwords (
    account TEXT PRIMARY KEY,
    user_id TEXT NOT NULL UNIQUE REFERENCES users (id),
    hash TEXT NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    created_ms INTEGER NOT NULL,
    ends_ms INTEGER NOT NULL,
    ended_ms INTEGER
) STRICT;

CREATE INDEX IF NOT EXISTS sessions_of_user ON sessions (user_id);
CREATE INDEX IF NOT EXISTS sessions_by_end ON sessions (ends_ms);

-- Of a token only its hash is here; a used one stays until its session is gone, so that it is known again.
CREATE TABLE IF NOT EXISTS refresh_tokens (
    hash BLOB PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    used_ms INTEGER
) STRICT;

CREATE INDEX IF NOT EXISTS refresh_tokens_of_session ON refresh_tokens (session_id);

-- The state is next (published, signs nothing yet), current (signs) or retired (published while its tokens live).
CREATE TABLE IF NOT EXISTS signing_keys (
    kid TEXT PRIMARY KEY,
    algorithm TEXT NOT NULL,
    sealed BLOB NOT NULL,
    state TEXT NOT NULL,
    since_ms INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX IF NOT EXISTS one_key_signs ON signing_keys (state) WHERE state = 'current';
CREATE UNIQUE INDEX IF NOT EXISTS one_key_is_next ON signing_keys (state) WHERE state = 'next';
