//! The store on MariaDB and MySQL, where transactions run beside each other: what one has to rely on it locks, and always the user first,
//! so that two of them never wait for each other.

use jiff::Timestamp;
use tombolo::Result;
use tombolo::mysql::{Mysql, Tx};

use super::{Account, CLEARED, Refresh, Store, StoredKey, like};

impl Store for Mysql {
    async fn make_tables(&self) -> Result<()> {
        sqlx::raw_sql(include_str!("mysql.sql")).execute(self.pool()).await?;
        Ok(())
    }

    async fn insert_user(tx: &mut Tx, user: &Account) -> Result<()> {
        let insert =
            sqlx::query("INSERT INTO users (id, name, email, roles, created_ms) VALUES (?, ?, ?, ?, ?)");
        let insert = insert.bind(&user.id).bind(&user.name).bind(&user.email).bind(&user.roles);
        insert.bind(user.created_ms).execute(&mut **tx).await?;
        Ok(())
    }

    async fn insert_password(tx: &mut Tx, account: &str, user: &str, hash: &str) -> Result<bool> {
        let insert = "INSERT IGNORE INTO passwords (account, user_id, hash) VALUES (?, ?, ?)";
        let inserted = sqlx::query(insert).bind(account).bind(user).bind(hash).execute(&mut **tx).await?;
        Ok(inserted.rows_affected() == 1)
    }

    async fn user(&self, id: &str) -> Result<Option<Account>> {
        let found = sqlx::query_as("SELECT * FROM users WHERE id = ?").bind(id);
        Ok(found.fetch_optional(self.pool()).await?)
    }

    async fn user_in(tx: &mut Tx, id: &str) -> Result<Option<Account>> {
        Ok(sqlx::query_as("SELECT * FROM users WHERE id = ? FOR UPDATE")
            .bind(id)
            .fetch_optional(&mut **tx)
            .await?)
    }

    async fn users(&self, query: &str, after: &str, most: i64) -> Result<Vec<Account>> {
        let like = like(query);
        let found = sqlx::query_as(
            "SELECT * FROM users WHERE id > ? AND (name LIKE ? ESCAPE '|' OR email LIKE ? ESCAPE '|') ORDER BY id LIMIT ?",
        );
        Ok(found.bind(after).bind(&like).bind(&like).bind(most).fetch_all(self.pool()).await?)
    }

    async fn password(&self, account: &str) -> Result<Option<(String, String)>> {
        let found = sqlx::query_as("SELECT user_id, hash FROM passwords WHERE account = ?").bind(account);
        Ok(found.fetch_optional(self.pool()).await?)
    }

    async fn password_of(&self, user: &str) -> Result<Option<String>> {
        let found = sqlx::query_scalar("SELECT hash FROM passwords WHERE user_id = ?").bind(user);
        Ok(found.fetch_optional(self.pool()).await?)
    }

    async fn replace_password(tx: &mut Tx, user: &str, compared: &str, hash: &str) -> Result<bool> {
        let update = sqlx::query("UPDATE passwords SET hash = ? WHERE user_id = ? AND hash = ?");
        Ok(update.bind(hash).bind(user).bind(compared).execute(&mut **tx).await?.rows_affected() == 1)
    }

