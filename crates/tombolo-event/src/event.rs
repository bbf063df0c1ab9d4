//! Typed events: what a user writes to say what happened.
//!
//! Invariant: the durable name of a type is an explicit string, and any stored version of its family is
//! either lifted to the version that the code takes or refused by name; it is never passed over.

use schemars::{JsonSchema, Schema};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Envelope, Error, Kind, Result, TypeName};

/// A fact that happened in one service.
///
/// ```
/// # use schemars::JsonSchema; use serde::{Serialize, Deserialize}; use tombolo_event::Event;
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// struct OrderPlaced { order: String, cents: i64 }
///
/// impl Event for OrderPlaced {
///     const TYPE: &'static str = "orders.placed.v1";
///     fn key(&self) -> String { self.order.clone() }
/// }
/// ```
pub trait Event: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The durable name with its version, such as `orders.placed.v1`. Never derived from a Rust name.
    const TYPE: &'static str;

    /// How older versions are lifted, oldest first: each entry turns the data of its version into the data
    /// of the next entry's, the last one into that of [`Event::TYPE`].
    const UPCASTS: &'static [Upcast] = &[];

    /// The entity that the event is about. Events of one key are seen in order, everywhere.
    /// At most [`crate::key::KEY_BYTES_MAX`] bytes, not empty.
    fn key(&self) -> String;

    /// The topic that it is published to, which is the name of the service that owns it: the first word of
    /// [`Event::TYPE`] unless the type says otherwise.
    #[must_use]
    fn topic() -> &'static str {
        Self::TYPE.split('.').next().unwrap_or_default()
    }
}

/// One step up: from the data of an older version to that of the next.
#[derive(Debug, Clone, Copy)]
pub struct Upcast {
    /// The older version's full name, such as `orders.placed.v1`.
    pub from: &'static str,
    /// Turns its data into the next version's; an error says what was missing.
    pub lift: fn(Value) -> std::result::Result<Value, String>,
}

/// The names that `E` can be read from: its own and those that its upcasters lift.
pub fn readable_types<E: Event>() -> Vec<&'static str> {
    E::UPCASTS.iter().map(|step| step.from).chain([E::TYPE]).collect()
}

/// The JSON Schema of `E`, as derived.
#[must_use]
pub fn schema_of<E: JsonSchema>() -> Schema {
    schemars::schema_for!(E)
}

/// Reads the data of `envelope` as an `E`, lifting an older version.
///
/// # Errors
/// [`Kind::UnknownVersion`] if the type is of the family but no upcaster lifts it, [`Kind::WrongData`] if
/// the data is not what the type says.
pub fn read<E: Event>(envelope: &Envelope) -> Result<E> {
    if envelope.event_type == E::TYPE {
        return serde_json::from_slice(&envelope.data)
            .map_err(|error| wrong_data(envelope, &error.to_string()));
    }
    let Some(first) = E::UPCASTS.iter().position(|step| step.from == envelope.event_type) else {
        return Err(unknown_version::<E>(envelope));
    };
    let mut data: Value =
        serde_json::from_slice(&envelope.data).map_err(|error| wrong_data(envelope, &error.to_string()))?;
    for step in &E::UPCASTS[first..] {
        data = (step.lift)(data)
            .map_err(|error| wrong_data(envelope, &format!("upcast from {}: {error}", step.from)))?;
    }
    serde_json::from_value(data).map_err(|error| wrong_data(envelope, &format!("after its upcasts: {error}")))
}

/// Whether `stored` is a version of the family of `handled` (which may be one that nobody can read yet).
#[must_use]
pub fn same_family(handled: &str, stored: &str) -> bool {
    match (TypeName::new(handled), TypeName::new(stored)) {
        (Ok(handled), Ok(stored)) => handled.family == stored.family,
        _ => handled == stored,
    }
}

fn wrong_data(envelope: &Envelope, found: &str) -> Error {
    Error::new(
        Kind::WrongData,
        format!(
            "event {} of {} claims to be {} but its data is not: {found}; fix the producer, or add a version",
            envelope.id, envelope.source, envelope.event_type
        ),
    )
}

fn unknown_version<E: Event>(envelope: &Envelope) -> Error {
    Error::new(
        Kind::UnknownVersion,
        format!(
            "event {} is of type {}, but this service reads {}; deploy a reader that knows the version, or add an upcaster",
            envelope.id,
            envelope.event_type,
            readable_types::<E>().join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Serialize, Deserialize, JsonSchema, Debug, PartialEq)]
    struct Registered {
        user: String,
        name: String,
        email: String,
    }

    impl Event for Registered {
        const TYPE: &'static str = "users.registered.v3";
        const UPCASTS: &'static [Upcast] = &[
            Upcast { from: "users.registered.v1", lift: split_nothing },
            Upcast { from: "users.registered.v2", lift: no_email_yet },
        ];
        fn key(&self) -> String {
            self.user.clone()
        }
    }

    fn split_nothing(mut data: Value) -> std::result::Result<Value, String> {
        let id = data.get("id").cloned().ok_or("there is no id")?;
        data["user"] = id;
        Ok(data)
    }

    fn no_email_yet(mut data: Value) -> std::result::Result<Value, String> {
        data["email"] = json!("");
        Ok(data)
    }

    fn stored(event_type: &str, data: &Value) -> Envelope {
        let mut envelope = crate::envelope::tests::sample();
        envelope.event_type = event_type.into();
        envelope.data = data.to_string().into();
        envelope
    }

    #[test]
    fn an_old_version_is_lifted_through_every_step() {
        let lifted: Registered =
            read(&stored("users.registered.v1", &json!({"id": "u1", "name": "Ada"}))).unwrap();
        assert_eq!(lifted, Registered { user: "u1".into(), name: "Ada".into(), email: String::new() });
        let lifted: Registered =
            read(&stored("users.registered.v2", &json!({"user": "u1", "name": "Ada"}))).unwrap();
        assert_eq!(lifted.email, "");
    }

    #[test]
    fn an_unknown_version_is_named_and_not_passed_over() {
        let error = read::<Registered>(&stored("users.registered.v4", &json!({}))).unwrap_err();
        assert_eq!(error.kind(), Kind::UnknownVersion);
        assert!(error.to_string().contains("users.registered.v4"), "{error}");
        assert!(same_family(Registered::TYPE, "users.registered.v4"));
        assert!(!same_family(Registered::TYPE, "users.renamed.v1"));
    }

    #[test]
    fn data_that_is_not_what_the_type_says_is_refused() {
        let error = read::<Registered>(&stored("users.registered.v3", &json!({"user": 7}))).unwrap_err();
        assert_eq!(error.kind(), Kind::WrongData);
        let error = read::<Registered>(&stored("users.registered.v1", &json!({}))).unwrap_err();
        assert!(error.to_string().contains("there is no id"), "{error}");
    }

    #[test]
    fn a_schema_comes_with_the_type() {
        let schema = serde_json::to_value(schema_of::<Registered>()).unwrap();
        assert_eq!(schema["required"], json!(["user", "name", "email"]));
    }
}
