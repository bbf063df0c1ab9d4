//! Registrations: a hash with a field for each replica, replaced by what it says next.
//!
//! Invariant: nothing is listed that its replica did not say last.

use std::sync::Arc;

use redis::cmd;

use super::link::Link;
use super::values::{list, odd, text};
use crate::port::DESCRIPTOR_BYTES_MAX;
use crate::{Error, Kind, Registration, Result};

pub(super) async fn register(link: &Arc<Link>, registration: &Registration) -> Result<()> {
    let found = registration.descriptor.len();
    if found > DESCRIPTOR_BYTES_MAX {
        let message = format!(
            "descriptor of {} is {found} bytes; expected at most {DESCRIPTOR_BYTES_MAX}",
            registration.service
        );
        return Err(Error::new(Kind::TooLarge, message));
    }
    let field = format!("{}/{}", registration.service, registration.replica);
    let value = serde_json::to_string(registration)
        .map_err(|error| Error::new(Kind::Corrupt, "a registration cannot be written").because(error))?;
    let mut line = link.line().await?;
    line.ask(cmd("HSET").arg(link.keys.registrations()).arg(field).arg(value)).await.map(drop)
}

pub(super) async fn all(link: &Arc<Link>) -> Result<Vec<Registration>> {
    let mut line = link.line().await?;
    let said = line.ask(cmd("HVALS").arg(link.keys.registrations())).await?;
    let read = |value| {
        let said = text(value).and_then(|said| serde_json::from_str(&said).ok());
        said.ok_or_else(|| odd("a registration"))
    };
    list(said).iter().map(read).collect()
}
