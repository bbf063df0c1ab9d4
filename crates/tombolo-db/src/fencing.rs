//! What a holder is told that was replaced, in the same words by every database.

use tombolo_event::{Cursor, Incarnation};
use uuid::Uuid;

use crate::{Claim, Error, Kind, Mark, Result};

/// Another relay leads, or nobody may: then `found` is 0.
pub(crate) fn replaced(ours: u64, found: u64) -> Error {
    if found == 0 {
        let message = format!(
            "this relay leads with epoch {ours}, but the database was halted meanwhile; see why with `tombolo recover`"
        );
        return Error::new(Kind::Fenced, message);
    }
    Error::new(
        Kind::Fenced,
        format!(
            "this relay leads with epoch {ours}, but the database is at epoch {found}: another one took over; start again from the database"
        ),
    )
}

/// The bus acknowledged numbers that this database never gave.
pub(crate) fn beyond_numbers(marks: &[Mark]) -> Error {
    let marks: Vec<String> =
        marks.iter().map(|mark| format!("{}/{}", mark.partition, mark.sequence)).collect();
    Error::new(
        Kind::Mismatch,
        format!(
            "the bus reports partition/sequence {} as stored, but the database did not give all these numbers; it is a restored or copied one: run `tombolo recover`",
            marks.join(", ")
        ),
    )
}

/// Compares the remembered incarnation with the one that was found.
pub(crate) fn compare_incarnation(service: &str, known: Incarnation, found: Incarnation) -> Result<()> {
    if known == found {
        return Ok(());
    }
    Err(Error::new(
        Kind::Mismatch,
        format!(
            "the topic of service {service:?} has incarnation {found}, but its database published to {known}; the topic was made again, or this is another bus: run `tombolo recover`"
        ),
    ))
}

/// The database is not halted, or for another reason than the one that was decided about.
pub(crate) fn not_halted(decided: Uuid) -> Error {
    Error::new(
        Kind::Mismatch,
        format!(
            "nothing was changed: the database is not halted by {decided} any more; see with `tombolo recover` how it is now"
        ),
    )
}

/// The tables are there, but nobody owns them.
pub(crate) fn nobodys() -> Error {
    Error::new(
        Kind::Schema,
        "the database has Tombolo's tables, but no service owns it; start the service once",
    )
}

/// Another worker holds the partition.
pub(crate) fn lease_lost(claim: &Claim, found: u64) -> Error {
    Error::new(
        Kind::Fenced,
        format!(
            "subscription {:?} at {}/{} was held under lease epoch {}, but the database is at {found}: another worker took over",
            claim.subscription, claim.topic, claim.partition, claim.lease_epoch
        ),
    )
}

/// The cursor is elsewhere.
pub(crate) fn moved(claim: &Claim, found: &Cursor) -> Error {
    Error::new(
        Kind::CursorMoved,
        format!(
            "subscription {:?} at {}/{} was to move from sequence {}, but its cursor is at {}; claim the partition again",
            claim.subscription, claim.topic, claim.partition, claim.cursor.sequence, found.sequence
        ),
    )
}

/// There is no such cursor.
pub(crate) fn no_cursor(claim: &Claim) -> Error {
    Error::new(
        Kind::Fenced,
        format!(
            "subscription {:?} has no cursor for {}/{}; open it first",
            claim.subscription, claim.topic, claim.partition
        ),
    )
}
