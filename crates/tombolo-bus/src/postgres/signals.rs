//! Signals as notices to listening connections.
//!
//! One statement finds who hears a subject, picks one connection for each group, and notifies each that was picked. What is
//! longer than a notice may be goes in parts of one transaction, which arrive together or not at all.
//!
//! Invariant: a reach counts connections that the server itself holds open, not rows that somebody left behind.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sqlx::Row;
use uuid::Uuid;

use super::failure::failed;
use super::link::Link;
use crate::adapter::hearing;
use crate::signal::{SIGNAL_BYTES_MAX, check_size, check_subject};
use crate::{Reach, Result, Signal};

/// The longest part of a signal in one notice, in bytes before base64: a notice holds less than 8,000, of which the rest is for
/// the numbers of places.
const PART_BYTES_MAX: usize = 4_500;

const SEND: &str = "
WITH heard AS MATERIALIZED (
    SELECT handle, number, member_of FROM listener
    WHERE subject = $1 AND NOT pg_try_advisory_xact_lock_shared(handle)
), picked AS (
    SELECT handle, number FROM heard WHERE member_of IS NULL
    UNION ALL
    SELECT handle, number FROM (
        SELECT DISTINCT ON (member_of) handle, number FROM heard
        WHERE member_of IS NOT NULL ORDER BY member_of, random()
    ) AS one
), told AS (
    SELECT handle, string_agg(number::text, ',') AS numbers FROM picked GROUP BY handle
)
SELECT count(set_config('synchronous_commit', 'off', true)) + count(pg_notify('tombolo_handle_' || handle, numbers || ' ' || part))
FROM told, unnest($2::text[]) AS part";

pub(super) async fn send(link: &Arc<Link>, subject: &str, signal: &Signal) -> Result<Reach> {
    check_subject(subject)?;
    signal.reply_to.as_deref().map_or(Ok(()), check_subject)?;
    check_size(subject, signal)?;
    if !link.has_tables().await? {
        return Ok(Reach::Nobody);
    }
    let parts = split(&hearing::encode(signal));
    let mut lease = link.lease().await?;
    let row =
        link.answer(sqlx::query(statement(link)).bind(subject).bind(parts).fetch_one(&mut *lease)).await?;
    lease.keep();
    let told: i64 = row.try_get(0).map_err(failed)?;
    Ok(if told == 0 { Reach::Nobody } else { Reach::Somebody })
}

#[cfg(feature = "mutants")]
fn statement(link: &Link) -> sqlx::SqlStr {
    use sqlx::SqlSafeStr;
    match link.mutant {
        Some(super::Mutant::TellAllOfAGroup) => {
            sqlx::AssertSqlSafe(SEND.replace("DISTINCT ON (member_of)", "")).into_sql_str()
        }
        _ => SEND.into_sql_str(),
    }
}

#[cfg(not(feature = "mutants"))]
fn statement(_link: &Link) -> &'static str {
    SEND
}

/// The parts of a signal, each with a name that all share, its place and their number.
fn split(bytes: &Bytes) -> Vec<String> {
    let name = Uuid::new_v4().simple().to_string();
    let parts = bytes.chunks(PART_BYTES_MAX);
    let count = parts.len();
    parts.enumerate().map(|(at, part)| format!("{name} {at} {count} {}", STANDARD.encode(part))).collect()
}

/// A signal of which parts are still to come.
#[derive(Default)]
pub(super) struct Parts {
    name: String,
    parts: Vec<Option<Vec<u8>>>,
}

impl Parts {
    /// Takes a notice; gives the places and the signal once it is whole.
    pub(super) fn take(&mut self, notice: &str) -> Option<(Vec<u32>, Signal)> {
        let mut words = notice.splitn(5, ' ');
        let numbers = words.next()?.split(',').filter_map(|number| number.parse().ok()).collect();
        let name = words.next()?;
        let at: usize = words.next()?.parse().ok()?;
        let count: usize = words.next()?.parse().ok()?;
        let part = STANDARD.decode(words.next()?).ok()?;
        if self.name != name {
            // Parts of one signal arrive together, so what is not whole by now never will be.
            *self = Self { name: name.to_owned(), parts: vec![None; count.min(SIGNAL_BYTES_MAX)] };
        }
        *self.parts.get_mut(at)? = Some(part);
        if self.parts.iter().any(Option::is_none) {
            return None;
        }
        let whole: Vec<u8> = std::mem::take(self).parts.into_iter().flatten().flatten().collect();
        Some((numbers, hearing::decode(&Bytes::from(whole))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_signal_is_whole_again_however_its_parts_come() {
        let payload: Bytes = (0..20_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into();
        let sent = Signal { reply_to: Some("a.b".into()), payload };
        let mut notices: Vec<String> =
            split(&hearing::encode(&sent)).into_iter().map(|part| format!("3,9 {part}")).collect();
        assert!(notices.len() > 10 && notices.iter().all(|notice| notice.len() < 7_000));
        let mut parts = Parts::default();
        assert!(parts.take(&notices[0]).is_none());
        let small = Signal { reply_to: None, payload: Bytes::new() };
        let other = format!("1 {}", split(&hearing::encode(&small))[0]);
        assert_eq!(parts.take(&other), Some((vec![1], small)));
        notices.reverse();
        let last = notices.pop().unwrap();
        assert!(notices.iter().all(|notice| parts.take(notice).is_none()));
        assert_eq!(parts.take(&last), Some((vec![3, 9], sent)));
        assert_eq!(parts.take("nonsense"), None);
    }
}
