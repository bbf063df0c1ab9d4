//! Passwords: Argon2id with the parameters that OWASP advises, made anew at a sign-in once those are raised.
//!
//! Invariant: whether there is an account or not, a sign-in hashes once; and no more hashes run at once than the machine has
//! cores, so that a flood of guesses takes no memory.
//!
//! Source: <https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html>.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tombolo::{Problem, Result};

use crate::sealing::{broken, random};

/// The shortest password, in characters (NIST SP 800-63B).
pub(crate) const CHARS_MIN: usize = 8;
/// The longest, in bytes, so that hashing it costs no more than another.
pub(crate) const BYTES_MAX: usize = 1024;
/// Memory in KiB, passes, lanes.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// How long a request waits for its turn to hash.
const TURN_BOUND: Duration = Duration::from_secs(5);

/// Hashes passwords, a few at a time.
pub(crate) struct Passwords {
    argon2: Argon2<'static>,
    turns: Arc<Semaphore>,
    /// The hash of nobody's password, for accounts that are not there.
    nobody: String,
}

/// What came of comparing a password with a stored hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    Other,
    Same,
    /// The same, and the hash was made with other parameters than today's.
    SameButOld,
}

impl Passwords {
    pub(crate) fn new() -> Result<Self> {
        let (memory, passes, lanes) = COST;
        let params = Params::new(memory, passes, lanes, None).map_err(broken("setting up Argon2"))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let nobody = hash(&argon2, "nobody's password")?;
        let turns = available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self { argon2, turns: Arc::new(Semaphore::new(turns)), nobody })
    }

    /// The hash to store of a password.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Problem> {
        let (argon2, turn) = (self.argon2.clone(), self.turn().await?);
        let hashed = spawn_blocking(move || {
            let _turn = turn;
            hash(&argon2, &password)
        });
        Ok(hashed.await.map_err(broken("hashing"))??)
    }

    /// Whether a password is the one of which `stored` was made; without an account it takes as long and is not.
    pub(crate) async fn compare(
        &self,
        password: String,
        stored: Option<String>,
    ) -> Result<Compared, Problem> {
        let is_somebody = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.nobody.clone());
        let (argon2, turn) = (self.argon2.clone(), self.turn().await?);
        let compared = spawn_blocking(move || {
            let _turn = turn;
            compare(&argon2, &password, &stored)
        });
        let compared = compared.await.map_err(broken("hashing"))?;
        Ok(if is_somebody { compared } else { Compared::Other })
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let turn = timeout(TURN_BOUND, Arc::clone(&self.turns).acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| {
            let detail = "too many passwords are being checked; ask again in a few seconds";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).of_type("urn:tombolo:identity:busy")
        })
    }
}

fn hash(argon2: &Argon2<'static>, password: &str) -> Result<String> {
    let salt = SaltString::encode_b64(&random::<16>()?).map_err(broken("making a salt"))?;
    let hash = argon2.hash_password(password.as_bytes(), &salt).map_err(broken("hashing"))?;
    Ok(hash.to_string())
}

fn compare(argon2: &Argon2<'static>, password: &str, stored: &str) -> Compared {
    let Ok(stored) = PasswordHash::new(stored) else { return Compared::Other };
    if argon2.verify_password(password.as_bytes(), &stored).is_err() {
        return Compared::Other;
    }
    let today =
        Params::try_from(&stored).is_ok_and(|params| params.m_cost() >= COST.0 && params.t_cost() >= COST.1);
    if today && stored.algorithm.as_str() == "argon2id" { Compared::Same } else { Compared::SameButOld }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_the_same_only_as_itself_and_nobodys_is_nobodys() {
        let passwords = Passwords::new().unwrap();
        let stored = passwords.hash("correct horse".into()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        let compare = async |password: &str, stored: Option<&String>| {
            passwords.compare(password.into(), stored.cloned()).await.unwrap()
        };
        assert_eq!(compare("correct horse", Some(&stored)).await, Compared::Same);
        assert_eq!(compare("correct horsf", Some(&stored)).await, Compared::Other);
        assert_eq!(compare("nobody's password", None).await, Compared::Other);
    }

    #[test]
    fn a_hash_with_weaker_parameters_is_found_out() {
        let weak =
            Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8 * 1024, 1, 1, None).unwrap());
        let stored = hash(&weak, "correct horse").unwrap();
        assert_eq!(
            compare(&Passwords::new().unwrap().argon2, "correct horse", &stored),
            Compared::SameButOld
        );
    }
}
