//! What is asked of the database, in the SQL that SQLite, PostgreSQL, MariaDB and MySQL share.
//!
//! Where transactions run beside each other, a statement that waits for a lock sees what was committed until then, and the next one
//! sees everything that was committed until it begins (READ COMMITTED, as Tombolo begins them). So what is locked is locked first, by
//! the row that everybody who changes it locks, and read afterwards: of users the user, of keys all keys that are there.
//!
//! Invariant: whoever changes a user's sessions or tokens holds the user, so that what it has read of them stays so, and two of them
//! never wait for each other; what is cleared away is nobody's who is at work on it.

use jiff::Timestamp;
use tombolo::Result;

use super::sql::{Sql, Statement, all, first};
use super::{Account, Refresh, StoredKey};

/// The most users of one page.
pub(crate) const PAGE_MAX: i64 = 1_000;
/// How many sessions that ended long ago are cleared away at a sign-in.
const CLEARED: i64 = 20;

/// A database that the service can own.
pub trait Store: Sql {
    /// The user, if there is one.
    fn user(&self, id: &str) -> impl Future<Output = Result<Option<Account>>> + Send {
        async move {
            let ask = Statement::new("SELECT * FROM users WHERE id = ?").bind(id);
            first(&self.look(ask).await?)
        }
    }

    /// The users after `after` whose name or address begins with `query`, by id.
    fn users(
        &self,
        query: &str,
        after: &str,
        most: i64,
    ) -> impl Future<Output = Result<Vec<Account>>> + Send {
        async move {
            let (pattern, like) = (like(query), Self::WORDS.like);
            let ask = Statement::new(format!(
                "SELECT * FROM users WHERE id > ? AND (name {like} ? ESCAPE '|' OR email {like} ? ESCAPE '|') ORDER BY id LIMIT ?"
            ));
            all(&self.look(ask.bind(after).bind(&*pattern).bind(&*pattern).bind(most)).await?)
        }
    }

    /// Whose the account is, and the hash of the password.
    fn password(&self, account: &str) -> impl Future<Output = Result<Option<(String, String)>>> + Send {
        async move {
            let ask = Statement::new("SELECT user_id, hash FROM passwords WHERE account = ?").bind(account);
            first(&self.look(ask).await?)
        }
    }

    /// The hash of the user's password.
    fn password_of(&self, user: &str) -> impl Future<Output = Result<Option<String>>> + Send {
        async move {
            let ask = Statement::new("SELECT hash FROM passwords WHERE user_id = ?").bind(user);
            Ok(first(&self.look(ask).await?)?.map(|(hash,)| hash))
        }
    }

