//! Addresses, and the names that a namespace gives to streams and subjects.
//!
//! Invariant: two namespaces, and two topics of one, never share a stream or a subject: `_` and `.` separate, and no
//! namespace or topic contains them.

use tombolo_event::ServiceName;

use crate::{Error, Kind, Result};

/// The namespace of an address that names none.
const NAMESPACE_DEFAULT: &str = "tombolo";

/// Where the server is, and whose streams are meant.
pub(super) struct Address {
    /// The address of the server, without the namespace and without who we are.
    pub(super) server: String,
    pub(super) login: Option<Login>,
    pub(super) names: Names,
}

/// Who we are to the server. The client does not look for it in an address.
#[derive(PartialEq, Eq)]
pub(super) enum Login {
    Password { user: String, password: String },
    Token(String),
}

impl Login {
    /// Reads what stands before the `@`; a part alone is a token. None if it is not written as a URL writes it.
    fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            Some((user, password)) => {
                Some(Self::Password { user: decoded(user)?, password: decoded(password)? })
            }
            None => decoded(text).map(Self::Token),
        }
    }
}

/// A text in which a URL writes some letters as `%` and two digits.
fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend(rest.bytes());
    }
    String::from_utf8(bytes).ok()
}

/// The names of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Names {
    namespace: String,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let wrong = |found: &str| {
            let message =
                format!("NATS address {found}; expected nats://[user:password@]host:port[/namespace]");
            Error::new(Kind::Configuration, message)
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        if !matches!(scheme, "nats" | "tls") {
            return Err(wrong(&format!("has the scheme {scheme:?}")));
        }
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, host) = place.rsplit_once('@').map_or((None, place), |(login, host)| (Some(login), host));
        let login = match login.map(Login::parse) {
            Some(None) => return Err(wrong("has a user or password that is not written as in a URL")),
            login => login.flatten(),
        };
        if host.is_empty() {
            return Err(wrong("has no host"));
        }
        let namespace = match path.trim_end_matches('/') {
            "" => NAMESPACE_DEFAULT,
            named => named,
        };
        let namespace = ServiceName::new(namespace)
            .map_err(|error| wrong(&format!("has the namespace {namespace:?}")).because(error))?;
        let names = Names { namespace: namespace.as_str().to_owned() };
        Ok(Self { server: format!("{scheme}://{host}"), login, names })
    }
}

impl Names {
    pub(super) fn topic_stream(&self, topic: &ServiceName) -> String {
        format!("tombolo_{}_topic_{topic}", self.namespace)
    }

    /// The topic whose stream has this name, if it is of this namespace.
    pub(super) fn topic_of_stream(&self, stream: &str) -> Option<ServiceName> {
        let topic = stream.strip_prefix(&format!("tombolo_{}_topic_", self.namespace))?;
        ServiceName::new(topic).ok()
    }

    /// The mark by which a topic's stream is known to be ours.
    pub(super) fn topic_mark(&self, topic: &ServiceName) -> String {
        format!("Tombolo topic {topic} of namespace {}, layout 1", self.namespace)
    }

    pub(super) fn topic_subjects(&self, topic: &ServiceName) -> String {
        format!("{}.topic.{topic}.*", self.namespace)
    }

    pub(super) fn control(&self, topic: &ServiceName) -> String {
        format!("{}.topic.{topic}.control", self.namespace)
    }

    pub(super) fn partition(&self, topic: &ServiceName, partition: u32) -> String {
        format!("{}.topic.{topic}.{partition}", self.namespace)
    }

    pub(super) fn registrations_stream(&self) -> String {
        format!("tombolo_{}_registrations", self.namespace)
    }

    pub(super) fn registrations_mark(&self) -> String {
        format!("Tombolo registrations of namespace {}, layout 1", self.namespace)
    }

    pub(super) fn registrations_subjects(&self) -> String {
        format!("{}.registration.*.*", self.namespace)
    }

    pub(super) fn registration(&self, service: &ServiceName, replica: u32) -> String {
        format!("{}.registration.{service}.{replica}", self.namespace)
    }

    pub(super) fn signal(&self, subject: &str) -> String {
        format!("{}.signal.{subject}", self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_name_a_namespace() {
        let orders = ServiceName::new("orders").unwrap();
        for (url, server, stream) in [
            ("nats://h:4222", "nats://h:4222", "tombolo_tombolo_topic_orders"),
            ("nats://u:p@h:4222/", "nats://h:4222", "tombolo_tombolo_topic_orders"),
            ("tls://h/staging", "tls://h", "tombolo_staging_topic_orders"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(
                (address.server.as_str(), address.names.topic_stream(&orders).as_str()),
                (server, stream)
            );
            assert_eq!(address.names.topic_of_stream(stream), Some(orders.clone()));
        }
    }

    #[test]
    fn an_address_may_say_who_we_are() {
        let login = |url| Address::parse(url).unwrap().login;
        let password = Login::Password { user: "shop".into(), password: "a/b@c".into() };
        assert!(login("nats://shop:a%2Fb%40c@h") == Some(password));
        assert!(login("nats://t0ken@h/a") == Some(Login::Token("t0ken".into())));
        assert!(login("nats://h/a").is_none());
        assert!(Address::parse("nats://shop:%zz@h").is_err());
    }

    #[test]
    fn an_odd_address_is_refused_without_its_password() {
        for url in ["h:4222", "http://h", "nats://", "nats://u:secret@h/A_b", "nats://u:secret@h/a/b"] {
            let error = Address::parse(url).err().unwrap();
            assert_eq!(error.kind(), Kind::Configuration);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_stream_of_another_namespace_is_not_ours() {
        let names = Address::parse("nats://h/a").unwrap().names;
        assert_eq!(names.topic_of_stream("tombolo_ab_topic_orders"), None);
        assert_eq!(names.topic_of_stream("tombolo_a_registrations"), None);
    }
}
