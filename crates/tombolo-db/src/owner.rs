//! Whose database it is, and how its topic is divided, checked the same way everywhere.
//!
//! Invariant: the number of partitions that counts is the database's. A service that says another one is refused, unless
//! it is one that the topic had before: then it is an older program beside a newer one.

use tombolo_event::{Generations, ServiceName};

use crate::{Error, Kind, Owner, Result};

/// What stands in the database in the place of the number of partitions once there are several generations: programs that
/// know of one only refuse it.
#[cfg_attr(
    not(any(feature = "sqlite", feature = "postgres", feature = "mysql")),
    expect(dead_code, reason = "only SQL keeps them as text")
)]
pub(crate) const SEVERAL: u32 = 0;

/// The generations as a database keeps them: as JSON, or as one number in databases of before.
#[cfg_attr(
    not(any(feature = "sqlite", feature = "postgres", feature = "mysql")),
    expect(dead_code, reason = "only SQL keeps them as text")
)]
pub(crate) fn generations(kept: Option<&str>, partitions: i64) -> Result<Generations> {
    let wrong = |found: &dyn std::fmt::Display| {
        let message = format!(
            "the partitions of the topic cannot be read from the database ({found}); its table of the service was changed by hand: set it back"
        );
        Error::new(Kind::Database, message)
    };
    match kept {
        Some(kept) => serde_json::from_str(kept).map_err(|error| wrong(&error).because(error)),
        None => {
            let partitions = u32::try_from(partitions).map_err(|error| wrong(&error).because(error))?;
            Ok(Generations::first(partitions)?)
        }
    }
}

/// The generations as a database keeps them.
#[cfg_attr(
    not(any(feature = "sqlite", feature = "postgres", feature = "mysql")),
    expect(dead_code, reason = "only SQL keeps them as text")
)]
pub(crate) fn kept(generations: &Generations) -> Result<String> {
    serde_json::to_string(generations).map_err(|error| {
        Error::new(Kind::Database, "the partitions of the topic could not be written").because(error)
    })
}

/// Compares what a database remembers with who opens it.
pub(crate) fn check(owner: &Owner, service: &str, generations: &Generations) -> Result<()> {
    check_service(&owner.service, service)?;
    if generations.each().contains(&owner.partitions) {
        return Ok(());
    }
    let (says, present) = (owner.partitions, generations.present());
    Err(Error::new(
        Kind::Mismatch,
        format!(
            "the topic of service {service:?} has {generations} partitions in its database, but the service says {says}; set it to {present}, or have the running service divide its topic anew (`tombolo topics divide {service} --partitions {says}`) and start this one then"
        ),
    ))
}

fn check_service(owner: &ServiceName, service: &str) -> Result<()> {
    if service == owner.as_str() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Mismatch,
        format!(
            "the database belongs to service {service:?}, but {:?} opened it; give each service a database of its own",
            owner.as_str()
        ),
    ))
}

/// Refuses to divide a topic unless `next` is what is there and one generation more.
pub(crate) fn check_next(present: &Generations, next: &Generations) -> Result<()> {
    if next.continue_from(present) && next.each().len() == present.each().len() + 1 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!(
            "the topic has {present} partitions, so {next} is not its next division; nothing was changed: ask again"
        ),
    ))
}

/// Whose word about the partitions counts after the bus's was taken: the bus's, unless the database only goes on from it.
pub(crate) fn adopted(database: &Generations, bus: &Generations) -> Generations {
    if database.continue_from(bus) { database.clone() } else { bus.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(each: &[u32]) -> Generations {
        Generations::try_from(each.to_vec()).unwrap()
    }

    #[test]
    fn any_number_that_the_topic_had_is_accepted_and_no_other() {
        let owner = |partitions| Owner { service: ServiceName::new("orders").unwrap(), partitions };
        for known in [8, 16] {
            check(&owner(known), "orders", &these(&[8, 16])).unwrap();
        }
        let error = check(&owner(32), "orders", &these(&[8, 16])).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch);
        for expected in ["has 8 → 16 partitions", "set it to 16", "topics divide orders --partitions 32"] {
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_number_of_before_is_the_first_generation() {
        assert_eq!(generations(None, 8).unwrap(), these(&[8]));
        assert_eq!(generations(Some("[8,16]"), i64::from(SEVERAL)).unwrap(), these(&[8, 16]));
        assert!(generations(None, i64::from(SEVERAL)).is_err() && generations(Some("8"), 8).is_err());
    }

    #[test]
    fn only_one_generation_more_is_the_next() {
        let is_next = |next: &[u32]| check_next(&these(&[8]), &these(next)).is_ok();
        assert!(is_next(&[8, 16]) && is_next(&[8, 8]));
        assert!(!is_next(&[8]) && !is_next(&[16]) && !is_next(&[8, 16, 4]) && !is_next(&[4, 16]));
    }

    #[test]
    fn the_bus_counts_unless_the_database_goes_on_from_it() {
        let adopted = |database: &[u32], bus: &[u32]| adopted(&these(database), &these(bus)).each().to_vec();
        assert_eq!(adopted(&[8], &[8, 16]), [8, 16]);
        assert_eq!(adopted(&[8, 16], &[8]), [8, 16]);
        assert_eq!(adopted(&[8, 16], &[8, 4]), [8, 4]);
    }
}
