//! What the driver's errors mean to us.
//!
//! Invariant: what may pass by itself is `Unavailable`, and never counts as an attempt; so is every refusal of a transaction
//! that met another one.

use ::mongodb::error::{
    Error as Found, ErrorKind, RETRYABLE_WRITE_ERROR, TRANSIENT_TRANSACTION_ERROR,
    UNKNOWN_TRANSACTION_COMMIT_RESULT, WriteFailure,
};

use crate::{Error, Kind};

/// The server's numbers of conditions that pass: no primary, shutting down, stepping down, time limits, connections that broke,
/// a lock or a document that another transaction has, a read point that is gone.
const PASSING: &[i32] = &[
    6, 7, 24, 46, 50, 64, 89, 91, 112, 134, 189, 202, 246, 262, 317, 9001, 10058, 10107, 11600, 11602, 13435,
    13436,
];
/// There is no such transaction, any more or at all.
const NO_SUCH_TRANSACTION: i32 = 251;
/// A document with this identity is there already.
const DUPLICATE_KEY: i32 = 11000;
/// Not allowed to; wrong name or password.
const NOT_ALLOWED: &[i32] = &[13, 18];

impl From<Found> for Error {
    fn from(error: Found) -> Self {
        let kind = match &*error.kind {
            _ if number(&error) == Some(NO_SUCH_TRANSACTION) => return gone(error),
            _ if is_transient(&error) => Kind::Unavailable,
            _ => Kind::Database,
        };
        let remedy = match &*error.kind {
            ErrorKind::ServerSelection { .. } => "; check that it runs, and that the address names it",
            ErrorKind::Authentication { .. } => {
                "; check the user and the password in the address, and its authSource"
            }
            _ if number(&error).is_some_and(|number| NOT_ALLOWED.contains(&number)) => {
                "; give the user the role readWrite on this database"
            }
            _ => "",
        };
        Self::new(kind, format!("the service's database answered: {}{remedy}", error.kind)).because(error)
    }
}

/// Whether an error of the driver passes by itself.
#[must_use]
pub fn is_transient(error: &Found) -> bool {
    let labels = [TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT, RETRYABLE_WRITE_ERROR];
    labels.iter().any(|label| error.contains_label(label))
        || number(error).is_some_and(|number| PASSING.contains(&number))
        || matches!(
            *error.kind,
            ErrorKind::Io(_)
                | ErrorKind::ConnectionPoolCleared { .. }
                | ErrorKind::ServerSelection { .. }
                | ErrorKind::DnsResolve { .. }
                | ErrorKind::Shutdown
        )
}

/// Whether a transaction kept nothing because it met another one, so that it may be begun again at once.
pub(super) fn is_conflict(error: &Error) -> bool {
    let found = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Found>());
    found.is_some_and(|found| {
        let met =
            found.contains_label(TRANSIENT_TRANSACTION_ERROR) && number(found) != Some(NO_SUCH_TRANSACTION);
        met || (error.is_transient() && is_duplicate(found))
    })
}

/// A document of ours that somebody else has just made is one that another transaction wrote.
pub(super) fn conflicting(error: Found) -> Error {
    if !is_duplicate(&error) {
        return error.into();
    }
    let message = "another transaction has just made the same document of Tombolo's; try again";
    Error::new(Kind::Unavailable, message).because(error)
}

/// Whether it is not known what became of a commit.
pub(super) fn is_unknown(error: &Found) -> bool {
    error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT)
}

/// Whether a document could not be inserted because one with its identity is there.
pub(super) fn is_duplicate(error: &Found) -> bool {
    number(error) == Some(DUPLICATE_KEY)
}

/// The server's number of an error.
pub(super) fn number(error: &Found) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(answer) => Some(answer.code),
        ErrorKind::Write(WriteFailure::WriteError(answer)) => Some(answer.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(answer)) => Some(answer.code),
        ErrorKind::InsertMany(answer) => {
            answer.write_errors.as_ref().and_then(|errors| errors.first()).map(|error| error.code)
        }
        _ => None,
    }
}

/// A statement of a command that has several was refused, which the command's answer tells as if it were none of its own.
pub(super) fn refused(code: i32, message: &str) -> Error {
    let kind =
        if code == DUPLICATE_KEY || PASSING.contains(&code) { Kind::Unavailable } else { Kind::Database };
    Error::new(kind, format!("the service's database answered: error code {code}: {message}"))
}

/// The server has ended the transaction. It does so after every statement that fails in one.
fn gone(error: Found) -> Error {
    Error::new(
        Kind::Poisoned,
        "the transaction had ended before its commit: the server ends it after a statement that fails (a key that is taken, a document that another transaction writes), after its time limit, and when the primary changes; nothing was kept: pass such an error on",
    )
    .because(error)
}

/// The collections are not there, or older than this program's.
pub(super) fn missing(found: i64) -> Error {
    let what = match found {
        0 => "the database has no collections of Tombolo".to_owned(),
        older => format!("the database has version {older} of Tombolo's collections"),
    };
    Error::new(
        Kind::Schema,
        format!(
            "{what}; expected version {}: run `tombolo schema apply`, or start the service with TOMBOLO_SCHEMA=apply",
            super::schema::VERSION
        ),
    )
}

/// When it is not known what became of a commit.
pub(super) fn unknown(error: Found) -> Error {
    Error::new(
        Kind::Unavailable,
        format!(
            "the commit was not answered ({}), and neither were its repeats; whether state and events were kept, both or neither, is only known by looking",
            error.kind
        ),
    )
    .because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_or_the_network_did_passes_and_a_wrong_argument_does_not() {
        let broken: Found = std::io::Error::from(std::io::ErrorKind::ConnectionReset).into();
        assert!(is_transient(&broken));
        assert_eq!(Error::from(broken).kind(), Kind::Unavailable);
        let wrong = Found::custom("a wrong argument");
        assert!(!is_transient(&wrong));
        assert_eq!(Error::from(wrong).kind(), Kind::Database);
    }

    #[test]
    fn a_statement_among_others_that_met_another_transaction_passes() {
        assert_eq!(refused(112, "WriteConflict").kind(), Kind::Unavailable);
        assert_eq!(refused(2, "BadValue").kind(), Kind::Database);
    }
}
