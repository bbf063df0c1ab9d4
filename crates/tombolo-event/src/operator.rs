//! What an operator can ask of a subscription, a view or the service's topic, as the CLI sends it, the database keeps it and
//! the holder of the partition's lease, the view's keeper or the relay's leader carries it out.
//!
//! Invariant: a request is only ever written down by whoever takes it. It is carried out under the lease, once, and what
//! became of it stays beside it: the list of requests is the audit.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{Cursor, EventId, Incarnation, ServiceName};

/// Names the bearer token that a service and its operators share. Without it a service takes requests from its own
/// machine only.
pub const OPERATOR_TOKEN: &str = "TOMBOLO_OPERATOR_TOKEN";

/// What is asked, of which subscription, by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The subscription; for an action on a view, [`of_view`] its name; for one on the topic, [`of_topic`] its name.
    pub subscription: String,
    /// Who asks, as the operator's tool says it: `user@host`.
    pub asked_by: String,
    /// What is to be done.
    #[serde(flatten)]
    pub action: Action,
}

/// What can be asked of a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Handle nothing more until it is resumed, over restarts too.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Try parked events again now, each key's in order.
    Redrive(Which),
    /// Drop parked events for good.
    Discard(Which),
    /// Move cursors back, so that what comes after them is handled again.
    Reset {
        /// Where to, one place for each partition.
        to: Vec<Place>,
        /// Whether what speaks against it was read and accepted.
        #[serde(default)]
        force: bool,
    },
    /// Move one cursor on, over what cannot be read or handled.
    Skip {
        /// Where to: the last event that is stepped over.
        to: Place,
    },
    /// Build a view anew, beside the build that is read.
    Rebuild {
        /// Whether readers are switched to it as soon as it is ready.
        #[serde(default)]
        switch: bool,
    },
    /// Switch a view's readers to another build.
    Switch {
        /// The build, like `v2-b1`.
        to: String,
        /// Whether it is known, and accepted, that the build lacks what is parked of it.
        #[serde(default)]
        accept_parked: bool,
    },
    /// Drop a build of a view that is not read any more.
    Drop {
        /// The build, like `v1-b1`.
        build: String,
    },
    /// Divide the service's own topic anew, into so many partitions.
    Divide {
        /// How many, from then on.
        partitions: u32,
    },
}

impl Action {
    /// Its word, as it stands in the JSON and in the table of requests.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Redrive(_) => "redrive",
            Self::Discard(_) => "discard",
            Self::Reset { .. } => "reset",
            Self::Skip { .. } => "skip",
            Self::Rebuild { .. } => "rebuild",
            Self::Switch { .. } => "switch",
            Self::Drop { .. } => "drop",
            Self::Divide { .. } => "divide",
        }
    }
}

/// What a request names in the place of a subscription if it is about a view, all of whose builds are subscriptions.
#[must_use]
pub fn of_view(view: &str) -> String {
    format!("view/{view}")
}

/// What a request names in the place of a subscription if it is about the service's own topic.
#[must_use]
pub fn of_topic(topic: &ServiceName) -> String {
    format!("topic/{topic}")
}

/// Which parked events are meant: one key's, one event, or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    /// All of this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Only this one; with a redrive, all of its key, because order is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventId>,
}

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PartitionOf {
    /// The topic.
    pub topic: ServiceName,
    /// The partition, from 0.
    pub partition: u32,
}

/// A place in a log that a cursor can be moved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The partition.
    #[serde(flatten)]
    pub of: PartitionOf,
    /// The topic's incarnation.
    pub incarnation: Incarnation,
    /// The last sequence that counts as handled; 0 before the first.
    pub sequence: u64,
    /// The id of the event there.
    pub id: Option<EventId>,
}

impl Place {
    /// The place as a cursor.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor { incarnation: self.incarnation, sequence: self.sequence, id: self.id }
    }
}

/// A request that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Its identity.
    pub id: Uuid,
    /// The subscription that it is about.
    pub subscription: String,
    /// The partition whose holder carries it out; none if it is not about partitions.
    #[serde(flatten)]
    pub of: Option<PartitionOf>,
    /// The word of its action.
    pub action: String,
    /// The action as JSON. Whoever does not know its word leaves it to a newer replica.
    pub detail: Value,
    /// Who asked.
    pub asked_by: String,
    /// When, by the clock of the service that took it.
    pub asked_at: Timestamp,
    /// What became of it; none while it waits.
    pub outcome: Option<Outcome>,
}

