//! Who was blocked, signed out or given other roles since the oldest token that may still be shown was issued.
//!
//! Pure. Each user has a version, which identity raises with each of these; a token carries the one at which it was issued.
//!
//! ```text
//!  version    4 ── 5 blocked ── 6 unblocked ── 7 roles
//!  a token of 4: ended by 5, for good         a token of 6: goes on, with the roles of 7
//! ```
//!
//! Invariant: what is heard is joined, not replaced: the highest version decides each part, so events may come in any order, twice
//! or late, and an old unblock never wins.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tombolo_event::Envelope;
use tombolo_event::propagation::Known;

use super::User;
use super::mutant::{Mutant, Mutation};

/// What identity said of a user or a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The user.
    pub user: String,
    /// The user's version from then on.
    pub version: u64,
    /// What happened.
    pub what: What,
    /// When it happened, by identity's clock.
    pub at: Timestamp,
}

/// What happened to a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Blocked: every token of an earlier version has ended.
    Blocked,
    /// Unblocked; tokens of before the block stay ended.
    Unblocked,
    /// Signed out everywhere.
    SignedOut,
    /// Signed out of one session.
    SessionEnded(String),
    /// Given these roles.
    Roles(Vec<String>),
}

#[derive(Deserialize)]
struct Body {
    user_id: String,
    version: u64,
    session_id: Option<String>,
    /// By the clock that tokens are issued by, which a test may have moved.
    at_ms: Option<i64>,
    #[serde(default)]
    roles: Vec<String>,
}

impl Said {
    /// What an event of identity's topic says, if it is about this; `prefix` is what its types begin with.
    ///
    /// # Errors
    /// What is wrong with an event that should say something: it must not be passed over in silence.
    pub fn read(prefix: &str, envelope: &Envelope) -> Result<Option<Self>, String> {
        let word = envelope.event_type.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
        let Some((word, _version)) = word.and_then(|rest| rest.split_once('.')) else { return Ok(None) };
        if !["blocked", "unblocked", "signed_out", "roles_changed"].contains(&word) {
            return Ok(None);
        }
        let body: Body = serde_json::from_slice(&envelope.data).map_err(|error| error.to_string())?;
        let what = match (word, body.session_id) {
            ("blocked", _) => What::Blocked,
            ("unblocked", _) => What::Unblocked,
            ("signed_out", Some(session)) => What::SessionEnded(session),
            ("signed_out", None) => What::SignedOut,
            _ => What::Roles(body.roles),
        };
        let at = body.at_ms.and_then(|at_ms| Timestamp::from_millisecond(at_ms).ok());
        Ok(Some(Self { user: body.user_id, version: body.version, what, at: at.unwrap_or(envelope.time) }))
    }
}

/// What is known of one user.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Standing {
    /// The version of the last word on it, and whether that was a block.
    block: (u64, bool),
    /// Tokens of versions below have ended.
    from: u64,
    /// The version of the last roles, and these.
    roles: (u64, Vec<String>),
    /// When the last of this was said.
    at: Timestamp,
    /// The highest version that was heard, and when.
    heard: Option<(u64, Timestamp)>,
}

/// What was heard within the last token's life.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Blocks {
    users: HashMap<String, Standing>,
    sessions: HashMap<String, Timestamp>,
    mutation: Mutation,
}

/// What becomes of a token that is right by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, with these roles if they were changed since.
    Goes(Option<Vec<String>>),
    /// It has ended.
    Ended,
}

impl Blocks {
    pub(crate) fn new(mutation: Mutation) -> Self {
        Self { mutation, ..Self::default() }
    }

    /// Takes in what was said.
    pub fn hear(&mut self, said: Said) {
        if let What::SessionEnded(session) = said.what {
            self.sessions.entry(session).and_modify(|at| *at = (*at).max(said.at)).or_insert(said.at);
            return;
        }
        let last_wins = self.mutation.is(Mutant::LastWins);
        let standing = self.users.entry(said.user).or_default();
        standing.at = standing.at.max(said.at);
        let is_newer = |known: u64| last_wins || said.version >= known;
        match said.what {
            What::Blocked => {
                standing.from = standing.from.max(said.version);
                if is_newer(standing.block.0) {
                    standing.block = (said.version, true);
                }
            }
            What::Unblocked if is_newer(standing.block.0) => standing.block = (said.version, false),
            What::SignedOut => standing.from = standing.from.max(said.version),
            What::Roles(roles) if is_newer(standing.roles.0) => standing.roles = (said.version, roles),
            _ => {}
        }
    }

    /// Notes when a version of a user was heard here.
    pub(crate) fn note(&mut self, user: &str, version: u64, now: Timestamp) {
        let Some(standing) = self.users.get_mut(user) else { return };
        if standing.heard.is_none_or(|(known, _)| version > known) {
            standing.heard = Some((version, now));
        }
    }

    /// What is known of a user, and since when.
    pub(crate) fn known(&self, user: &str) -> Option<Known> {
        let standing = self.users.get(user)?;
        let (version, since) = standing.heard?;
        Some(Known { version, blocked: standing.block.1, since })
    }

