//! What is looked at in a plain event: that it is a JSON object, and what its `type` is. Pure.
//!
//! Invariant: every JSON object is taken, however deep it is; nothing else is.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::limits::TYPE_BYTES_MAX;
use crate::problem::{Problem, Refusal};

/// The type of an event that does not say one.
const UNTYPED: &str = "plain";

/// The type of the event that `body` is: the text of its `type`, where there is one that can be a type.
pub(super) fn type_of(body: &[u8]) -> Result<String, Problem> {
    let wrong = |what: String| {
        Problem::new(
            Refusal::Malformed,
            format!(
                "the body is no plain event: {what}; expected a JSON object, such as {{\"type\": \"PostCreated\", \"data\": {{}}}}"
            ),
        )
    };
    let text = std::str::from_utf8(body).map_err(|error| wrong(error.to_string()))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let found = reader.deserialize_map(Object).map_err(|error| wrong(error.to_string()))?;
    reader.end().map_err(|error| wrong(error.to_string()))?;
    let fits =
        |name: &String| !name.is_empty() && name.len() <= TYPE_BYTES_MAX && !name.contains(char::is_control);
    Ok(found.filter(fits).unwrap_or_else(|| UNTYPED.into()))
}

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<String>, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<&RawValue>()? {
            if name.get() == "\"type\"" {
                found = serde_json::from_str(map.next_value::<&RawValue>()?.get()).ok();
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_object_is_taken_and_its_type_is_found() {
        for (body, expected) in [
            (r#"{"type": "PostCreated", "data": {"id": 1}}"#, "PostCreated"),
            (r#" {"data": [1, {"type": "no"}]} "#, "plain"),
            (r#"{"Type": "X"}"#, "plain"),
            (r#"{"type": 7}"#, "plain"),
            (r#"{"type": ""}"#, "plain"),
            (r#"{"type": {"deep": 1}}"#, "plain"),
            (r#"{"a\ud800": 1, "type": "Ü"}"#, "Ü"),
            ("{}", "plain"),
        ] {
            assert_eq!(type_of(body.as_bytes()).unwrap(), expected, "{body}");
        }
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(type_of(deep.as_bytes()).unwrap(), "plain");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for body in [
            "",
            "[]",
            "1",
            "null",
            "\"type\"",
            "{",
            "{\"a\": }",
            "{} {}",
            "{'a': 1}",
            "\u{feff}{}",
            "{\"a\": \"\n\"}",
        ] {
            assert_eq!(type_of(body.as_bytes()).unwrap_err().refusal(), Refusal::Malformed, "{body:?}");
        }
        assert!(type_of(b"{\"a\": \"\xff\"}").is_err());
    }
}
