//! Registrations: a row for each replica, replaced by what it says next.
//!
//! Invariant: nothing is listed that its replica did not say last.

use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::PgRow;
use tombolo_event::ServiceName;

use super::failure::failed;
use super::link::Link;
use crate::port::DESCRIPTOR_BYTES_MAX;
use crate::{Error, Kind, Registration, Result};

pub(super) async fn register(link: &Arc<Link>, registration: &Registration) -> Result<()> {
    check(registration)?;
    link.make_tables().await?;
    let mut lease = link.lease().await?;
    lease.begin(link).await?;
    let said = sqlx::query(
        "INSERT INTO registration (service, replica, url, descriptor) VALUES ($1, $2, $3, $4)
         ON CONFLICT (service, replica) DO UPDATE SET url = excluded.url, descriptor = excluded.descriptor",
    );
    let said = said.bind(registration.service.as_str()).bind(i64::from(registration.replica));
    let said = said.bind(&registration.url).bind(&registration.descriptor);
    link.answer(said.execute(&mut *lease)).await?;
    lease.commit(link).await
}

/// Refuses what is too large or no table can hold.
fn check(registration: &Registration) -> Result<()> {
    let found = registration.descriptor.len();
    if found > DESCRIPTOR_BYTES_MAX {
        let message = format!(
            "descriptor of {} is {found} bytes; expected at most {DESCRIPTOR_BYTES_MAX}",
            registration.service
        );
        return Err(Error::new(Kind::TooLarge, message));
    }
    if registration.url.chars().any(char::is_control) || registration.descriptor.contains('\0') {
        let message = format!(
            "registration of {} holds a control character in its url {:?} or a zero byte in its descriptor",
            registration.service, registration.url
        );
        return Err(Error::new(Kind::InvalidName, message));
    }
    Ok(())
}

pub(super) async fn all(link: &Arc<Link>) -> Result<Vec<Registration>> {
    if !link.has_tables().await? {
        return Ok(Vec::new());
    }
    let mut lease = link.lease().await?;
    let asked = "SELECT service, replica, url, descriptor FROM registration ORDER BY service, replica";
    let rows = link.answer(sqlx::query(asked).fetch_all(&mut *lease)).await?;
    lease.keep();
    rows.iter().map(read).collect()
}

fn read(row: &PgRow) -> Result<Registration> {
    let service: String = row.try_get(0).map_err(failed)?;
    let replica: i64 = row.try_get(1).map_err(failed)?;
    let wrong =
        || Error::new(Kind::Corrupt, format!("the registration of {service:?} {replica} cannot be read"));
    Ok(Registration {
        service: ServiceName::new(service.as_str()).map_err(|error| wrong().because(error))?,
        replica: u32::try_from(replica).map_err(|error| wrong().because(error))?,
        url: row.try_get(2).map_err(failed)?,
        descriptor: row.try_get(3).map_err(failed)?,
    })
}