    /// Whether the session goes on.
    fn session_lives(
        &self,
        id: &str,
        user: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool>> + Send {
        async move {
            let ask = Statement::new(
                "SELECT id FROM sessions WHERE id = ? AND user_id = ? AND ended_ms IS NULL AND ends_ms > ?",
            );
            let ask = ask.bind(id).bind(user).bind(now.as_millisecond());
            Ok(!self.look(ask).await?.is_empty())
        }
    }

    /// The signing keys, the oldest first.
    fn keys(&self) -> impl Future<Output = Result<Vec<StoredKey>>> + Send {
        async move {
            let ask = Statement::new("SELECT * FROM signing_keys ORDER BY since_ms");
            all(&self.look(ask).await?)
        }
    }

    /// Keeps a new user.
    fn insert_user(tx: &mut Self::Tx, user: &Account) -> impl Future<Output = Result<()>> + Send {
        async move {
            let insert = Statement::new(
                "INSERT INTO users (id, name, email, roles, created_ms) VALUES (?, ?, ?, ?, ?)",
            );
            let insert = insert.bind(&*user.id).bind(&*user.name).bind(&*user.email).bind(&*user.roles);
            Self::run(tx, insert.bind(user.created_ms)).await.map(drop)
        }
    }

    /// Gives the user a password, unless the account is another's; whether it did.
    fn insert_password(
        tx: &mut Self::Tx,
        account: &str,
        user: &str,
        hash: &str,
    ) -> impl Future<Output = Result<bool>> + Send {
        async move {
            let insert = insert_new::<Self>("passwords (account, user_id, hash) VALUES (?, ?, ?)");
            let insert = insert.bind(account).bind(user).bind(hash);
            Ok(Self::run(tx, insert).await? == 1)
        }
    }

    /// The user, who stays so until the transaction ends.
    fn user_in(tx: &mut Self::Tx, id: &str) -> impl Future<Output = Result<Option<Account>>> + Send {
        async move {
            let ask = locked::<Self>("SELECT * FROM users WHERE id = ?").bind(id);
            first(&Self::find(tx, ask).await?)
        }
    }

    /// Replaces the hash, if it is still the one that was compared; whether it was.
    fn replace_password(
        tx: &mut Self::Tx,
        user: &str,
        compared: &str,
        hash: &str,
    ) -> impl Future<Output = Result<bool>> + Send {
        async move {
            let update = Statement::new("UPDATE passwords SET hash = ? WHERE user_id = ? AND hash = ?");
            let update = update.bind(hash).bind(user).bind(compared);
            Ok(Self::run(tx, update).await? == 1)
        }
    }

    /// Gives the user another name.
    fn rename(tx: &mut Self::Tx, user: &str, name: &str) -> impl Future<Output = Result<()>> + Send {
        async move {
            Self::run(tx, Statement::new("UPDATE users SET name = ? WHERE id = ?").bind(name).bind(user))
                .await
                .map(drop)
        }
    }

    /// Raises the user's version, which every event of blocks carries, and returns the user as it is then.
    fn raise(tx: &mut Self::Tx, user: &str) -> impl Future<Output = Result<Option<Account>>> + Send {
        async move {
            let raise = Statement::new("UPDATE users SET version = version + 1 WHERE id = ?").bind(user);
            Self::run(tx, raise).await?;
            Self::user_in(tx, user).await
        }
    }

    /// Blocks or unblocks the user.
    fn set_blocked(tx: &mut Self::Tx, user: &str, blocked: bool) -> impl Future<Output = Result<()>> + Send {
        async move {
            let update = Statement::new("UPDATE users SET blocked = ? WHERE id = ?").bind(blocked).bind(user);
            Self::run(tx, update).await.map(drop)
        }
    }

    /// Gives the user roles, with blanks between.
    fn set_roles(tx: &mut Self::Tx, user: &str, roles: &str) -> impl Future<Output = Result<()>> + Send {
        async move {
            Self::run(tx, Statement::new("UPDATE users SET roles = ? WHERE id = ?").bind(roles).bind(user))
                .await
                .map(drop)
        }
    }

    /// Keeps a new session.
    fn insert_session(
        tx: &mut Self::Tx,
        id: &str,
        user: &str,
        now: Timestamp,
        ends: Timestamp,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            let insert =
                Statement::new("INSERT INTO sessions (id, user_id, created_ms, ends_ms) VALUES (?, ?, ?, ?)");
            let insert = insert.bind(id).bind(user).bind(now.as_millisecond()).bind(ends.as_millisecond());
            Self::run(tx, insert).await.map(drop)
        }
    }

    /// Removes a few sessions whose end has passed, and with them their tokens; but none that somebody is at work on, who may hold
    /// what this transaction would wait for.
    fn clear_sessions(tx: &mut Self::Tx, now: Timestamp) -> impl Future<Output = Result<()>> + Send {
        async move {
            let unlocked = Self::WORDS.unlocked;
            let old = Statement::new(format!(
                "SELECT id FROM sessions WHERE ends_ms < ? ORDER BY ends_ms LIMIT ?{unlocked}"
            ));
            let old = Self::find(tx, old.bind(now.as_millisecond()).bind(CLEARED)).await?;
            for (id,) in all::<(String,), _>(&old)? {
                Self::run(tx, Statement::new("DELETE FROM sessions WHERE id = ?").bind(&*id)).await?;
            }
            Ok(())
        }
    }

    /// Has a session end later.
    fn prolong(tx: &mut Self::Tx, session: &str, ends: Timestamp) -> impl Future<Output = Result<()>> + Send {
        async move {
            let update = Statement::new("UPDATE sessions SET ends_ms = ? WHERE id = ?");
            Self::run(tx, update.bind(ends.as_millisecond()).bind(session)).await.map(drop)
        }
    }

    /// Ends a session; whose it was, if it went on until now.
    fn end_session(
        tx: &mut Self::Tx,
        session: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<String>>> + Send {
        async move {
            let of = Statement::new("SELECT user_id FROM sessions WHERE id = ? AND ended_ms IS NULL");
            let update = Statement::new("UPDATE sessions SET ended_ms = ? WHERE id = ? AND ended_ms IS NULL");
            let (of, update) = (of.bind(session), update.bind(now.as_millisecond()).bind(session));
            let Some((user,)) = first::<(String,), _>(&Self::find(tx, of).await?)? else { return Ok(None) };
            Self::user_in(tx, &user).await?;
            Ok((Self::run(tx, update).await? == 1).then_some(user))
        }
    }

    /// Ends every session of a user whom the transaction holds.
    fn end_sessions(
        tx: &mut Self::Tx,
        user: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            let update =
                Statement::new("UPDATE sessions SET ended_ms = ? WHERE user_id = ? AND ended_ms IS NULL");
            Self::run(tx, update.bind(now.as_millisecond()).bind(user)).await.map(drop)
        }
    }

