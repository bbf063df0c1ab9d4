//! The names that a namespace gives to the streams of a bus, and the part of an address that says which namespace.
//!
//! Invariant: two namespaces, and two topics of one, never share a name: `.` separates, and no namespace or topic contains it.

use tombolo_event::ServiceName;

use crate::{Error, Result};

/// The namespace of an address that names none.
const NAMESPACE_DEFAULT: &str = "tombolo";

/// The names of one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) namespace: String,
}

impl Names {
    /// Those that the query of an address asks for; `wrong` makes the refusal out of what was found.
    pub(crate) fn parse(query: &str, wrong: fn(&str) -> Error) -> Result<Self> {
        let mut found = NAMESPACE_DEFAULT;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("namespace", name)) => found = name,
                _ => {
                    let key = pair.split('=').next().unwrap_or_default();
                    return Err(wrong(&format!("has {key:?} in its query, which means nothing")));
                }
            }
        }
        let name = ServiceName::new(found)
            .map_err(|error| wrong(&format!("has the namespace {found:?}")).because(error))?;
        Ok(Self { namespace: name.as_str().to_owned() })
    }

    /// The stream of a topic.
    pub(crate) fn topic(&self, topic: &ServiceName) -> String {
        format!("tombolo.{}.topic.{topic}", self.namespace)
    }

    /// The stream in which topics and registrations are listed.
    pub(crate) fn directory(&self) -> String {
        format!("tombolo.{}.directory", self.namespace)
    }

    /// What signals go through.
    pub(crate) fn signals(&self) -> String {
        format!("tombolo.{}.signals", self.namespace)
    }
}
