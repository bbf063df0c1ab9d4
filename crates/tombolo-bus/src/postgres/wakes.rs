//! The notices by which other processes learn that partitions moved; a topic goes by its number.
//!
//! A notice is sent after the append, outside of its transaction: a transaction that notifies holds a lock of the whole server
//! until it is on disk, so appends would be synced one after the other.
//!
//! Invariant: a notice is a hint. Whoever waits looks for itself, and is woken by the slow poll when a notice was lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::postgres::PgConnection;
use tokio::sync::Notify;

use super::link::Link;
use crate::Result;
use crate::adapter::following::Following;

/// The most partitions of one notice, which must stay below 8,000 bytes.
const NOTICE_PARTITIONS_MAX: usize = 200;

/// Who follows here, and what others have to be told.
#[derive(Default)]
pub(super) struct Wakes {
    pub(super) following: Following<i32>,
    untold: Mutex<BTreeMap<i32, BTreeMap<u32, u64>>>,
    more: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wakes {
    /// Wakes those who follow here, and has the others told.
    pub(super) fn appended(&self, ends: &[(u32, u64)], topic: i32) {
        if ends.is_empty() {
            return;
        }
        for (partition, end) in ends {
            self.following.moved(topic, *partition, *end);
        }
        lock(&self.untold).entry(topic).or_default().extend(ends.iter().copied());
        self.more.notify_one();
    }

    /// Takes a notice of another process.
    pub(super) fn notice(&self, text: &str) {
        let mut words = text.split(' ');
        let Some(topic) = words.next().and_then(|word| word.parse().ok()) else { return };
        for (partition, end) in words.filter_map(|word| word.split_once(':')) {
            if let (Ok(partition), Ok(end)) = (partition.parse(), end.parse()) {
                self.following.moved(topic, partition, end);
            }
        }
    }

    fn take_notices(&self, link: &Link) -> (Vec<String>, Vec<String>) {
        let untold = std::mem::take(&mut *lock(&self.untold));
        let mut notices = (Vec::new(), Vec::new());
        for (topic, ends) in untold {
            let ends: Vec<String> =
                ends.iter().map(|(partition, end)| format!(" {partition}:{end}")).collect();
            for some in ends.chunks(NOTICE_PARTITIONS_MAX) {
                notices.0.push(link.address.topic_channel(topic));
                notices.1.push(format!("{topic}{}", some.concat()));
            }
        }
        notices
    }
}

/// Tells other processes what was appended, until the link is closed.
pub(super) async fn announce(link: Arc<Link>, wakes: Arc<Wakes>) {
    loop {
        tokio::select! {
            () = wakes.more.notified() => {}
            () = link.closed.cancelled() => return,
        }
        let (channels, notices) = wakes.take_notices(&link);
        if let Err(error) = send(&link, channels, notices).await {
            tracing::debug!(%error, "other processes were not told of an append; they find it when they poll");
        }
    }
}

async fn send(link: &Link, channels: Vec<String>, notices: Vec<String>) -> Result<()> {
    let mut lease = link.lease().await?;
    let told = sqlx::query(
        "SELECT set_config('synchronous_commit', 'off', true), pg_notify(channel, notice)
         FROM unnest($1::text[], $2::text[]) AS n (channel, notice)",
    );
    let connection: &mut PgConnection = &mut lease;
    link.answer(told.bind(channels).bind(notices).execute(connection)).await?;
    lease.keep();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_of_another_process_and_an_append_of_this_one_wake_who_follows() {
        let wakes = Wakes::default();
        let mut end = wakes.following.follow(7, 3, 5);
        wakes.notice("7 0:9 3:6 x 4:");
        assert!(end.has_changed().unwrap() && *end.borrow_and_update() == 6);
        wakes.notice("8 3:9");
        wakes.notice("");
        assert!(!end.has_changed().unwrap());
        wakes.appended(&[(3, 8)], 7);
        assert_eq!(*end.borrow_and_update(), 8);
    }
}