    /// Keeps the hash of a refresh token.
    fn insert_refresh(
        tx: &mut Self::Tx,
        hash: &[u8],
        session: &str,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            let insert = Statement::new("INSERT INTO refresh_tokens (hash, session_id) VALUES (?, ?)");
            Self::run(tx, insert.bind(hash).bind(session)).await.map(drop)
        }
    }

    /// The refresh token of this hash, which nobody else uses until the transaction ends.
    fn refresh(tx: &mut Self::Tx, hash: &[u8]) -> impl Future<Output = Result<Option<Refresh>>> + Send {
        async move {
            let of = Statement::new(
                "SELECT user_id FROM refresh_tokens JOIN sessions ON sessions.id = session_id WHERE hash = ?",
            );
            let found = Statement::new(
                "SELECT session_id, user_id, used_ms, ends_ms, ended_ms FROM refresh_tokens \
             JOIN sessions ON sessions.id = session_id WHERE hash = ?",
            );
            let (of, found) = (of.bind(hash), found.bind(hash));
            let Some((user,)) = first::<(String,), _>(&Self::find(tx, of).await?)? else { return Ok(None) };
            Self::user_in(tx, &user).await?;
            first(&Self::find(tx, found).await?)
        }
    }

    /// Marks a refresh token as used.
    fn use_refresh(
        tx: &mut Self::Tx,
        hash: &[u8],
        now: Timestamp,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            let update = Statement::new("UPDATE refresh_tokens SET used_ms = ? WHERE hash = ?");
            Self::run(tx, update.bind(now.as_millisecond()).bind(hash)).await.map(drop)
        }
    }

    /// The signing keys, which stay so until the transaction ends: whoever waited for those that were there sees what came of them.
    fn keys_in(tx: &mut Self::Tx) -> impl Future<Output = Result<Vec<StoredKey>>> + Send {
        async move {
            Self::find(tx, locked::<Self>("SELECT kid FROM signing_keys ORDER BY kid")).await?;
            all(&Self::find(tx, locked::<Self>("SELECT * FROM signing_keys ORDER BY since_ms")).await?)
        }
    }

    /// Keeps a signing key, unless there is one of its state already that may be only one.
    fn insert_key(tx: &mut Self::Tx, key: &StoredKey) -> impl Future<Output = Result<()>> + Send {
        async move {
            let insert = insert_new::<Self>(
                "signing_keys (kid, algorithm, sealed, state, since_ms) VALUES (?, ?, ?, ?, ?)",
            );
            let insert = insert.bind(&*key.kid).bind(&*key.algorithm).bind(&*key.sealed);
            Self::run(tx, insert.bind(&*key.state).bind(key.since_ms)).await.map(drop)
        }
    }

    /// Retires the key that signs, has the next one sign, and removes those that retired before `gone`.
    fn rotate_keys(
        tx: &mut Self::Tx,
        now: Timestamp,
        gone: Timestamp,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            let remove = Statement::new("DELETE FROM signing_keys WHERE state = 'retired' AND since_ms < ?")
                .bind(gone.as_millisecond());
            Self::run(tx, remove).await?;
            for (from, to) in [("current", "retired"), ("next", "current")] {
                let moved = Statement::new("UPDATE signing_keys SET state = ?, since_ms = ? WHERE state = ?");
                Self::run(tx, moved.bind(to).bind(now.as_millisecond()).bind(from)).await?;
            }
            Ok(())
        }
    }
}

impl<D: Sql> Store for D {}

/// A question whose answer stays so until the transaction ends.
fn locked<'a, D: Sql>(select: &str) -> Statement<'a> {
    Statement::new(format!("{select}{}", D::WORDS.locked))
}

/// An insert of a row that may be there already, which then stays as it is.
fn insert_new<'a, D: Sql>(row: &str) -> Statement<'a> {
    Statement::new(format!("{} INTO {row}{}", D::WORDS.insert_new, D::WORDS.unless_there))
}

/// Text that `LIKE` takes as it is, with `|` before what it would take otherwise.
fn like(query: &str) -> String {
    format!("{}%", query.replace('|', "||").replace('%', "|%").replace('_', "|_"))
}
