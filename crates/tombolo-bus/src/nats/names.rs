//! Addresses, and the names that a namespace gives to streams and subjects.
//!
//! `nats://[user:password@]host:port[,host:port…][/namespace][?replicas=3]`: several places are servers of one cluster, and
//! `replicas` says on how many of them what is made is kept.
//!
//! Invariant: two namespaces, and two topics of one, never share a stream or a subject: `_` and `.` separate, and no
//! namespace or topic contains them.

use tombolo_event::ServiceName;

use crate::{Error, Kind, Result};

/// The namespace of an address that names none.
const NAMESPACE_DEFAULT: &str = "tombolo";
/// On how many servers a stream can be kept: an even number outlives no more deaths than the odd one below it.
const REPLICAS: [usize; 3] = [1, 3, 5];

/// Where the servers are, whose streams are meant, and on how many servers they are kept.
pub(super) struct Address {
    /// The addresses of the servers, without the namespace and without who we are; several are one cluster.
    pub(super) servers: Vec<String>,
    pub(super) login: Option<Login>,
    pub(super) names: Names,
    pub(super) replicas: usize,
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

fn wrong(found: &str) -> Error {
    let message = format!(
        "NATS address {found}; expected nats://[user:password@]host:port[,host:port][/namespace][?replicas=1|3|5]"
    );
    Error::new(Kind::Configuration, message)
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        if !matches!(scheme, "nats" | "tls") {
            return Err(wrong(&format!("has the scheme {scheme:?}")));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (place, path) = place.split_once('/').unwrap_or((place, ""));
        let (login, hosts) =
            place.rsplit_once('@').map_or((None, place), |(login, hosts)| (Some(login), hosts));
        let login = match login.map(Login::parse) {
            Some(None) => return Err(wrong("has a user or password that is not written as in a URL")),
            login => login.flatten(),
        };
        if hosts.split(',').any(str::is_empty) {
            return Err(wrong("has no host, or an empty one"));
        }
        let namespace = match path.trim_end_matches('/') {
            "" => NAMESPACE_DEFAULT,
            named => named,
        };
        let namespace = ServiceName::new(namespace)
            .map_err(|error| wrong(&format!("has the namespace {namespace:?}")).because(error))?;
        let names = Names { namespace: namespace.as_str().to_owned() };
        let servers = hosts.split(',').map(|host| format!("{scheme}://{host}")).collect();
        Ok(Self { servers, login, names, replicas: replicas(query)? })
    }
}

fn replicas(query: &str) -> Result<usize> {
    let mut found = 1;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some(("replicas", number)) = pair.split_once('=') else {
            let key = pair.split('=').next().unwrap_or_default();
            return Err(wrong(&format!("has {key:?} in its query, which means nothing")));
        };
        found = number.parse().ok().filter(|number| REPLICAS.contains(number)).ok_or_else(|| {
            wrong(&format!("asks for {number:?} replicas (an even number outlives no more deaths)"))
        })?;
    }
    Ok(found)
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

    /// A subject of the topic's stream that nothing is ever sent to.
    pub(super) fn barrier(&self, topic: &ServiceName) -> String {
        format!("{}.topic.{topic}.barrier", self.namespace)
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
        for (url, servers, stream, replicas) in [
            ("nats://h:4222", "nats://h:4222", "tombolo_tombolo_topic_orders", 1),
            ("nats://u:p@h:4222/?replicas=1", "nats://h:4222", "tombolo_tombolo_topic_orders", 1),
            ("tls://h/staging", "tls://h", "tombolo_staging_topic_orders", 1),
            ("nats://u:p@a,b:1/x?replicas=3", "nats://a nats://b:1", "tombolo_x_topic_orders", 3),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.servers.join(" ").as_str(), address.replicas), (servers, replicas));
            assert_eq!(address.names.topic_stream(&orders), stream);
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
        let odd = [
            "h:4222",
            "http://h",
            "nats://",
            "nats://u:secret@a,,b",
            "nats://u:secret@h/A_b",
            "nats://u:secret@h/a/b",
            "nats://u:secret@h?replicas=2",
            "nats://u:secret@h?replicas=many",
            "nats://u:secret@h?password=secret",
        ];
        for url in odd {
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
