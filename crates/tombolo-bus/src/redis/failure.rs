//! What an answer of the server, or the lack of one, means for a caller.
//!
//! Invariant: `Unavailable` is said only of what may pass by itself; no message holds what the address keeps secret.

use redis::{ErrorKind, RedisError};

use crate::{Error, Kind};

/// The first words of answers.
const MEANINGS: &[(&str, Kind, &str)] = &[
    ("NOAUTH", Kind::Configuration, "the Redis server asks for a password: put it into the address"),
    ("WRONGPASS", Kind::Configuration, "the Redis server does not let us in: check user and password"),
    (
        "NOPERM",
        Kind::NotOwner,
        "the Redis user has no right to do this: grant it, or use the owner's account",
    ),
    ("OOM", Kind::ReadOnly, "the Redis server has no memory left: raise `maxmemory`, or make room"),
    ("MISCONF", Kind::ReadOnly, "the Redis server cannot write to its disk: make room, or repair it"),
    ("WRONGTYPE", Kind::TopicDiffers, "a key of this name is not Tombolo's: choose another namespace"),
    ("MOVED", Kind::Configuration, "the Redis server is part of a cluster: use one that stands alone"),
    ("CROSSSLOT", Kind::Configuration, "the Redis server is part of a cluster: use one that stands alone"),
    ("READONLY", Kind::Unavailable, "the Redis server is a replica, and takes no writes"),
];
/// What passes by itself.
const PASSING: &[&str] = &[
    "LOADING",
    "BUSY",
    "TRYAGAIN",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "NOSCRIPT",
    "NOREPLICAS",
    "UNBLOCKED",
    "EXECABORT",
];

/// The error of a command.
pub(super) fn failed(error: &RedisError) -> Error {
    let code = code(error);
    let code = code.as_str();
    if let Some((_, kind, meaning)) = MEANINGS.iter().find(|(word, _, _)| *word == code) {
        return Error::new(*kind, format!("{meaning} ({error})"));
    }
    if is_lost(error) {
        return Error::new(
            Kind::Unavailable,
            format!("the connection to the Redis server was lost: {error}"),
        );
    }
    if PASSING.contains(&code) {
        return Error::new(Kind::Unavailable, format!("the Redis server cannot do this now: {error}"));
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            let message = "the Redis server does not let us in: check user and password";
            Error::new(Kind::Configuration, format!("{message} ({error})"))
        }
        _ => Error::new(Kind::Configuration, format!("the Redis server refused a command: {error}")),
    }
}

/// The first word of the server's answer, of the first that was refused if several were asked.
fn code(error: &RedisError) -> String {
    let one = error.code().map(str::to_owned);
    let first = || Some(error.clone().into_server_errors()?.first()?.1.code().to_owned());
    one.or_else(first).unwrap_or_default()
}

/// Whether nothing more can be said on the connection.
pub(super) fn is_lost(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || code(error) == "NOSCRIPT"
        || matches!(error.kind(), ErrorKind::Parse | ErrorKind::Io)
}