impl Request {
    /// A request that is asked now.
    ///
    /// # Panics
    /// Never: an action is JSON.
    #[must_use]
    pub fn new(subscription: &str, of: Option<PartitionOf>, action: &Action, asked_by: &str) -> Self {
        Self {
            id: Uuid::now_v7(),
            subscription: subscription.to_owned(),
            of,
            action: action.word().to_owned(),
            detail: serde_json::to_value(action).expect("an action is JSON"),
            asked_by: asked_by.to_owned(),
            asked_at: Timestamp::now(),
            outcome: None,
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it was done. If not, it was refused and changed nothing, or stopped where the text says.
    pub done: bool,
    /// What was done or why not, for people.
    pub text: String,
    /// When.
    pub at: Timestamp,
}

impl Outcome {
    /// It was done.
    pub fn done(text: impl Into<String>) -> Self {
        Self { done: true, text: text.into(), at: Timestamp::now() }
    }

    /// It was not.
    pub fn refused(text: impl Into<String>) -> Self {
        Self { done: false, text: text.into(), at: Timestamp::now() }
    }
}

/// Where a reset or a skip would go, before anything is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The subscription.
    pub subscription: String,
    /// Where to.
    #[serde(flatten)]
    pub to: Goal,
}

/// Where cursors are to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum Goal {
    /// Back to before the first event.
    Start,
    /// Back to before the first event that was published at this time or later, by its producer's clock.
    Time {
        /// The time.
        time: Timestamp,
    },
    /// Back, so that this sequence is the next one handled.
    Sequence {
        /// The partition.
        #[serde(flatten)]
        of: PartitionOf,
        /// The sequence.
        sequence: u64,
    },
    /// Ahead, over everything up to this sequence; without one, over the next event.
    Over {
        /// The partition.
        #[serde(flatten)]
        of: PartitionOf,
        /// The last sequence that is stepped over.
        #[serde(default)]
        sequence: Option<u64>,
    },
}

/// What would come of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// `view`, `reactor` or `effect`.
    pub kind: String,
    /// The cursors that would move; none moves that is not in here.
    pub moves: Vec<Move>,
    /// What an operator should think of before.
    pub warning: Option<String>,
    /// Whether it is refused unless it is forced.
    pub needs_force: bool,
}

/// A cursor that would move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Where it stands.
    pub from: u64,
    /// Where it would stand.
    pub to: Place,
    /// How many events of the topic lie between, of whatever type.
    pub events: u64,
    /// When the first of them was published.
    pub since: Option<Timestamp>,
    /// With a skip, what is stepped over, as far as it can be read: `sequence (type id)`.
    #[serde(default)]
    pub over: Vec<String>,
}

/// A parked event, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parked {
    /// The subscription.
    pub subscription: String,
    /// The partition.
    #[serde(flatten)]
    pub of: PartitionOf,
    /// Its sequence.
    pub sequence: u64,
    /// Its identity.
    pub id: EventId,
    /// Its key; none if the event cannot be read.
    pub key: Option<String>,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// When it was parked.
    pub parked_at: Timestamp,
    /// Tries that were begun; 0: it waits behind another of its key.
    pub attempts: u32,
    /// What the last of them failed with.
    pub error: Option<String>,
    /// When the next one is due; none: when it is told, or when its turn comes.
    pub retry_at: Option<Timestamp>,
    /// The event as a CloudEvent, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_action_says_in_json_what_its_word_says() {
        let place = Place {
            of: PartitionOf { topic: ServiceName::new("orders").unwrap(), partition: 3 },
            incarnation: Incarnation(Uuid::nil()),
            sequence: 7,
            id: None,
        };
        let actions = [
            Action::Pause,
            Action::Resume,
            Action::Redrive(Which::default()),
            Action::Discard(Which { key: Some("o1".into()), event: None }),
            Action::Reset { to: vec![place.clone()], force: true },
            Action::Skip { to: place },
            Action::Rebuild { switch: true },
            Action::Switch { to: "v2-b1".into(), accept_parked: false },
            Action::Drop { build: "v1-b1".into() },
            Action::Divide { partitions: 16 },
        ];
        for action in actions {
            let ask = Ask { subscription: "copies-v1".into(), asked_by: "ann@host".into(), action };
            let json = serde_json::to_value(&ask).unwrap();
            assert_eq!(json["action"], ask.action.word());
            assert_eq!(serde_json::from_value::<Ask>(json).unwrap(), ask);
        }
    }

    #[test]
    fn what_an_operator_sends_is_pinned() {
        let ask: Ask = serde_json::from_value(json!({
            "subscription": "copies-v1", "asked_by": "ann@host", "action": "redrive", "key": "o1",
        }))
        .unwrap();
        assert_eq!(ask.action, Action::Redrive(Which { key: Some("o1".into()), event: None }));
        let request = Request::new("copies-v1", None, &ask.action, "ann@host");
        assert_eq!(request.detail, json!({ "action": "redrive", "key": "o1" }));
    }
}
