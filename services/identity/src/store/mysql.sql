CREATE TABLE IF NOT EXISTS users (
    id VARCHAR(36) PRIMARY KEY,
    name VARCHAR(200) NOT NULL,
    email VARCHAR(254) NOT NULL,
    roles VARCHAR(4096) NOT NULL DEFAULT '',
    blocked BOOLEAN NOT NULL DEFAULT FALSE,
    version BIGINT NOT NULL DEFAULT 1,
    created_ms BIGINT NOT NULL
) CHARACTER SET utf8mb4;

-- Who can sign in: an address belongs to one account, whatever is written in it large or small. Compared byte by byte: to the
-- usual collations é is e, and somebody else's address would be one's own.
CREATE TABLE IF NOT EXISTS passwords (
    account VARCHAR(254) PRIMARY KEY,
    user_id VARCHAR(36) CHARACTER SET utf8mb4 NOT NULL UNIQUE,
    hash VARCHAR(255) NOT NULL
) CHARACTER SET utf8mb4 COLLATE /*M!utf8mb4_nopad_bin*//*!80000 utf8mb4_0900_bin*/;

CREATE TABLE IF NOT EXISTS sessions (
    id VARCHAR(36) PRIMARY KEY,
    user_id VARCHAR(36) NOT NULL,
    created_ms BIGINT NOT NULL,
    ends_ms BIGINT NOT NULL,
    ended_ms BIGINT,
    INDEX sessions_of_user (user_id),
    INDEX sessions_by_end (ends_ms)
) CHARACTER SET utf8mb4;

-- Of a token only its hash is here; a used one stays until its session is gone, so that it is known again.
CREATE TABLE IF NOT EXISTS refresh_tokens (
    hash VARBINARY(32) PRIMARY KEY,
    session_id VARCHAR(36) NOT NULL,
    used_ms BIGINT,
    INDEX refresh_tokens_of_session (session_id),
    FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE
) CHARACTER SET utf8mb4;

-- The state is next (published, signs nothing yet), current (signs) or retired (published while its tokens live); of the first two
-- there is one each.
CREATE TABLE IF NOT EXISTS signing_keys (
    kid VARCHAR(64) PRIMARY KEY,
    algorithm VARCHAR(16) NOT NULL,
    sealed VARBINARY(1024) NOT NULL,
    state VARCHAR(16) NOT NULL,
    since_ms BIGINT NOT NULL,
    one_of VARCHAR(16) AS (IF(state = 'retired', NULL, state)) VIRTUAL,
    UNIQUE INDEX one_of_each (one_of)
) CHARACTER SET utf8mb4;