    /// What becomes of a token that speaks of `user`.
    #[must_use]
    pub fn judge(&self, user: &User) -> Verdict {
        if user.session.as_ref().is_some_and(|session| self.sessions.contains_key(session)) {
            return Verdict::Ended;
        }
        let Some(standing) = self.users.get(&user.id) else { return Verdict::Goes(None) };
        if standing.block.1 || user.version < standing.from {
            return Verdict::Ended;
        }
        let are_changed = standing.roles.0 > user.version;
        Verdict::Goes(are_changed.then(|| standing.roles.1.clone()))
    }

    /// Forgets what was said more than `kept` ago: every token of before has ended by itself.
    pub fn forget(&mut self, now: Timestamp, kept: Duration) {
        let Ok(kept) = SignedDuration::try_from(kept) else { return };
        let Ok(since) = now.checked_sub(kept) else { return };
        self.users.retain(|_, standing| standing.at >= since);
        self.sessions.retain(|_, at| *at >= since);
    }

    /// How many users and sessions are kept.
    #[must_use]
    pub fn kept(&self) -> (usize, usize) {
        (self.users.len(), self.sessions.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(version: u64) -> User {
        let (id, session, client) = ("ada".into(), Some("s1".into()), "c".into());
        User { id, session, roles: vec![], client, version, ends: None }
    }

    fn said(version: u64, what: What) -> Said {
        Said { user: "ada".into(), version, what, at: Timestamp::UNIX_EPOCH }
    }

    /// The life of a user: what the events say, in the order in which they happened.
    fn life() -> Vec<Said> {
        vec![
            said(1, What::Roles(vec!["admin".into()])),
            said(2, What::Blocked),
            said(3, What::Unblocked),
            said(4, What::SignedOut),
            said(5, What::Blocked),
            said(6, What::Roles(vec![])),
        ]
    }

    proptest! {
        #[test]
        fn events_in_any_order_and_twice_come_to_the_same(order in Just(life()).prop_shuffle(), again in 0_usize..6) {
            let mut blocks = Blocks::default();
            order.iter().chain(order.get(again)).cloned().for_each(|said| blocks.hear(said));
            let mut straight = Blocks::default();
            life().into_iter().for_each(|said| straight.hear(said));
            prop_assert_eq!(blocks, straight);
        }
    }

    #[test]
    fn an_old_unblock_does_not_win_over_a_later_block() {
        let late_unblock = |mut blocks: Blocks| {
            for said in [said(2, What::Blocked), said(5, What::Blocked), said(3, What::Unblocked)] {
                blocks.hear(said);
            }
            blocks.judge(&shown(6))
        };
        assert_eq!(late_unblock(Blocks::default()), Verdict::Ended);
        #[cfg(feature = "mutants")]
        assert_ne!(
            late_unblock(Blocks::new(Mutation(Some(Mutant::LastWins)))),
            Verdict::Ended,
            "the mutant is caught"
        );
    }

    #[test]
    fn a_token_of_before_the_block_stays_ended_after_the_unblock() {
        let mut blocks = Blocks::default();
        blocks.hear(said(2, What::Blocked));
        assert_eq!(blocks.judge(&shown(1)), Verdict::Ended);
        blocks.hear(said(3, What::Unblocked));
        assert_eq!(blocks.judge(&shown(1)), Verdict::Ended);
        assert_eq!(blocks.judge(&shown(3)), Verdict::Goes(None));
    }

    #[test]
    fn roles_that_were_taken_away_are_gone_from_older_tokens() {
        let mut blocks = Blocks::default();
        blocks.hear(said(4, What::Roles(vec!["seller".into()])));
        assert_eq!(blocks.judge(&shown(3)), Verdict::Goes(Some(vec!["seller".into()])));
        assert_eq!(blocks.judge(&shown(4)), Verdict::Goes(None));
    }

    #[test]
    fn a_session_that_ended_ends_its_tokens_and_is_forgotten_with_them() {
        let mut blocks = Blocks::default();
        blocks.hear(said(1, What::SessionEnded("s1".into())));
        assert_eq!(blocks.judge(&shown(9)), Verdict::Ended);
        let (life, later) = (Duration::from_secs(60), Timestamp::from_second(61).unwrap());
        blocks.forget(Timestamp::from_second(60).unwrap(), life);
        assert_eq!(blocks.kept(), (0, 1));
        blocks.forget(later, life);
        assert_eq!(blocks.kept(), (0, 0));
    }

    #[test]
    fn an_event_that_cannot_be_read_is_an_error_and_others_are_passed_over() {
        let mut envelope = Envelope {
            id: tombolo_event::EventId::new(),
            source: "identity".into(),
            event_type: "identity.blocked.v1".into(),
            key: "ada".into(),
            time: Timestamp::UNIX_EPOCH,
            content_type: tombolo_event::envelope::JSON.into(),
            trace: None,
            correlation: None,
            causation: None,
            extensions: tombolo_event::envelope::Extensions::new(),
            data: bytes::Bytes::from_static(b"{}"),
        };
        assert!(Said::read("identity", &envelope).is_err());
        assert_eq!(Said::read("users", &envelope), Ok(None));
        envelope.data = bytes::Bytes::from_static(br#"{"user_id":"ada","version":2}"#);
        assert_eq!(Said::read("identity", &envelope), Ok(Some(said(2, What::Blocked))));
        envelope.event_type = "identity.registered.v1".into();
        assert_eq!(Said::read("identity", &envelope), Ok(None));
    }
}
