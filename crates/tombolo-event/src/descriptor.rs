//! What a service says of itself, without being started.
//!
//! Invariant: everything that crosses a service's border is in here by its durable name, so that "who
//! publishes this, who needs it" is a question with an answer.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use crate::ServiceName;

/// A service's own description. Every service binary prints it with `--describe`, and registers it when it starts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Descriptor {
    /// The service, and its topic.
    pub service: ServiceName,
    /// The number of partitions of its topic.
    pub partitions: u32,
    /// The kind of its database: `sqlite`, `postgres`, ….
    pub database: String,
    /// The types that it publishes.
    pub publishes: Vec<Published>,
    /// Its subscriptions.
    pub subscriptions: Vec<Subscribed>,
    /// The questions that it answers.
    pub answers: Vec<Answered>,
    /// The questions that it asks.
    pub asks: Vec<String>,
}

/// A type that a service publishes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Published {
    /// Its durable name.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Its JSON Schema.
    pub schema: Schema,
}

/// A subscription.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Subscribed {
    /// Its durable name.
    pub name: String,
    /// What it is: `view`, `reactor` or `effect`.
    pub kind: String,
    /// The types that it handles, each with the topic it comes from.
    pub handles: Vec<Handled>,
}

/// A type that a subscription handles.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Handled {
    /// The topic.
    pub topic: ServiceName,
    /// The names that are read: the current one and those that are lifted to it.
    pub types: Vec<String>,
    /// The JSON Schema of what the handler takes.
    pub schema: Schema,
}

/// A question that a service answers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Answered {
    /// Its durable name.
    pub question: String,
    /// The JSON Schema of the question.
    pub schema: Schema,
    /// The JSON Schema of the answer.
    pub answer: Schema,
}
