//! The leases of the port: which replica's worker holds which partitions of a subscription.
//!
//! ```text
//!  8 partitions     a alone       b joins           c joins            a leaves
//!      a            0 … 7         0 2 4 6           0 2 6              –
//!      b                          1 3 5 7           1 3 7              1 3 7 0
//!      c                                            4 5                4 5 2 6
//! ```
//!
//! Whoever wants a subscription is its member for as long as its lease lasts, and every member gets the same number of
//! partitions, or one more. Each gives up by itself what is beyond its share, once its batch has ended, and takes what is free:
//! of m members the nth prefers every mth partition, so that all have some of each generation of a topic that was divided anew.
//!
//! Invariant: leases are for liveness. Each claim raises the partition's lease epoch, and the compare-and-set of the
//! cursor under that epoch is what keeps the promise.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::{Claim, Result};

/// Leases of partitions, by the database's clock.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Makes `holder` a member, and gives it its share of the subscription: first what it holds already, then what nobody
    /// holds, each with a lease epoch one higher than any before. Gives up what it held beyond its share.
    ///
    /// # Errors
    /// `Fenced` while a later life of the same replica is a member.
    async fn claim(
        &self,
        subscription: &str,
        holder: Holder,
        share: Share,
        lease: Duration,
    ) -> Result<Claimed>;

    /// Lengthens all that `holder` has: in how many subscriptions it is still a member, and what it holds of each.
    /// A subscription that is not among them is lost, because its lease ended or a later life of the replica has it.
    async fn renew(&self, holder: Holder, lease: Duration) -> Result<Vec<Standing>>;

    /// Gives up what `holder` has of a subscription, and leaves it. Changes nothing if a later life of the replica has it.
    async fn release(&self, subscription: &str, holder: Holder) -> Result<()>;
}

/// Who holds leases: a replica, in one life of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The replica; the same after a restart if replicas are numbered, so that it takes over at once what it held.
    pub replica: Uuid,
    /// This life of it, a UUIDv7: a later life replaces an earlier one, never the other way round.
    pub life: Uuid,
}

impl Holder {
    /// The present life of a replica.
    #[must_use]
    pub fn new(replica: Uuid) -> Self {
        Self { replica, life: Uuid::now_v7() }
    }
}

/// How the members of a subscription share its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// One member holds all of them, the others none.
    Whole,
    /// Each member holds some of them.
    Split,
}

/// What a claim came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// What is held from now on, by topic and partition.
    pub claims: Vec<Claim>,
    /// How many partitions the subscription has.
    pub partitions: usize,
    /// Whether others may claim now, because something was given up, or should give something up.
    pub concerns_others: bool,
}

/// How a member stands in one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The subscription.
    pub subscription: String,
    /// How many partitions the member holds.
    pub held: usize,
    /// How many it would hold after claiming now.
    pub due: usize,
}

/// What the databases count of a subscription before they decide.
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) partitions: i64,
    /// By this member.
    pub(crate) held: i64,
    /// By members whose leases last.
    pub(crate) held_by_others: i64,
    /// Members, this one included.
    pub(crate) members: i64,
    /// How many of them come before this one.
    pub(crate) rank: i64,
}

#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
impl Counts {
    /// How many partitions the member holds if it claims now.
    pub(crate) fn due(self, share: Share) -> usize {
        let free = self.partitions - self.held - self.held_by_others;
        let due = match share {
            Share::Whole if self.held_by_others > 0 => 0,
            Share::Whole => self.partitions,
            Share::Split => self.fair().min(self.held + free),
        };
        usize::try_from(due).unwrap_or(0)
    }

    /// How many members there are, this one in any case.
    pub(crate) fn members(self) -> i64 {
        self.members.max(1)
    }

    /// The same for all, and one more for the first ones; together all partitions.
    fn fair(self) -> i64 {
        let members = self.members();
        self.partitions / members + i64::from(self.rank < self.partitions % members)
    }
}

/// A later life of the same replica is there.
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
pub(crate) fn outlived(subscription: &str) -> crate::Error {
    crate::Error::new(
        crate::Kind::Fenced,
        format!(
            "another process runs as the same replica, and began later: it holds subscription {subscription:?}, and this one waits; give each replica a number of its own (TOMBOLO_REPLICA)"
        ),
    )
}

#[cfg(all(
    test,
    any(
        feature = "sqlite",
        feature = "postgres",
        feature = "mysql",
        feature = "documents",
        feature = "mongodb"
    )
))]
mod tests {
    use super::*;

    #[test]
    fn shares_differ_by_one_at_most_and_leave_nothing_over() {
        for partitions in 0..40 {
            for members in 1..12 {
                let counts = |rank| Counts { partitions, held: 0, held_by_others: 0, members, rank };
                let shares: Vec<i64> = (0..members).map(|rank| counts(rank).fair()).collect();
                assert_eq!(shares.iter().sum::<i64>(), partitions);
                assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn a_view_waits_until_nobody_else_holds_any_of_it() {
        let counts = Counts { partitions: 8, held: 3, held_by_others: 1, members: 2, rank: 0 };
        assert_eq!(counts.due(Share::Whole), 0);
        assert_eq!(Counts { held_by_others: 0, ..counts }.due(Share::Whole), 8);
    }
}
