//! Whose database it is, checked the same way everywhere.

use crate::{Error, Kind, Owner, Result};

/// Compares what a database remembers with who opens it.
pub(crate) fn check(owner: &Owner, service: &str, partitions: i64) -> Result<()> {
    if service != owner.service.as_str() {
        return Err(Error::new(
            Kind::Mismatch,
            format!(
                "the database belongs to service {service:?}, but {:?} opened it; give each service a database of its own",
                owner.service.as_str()
            ),
        ));
    }
    if partitions != i64::from(owner.partitions) {
        return Err(Error::new(
            Kind::Mismatch,
            format!(
                "the topic of service {service:?} has {partitions} partitions in its database, but the service says {}; set it to {partitions}",
                owner.partitions
            ),
        ));
    }
    Ok(())
}