    async fn rename(tx: &mut Tx, user: &str, name: &str) -> Result<()> {
        sqlx::query("UPDATE users SET name = ? WHERE id = ?")
            .bind(name)
            .bind(user)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn raise(tx: &mut Tx, user: &str) -> Result<Option<Account>> {
        let raise = sqlx::query("UPDATE users SET version = version + 1 WHERE id = ?").bind(user);
        raise.execute(&mut **tx).await?;
        Self::user_in(tx, user).await
    }

    async fn set_blocked(tx: &mut Tx, user: &str, blocked: bool) -> Result<()> {
        sqlx::query("UPDATE users SET blocked = ? WHERE id = ?")
            .bind(blocked)
            .bind(user)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn set_roles(tx: &mut Tx, user: &str, roles: &str) -> Result<()> {
        sqlx::query("UPDATE users SET roles = ? WHERE id = ?")
            .bind(roles)
            .bind(user)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn insert_session(
        tx: &mut Tx,
        id: &str,
        user: &str,
        now: Timestamp,
        ends: Timestamp,
    ) -> Result<()> {
        let old = "DELETE FROM sessions WHERE ends_ms < ? ORDER BY ends_ms LIMIT ?";
        sqlx::query(old).bind(now.as_millisecond()).bind(CLEARED).execute(&mut **tx).await?;
        let insert =
            sqlx::query("INSERT INTO sessions (id, user_id, created_ms, ends_ms) VALUES (?, ?, ?, ?)");
        let insert = insert.bind(id).bind(user).bind(now.as_millisecond()).bind(ends.as_millisecond());
        insert.execute(&mut **tx).await?;
        Ok(())
    }

    async fn session_lives(&self, id: &str, user: &str, now: Timestamp) -> Result<bool> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM sessions WHERE id = ? AND user_id = ? AND ended_ms IS NULL AND ends_ms > ?",
        )
        .bind(id)
        .bind(user)
        .bind(now.as_millisecond())
        .fetch_optional(self.pool())
        .await?;
        Ok(found.is_some())
    }

    async fn prolong(tx: &mut Tx, session: &str, ends: Timestamp) -> Result<()> {
        let update = sqlx::query("UPDATE sessions SET ends_ms = ? WHERE id = ?");
        update.bind(ends.as_millisecond()).bind(session).execute(&mut **tx).await?;
        Ok(())
    }

    async fn end_session(tx: &mut Tx, session: &str, now: Timestamp) -> Result<Option<String>> {
        let of = "SELECT user_id FROM sessions WHERE id = ? AND ended_ms IS NULL";
        let user: Option<String> = sqlx::query_scalar(of).bind(session).fetch_optional(&mut **tx).await?;
        let Some(user) = user else { return Ok(None) };
        Self::user_in(tx, &user).await?;
        let update = sqlx::query("UPDATE sessions SET ended_ms = ? WHERE id = ? AND ended_ms IS NULL");
        let ended = update.bind(now.as_millisecond()).bind(session).execute(&mut **tx).await?;
        Ok((ended.rows_affected() == 1).then_some(user))
    }

    async fn end_sessions(tx: &mut Tx, user: &str, now: Timestamp) -> Result<()> {
        let update = sqlx::query("UPDATE sessions SET ended_ms = ? WHERE user_id = ? AND ended_ms IS NULL");
        update.bind(now.as_millisecond()).bind(user).execute(&mut **tx).await?;
        Ok(())
    }

    async fn insert_refresh(tx: &mut Tx, hash: &[u8], session: &str) -> Result<()> {
        let insert = sqlx::query("INSERT INTO refresh_tokens (hash, session_id) VALUES (?, ?)");
        insert.bind(hash).bind(session).execute(&mut **tx).await?;
        Ok(())
    }

    async fn refresh(tx: &mut Tx, hash: &[u8]) -> Result<Option<Refresh>> {
        let of =
            "SELECT user_id FROM refresh_tokens JOIN sessions ON sessions.id = session_id WHERE hash = ?";
        let user: Option<String> = sqlx::query_scalar(of).bind(hash).fetch_optional(&mut **tx).await?;
        let Some(user) = user else { return Ok(None) };
        Self::user_in(tx, &user).await?;
        let found = sqlx::query_as(
            "SELECT session_id, user_id, used_ms, ends_ms, ended_ms FROM refresh_tokens \
             JOIN sessions ON sessions.id = session_id WHERE hash = ? FOR UPDATE",
        );
        Ok(found.bind(hash).fetch_optional(&mut **tx).await?)
    }

    async fn use_refresh(tx: &mut Tx, hash: &[u8], now: Timestamp) -> Result<()> {
        let update = sqlx::query("UPDATE refresh_tokens SET used_ms = ? WHERE hash = ?");
        update.bind(now.as_millisecond()).bind(hash).execute(&mut **tx).await?;
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<StoredKey>> {
        Ok(sqlx::query_as("SELECT * FROM signing_keys ORDER BY since_ms").fetch_all(self.pool()).await?)
    }

    async fn keys_in(tx: &mut Tx) -> Result<Vec<StoredKey>> {
        Ok(sqlx::query_as("SELECT * FROM signing_keys ORDER BY since_ms FOR UPDATE")
            .fetch_all(&mut **tx)
            .await?)
    }

    async fn insert_key(tx: &mut Tx, key: &StoredKey) -> Result<()> {
        let insert = "INSERT IGNORE INTO signing_keys (kid, algorithm, sealed, state, since_ms) VALUES (?, ?, ?, ?, ?)";
        let insert = sqlx::query(insert).bind(&key.kid).bind(&key.algorithm).bind(&key.sealed);
        insert.bind(&key.state).bind(key.since_ms).execute(&mut **tx).await?;
        Ok(())
    }

    async fn rotate_keys(tx: &mut Tx, now: Timestamp, gone: Timestamp) -> Result<()> {
        let gone = sqlx::query("DELETE FROM signing_keys WHERE state = 'retired' AND since_ms < ?")
            .bind(gone.as_millisecond());
        gone.execute(&mut **tx).await?;
        for (from, to) in [("current", "retired"), ("next", "current")] {
            let moved = sqlx::query("UPDATE signing_keys SET state = ?, since_ms = ? WHERE state = ?");
            moved.bind(to).bind(now.as_millisecond()).bind(from).execute(&mut **tx).await?;
        }
        Ok(())
    }
}
