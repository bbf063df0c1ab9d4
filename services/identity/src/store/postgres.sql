-- All of this is one transaction, and replicas that start at once take turns in it.
SELECT pg_advisory_xact_lock(hashtext('tombolo-identity tables'));

CREATE TABLE IF NOT EXISTS users (
    id text COLLATE "C" PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL,
    roles text NOT NULL DEFAULT '',
    blocked boolean NOT NULL DEFAULT FALSE,
    version bigint NOT NULL DEFAULT 1,
    created_ms bigint NOT NULL
);

-- Who can sign in: an address belongs to one account, whatever is written in it large or small.
CREATE TABLE IF NOT EXISTS passwords (
    account text COLLATE "C" PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL UNIQUE REFERENCES users (id),
    hash text NOT NULL
);

CREATE TABLE IF NOT EXISTS sessions (
    id text COLLATE "C" PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL REFERENCES users (id),
    created_ms bigint NOT NULL,
    ends_ms bigint NOT NULL,
    ended_ms bigint
);

CREATE INDEX IF NOT EXISTS sessions_of_user ON sessions (user_id);
CREATE INDEX IF NOT EXISTS sessions_by_end ON sessions (ends_ms);

-- Of a token only its hash is here; a used one stays until its session is gone, so that it is known again.
CREATE TABLE IF NOT EXISTS refresh_tokens (
    hash bytea PRIMARY KEY,
    session_id text COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    used_ms bigint
);

CREATE INDEX IF NOT EXISTS refresh_tokens_of_session ON refresh_tokens (session_id);

-- The state is next (published, signs nothing yet), current (signs) or retired (published while its tokens live).
CREATE TABLE IF NOT EXISTS signing_keys (
    kid text COLLATE "C" PRIMARY KEY,
    algorithm text NOT NULL,
    sealed bytea NOT NULL,
    state text NOT NULL,
    since_ms bigint NOT NULL
);

CREATE UNIQUE INDEX IF NOT EXISTS one_key_signs ON signing_keys (state) WHERE state = 'current';
CREATE UNIQUE INDEX IF NOT EXISTS one_key_is_next ON signing_keys (state) WHERE state = 'next';
