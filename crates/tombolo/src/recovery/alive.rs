//! Asking whether a relay of another database leads the topic right now: a copy that was made while nothing happened
//! differs from its original in nothing else.
//!
//! ```text
//!  candidate  reads its lease ── asks ─────────────────────────── reads its lease again: unchanged, and another one
//!  leader                              renews its lease ── answers with it
//! ```
//!
//! Invariant: an answer proves two databases only if the renewal that it follows cannot be seen in our own. A relay of our
//! own that was only slow is never taken for another database's.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::timeout;
use tombolo_bus::{Reach, Signal, SignalStream};
use tombolo_db::Leader;
use tombolo_db::port::recovery::Standing;
use uuid::Uuid;

use super::Recovery;
use crate::Result;

/// How long a leader that listens has for its answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(1);

/// What a leader is asked.
pub(crate) type Questions = SignalStream;

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leads {
    Nobody,
    /// A relay of our own database: another replica, or an older self of this one.
    Here,
    /// A relay of another database.
    Elsewhere,
}

impl Recovery {
    fn subject(&self) -> String {
        format!("leads.{}", self.publisher.service)
    }

    /// Who leads the topic right now. `before` is our own database as it was before anybody is asked.
    pub(super) async fn who_leads(&self, before: &Standing) -> Result<Leads> {
        let inbox = format!("leader.{}", Uuid::new_v4().simple());
        let mut answers = self.bus.listen(&inbox, None).await?;
        let question = Signal { reply_to: Some(inbox), payload: Bytes::new() };
        if self.bus.signal(&self.subject(), question).await? == Reach::Nobody {
            return Ok(Leads::Nobody);
        }
        let Ok(Some(answer)) = timeout(ANSWER_WAIT_MAX, answers.next()).await else {
            return Ok(Leads::Nobody);
        };
        let after = self.outbox.standing(self.holder).await?;
        let is_elsewhere = after.lease == before.lease && after.lease.as_bytes() != &answer.payload[..];
        Ok(if is_elsewhere { Leads::Elsewhere } else { Leads::Here })
    }

    /// Where a leader hears the question.
    pub(crate) async fn questions(&self) -> Result<Questions> {
        Ok(self.bus.listen(&self.subject(), None).await?)
    }

    /// Answers, once the lease is renewed: a leader that was replaced has no answer.
    pub(crate) async fn answer(&self, leader: &mut dyn Leader, question: Signal) -> Result<()> {
        let Some(inbox) = question.reply_to else { return Ok(()) };
        leader.renew().await?;
        let lease = self.outbox.standing(self.holder).await?.lease;
        self.bus.signal(&inbox, Signal { reply_to: None, payload: Bytes::from(lease) }).await?;
        Ok(())
    }
}
