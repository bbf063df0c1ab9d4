//! What `[gateway]` of a manifest says, checked.
//!
//! The first step. Invariant: every mistake of the text is reported at once, with its place, and what leaves here is complete.

mod reader;
mod route;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use tombolo_bus::server::Certificate;
use toml::de::DeTable;

pub use self::reader::Mistake;
use self::reader::{Section, Value, found};
pub use self::route::{
    AtTheDoor, Balance, Cors, HashBy, Health, PathPrefix, Rate, RateBy, Route, Source, Target, Way,
};

/// The port of the door unless something else is said.
const PORT: u64 = 7100;
/// The most of a request's head.
const HEAD_BYTES: u64 = 32 << 10;
/// The most connections at once.
const CONNECTIONS: u64 = 20_000;
/// Milliseconds that a request's head may take once it has begun.
const HEAD_MS: u64 = 10_000;
/// Milliseconds for which a connection may rest between requests.
const IDLE_MS: u64 = 75_000;
/// Milliseconds that requests have to finish when the gateway ends.
const DRAIN_MS: u64 = 10_000;
/// Retries, as percent of requests.
const RETRY_PERCENT: u64 = 20;

/// A gateway's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where requests come in.
    pub listen: SocketAddr,
    /// Where operators look: health, metrics, replicas.
    pub admin: Option<SocketAddr>,
    /// The certificate of the door, if it speaks TLS.
    pub tls: Option<Certificate>,
    /// What bounds every connection.
    pub limits: Limits,
    /// The networks whose `X-Forwarded-For` is believed.
    pub proxies: Vec<IpNet>,
    /// Whether each request is written to the standard output as a line of JSON.
    pub access_log: bool,
    /// Who issues the tokens that routes ask for.
    pub issuer: Option<String>,
    /// The topic that says who was blocked, and what its types begin with; `identity` unless said.
    pub blocks: Option<String>,
    /// Servers to ask for names instead of the system's.
    pub resolvers: Vec<SocketAddr>,
    /// The routes.
    pub routes: Vec<Route>,
}

/// What bounds every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of a request's head.
    pub head_bytes_max: usize,
    /// The most connections at once.
    pub connections_max: usize,
    /// How long a head may take once it has begun.
    pub head: Duration,
    /// How long a connection may rest between requests, and a body may stand still.
    pub idle: Duration,
    /// How long requests have to finish when the gateway ends.
    pub drain: Duration,
    /// How many requests in a hundred may be tried again.
    pub retry_percent: u64,
}

impl Settings {
    /// Reads the part `[gateway]` of a manifest; `None` if there is none. Relative paths start from `folder`.
    pub fn read(text: &str, folder: &Path) -> Result<Option<Self>, Vec<Mistake>> {
        let document = DeTable::parse(text).map_err(|error| vec![syntax(&error, text)])?;
        let Some(gateway) = document.get_ref().get("gateway") else { return Ok(None) };
        let mut mistakes = Vec::new();
        let settings = whole(&mut mistakes, gateway, folder);
        if let (true, Some(settings)) = (mistakes.is_empty(), settings) {
            Ok(Some(settings))
        } else {
            Err(mistakes)
        }
    }

    /// Whether a route asks for tokens.
    #[must_use]
    pub fn asks_for_tokens(&self) -> bool {
        self.routes.iter().any(|route| matches!(route.auth, AtTheDoor::Optional | AtTheDoor::Required))
    }

    /// The names of the services that routes lead to.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.routes.iter().filter_map(|route| match &route.source {
            Source::Service(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

fn syntax(error: &toml::de::Error, text: &str) -> Mistake {
    let at = error.span().unwrap_or(text.len()..text.len());
    Mistake { at, message: format!("this is not TOML: {}", error.message()), advice: String::new() }
}

fn whole(mistakes: &mut Vec<Mistake>, value: &Value<'_>, folder: &Path) -> Option<Settings> {
    let mut section = Section::open(mistakes, value, "[gateway]")?;
    let listen = address(&mut section, "listen", "port", Some(PORT));
    let admin = address(&mut section, "admin_listen", "admin_port", None);
    let tls = certificate(&mut section, folder);
    let limits = limits(&mut section);
    let proxies = networks(&mut section);
    let access_log = section.flag("access_log").unwrap_or(true);
    let (issuer, blocks) = (section.text("issuer"), section.text("blocks"));
    let resolvers = resolvers(&mut section);
    let routes = routes(&mut section, value);
    section.finish();
    Some(Settings {
        listen: listen?,
        admin,
        tls,
        limits,
        proxies,
        access_log,
        issuer,
        blocks,
        resolvers,
        routes,
    })
}

/// An address, or a port of this machine.
fn address(
    section: &mut Section<'_, '_>,
    key: &'static str,
    port: &'static str,
    default: Option<u64>,
) -> Option<SocketAddr> {
    let number = section.number(port, 0..=u64::from(u16::MAX));
    let text = section.text(key);
    if let (Some(_), Some(_)) = (number, &text) {
        section.wrong(section.place(key), format!("[gateway] has {key} and {port}"), "remove one");
    }
    let Some(text) = text else {
        let port = u16::try_from(number.or(default)?).ok()?;
        return Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    };
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let message = format!("{key} is {text:?}; expected an IP address and a port");
        section.wrong(section.place(key), message, "such as \"0.0.0.0:443\"");
    }
    parsed
}

fn certificate(section: &mut Section<'_, '_>, folder: &Path) -> Option<Certificate> {
    let value = section.value("tls")?;
    let mut tls = Section::open(section.mistakes, value, "[gateway.tls]")?;
    let (chain, key) = (tls.text("chain"), tls.text("key"));
    if chain.is_none() || key.is_none() {
        tls.wrong(value.span(), "[gateway.tls] needs chain and key", "name two files in PEM");
    }
    tls.finish();
    Some(Certificate { chain: folder.join(chain?), key: folder.join(key?) })
}

fn limits(section: &mut Section<'_, '_>) -> Limits {
    let head = section.bytes("head_max").unwrap_or(HEAD_BYTES);
    let connections = section.number("connections_max", 1..=1_000_000).unwrap_or(CONNECTIONS);
    let mut time =
        |key, default| Duration::from_millis(section.number(key, 1..=86_400_000).unwrap_or(default));
    let (head_time, idle, drain) =
        (time("head_timeout_ms", HEAD_MS), time("idle_ms", IDLE_MS), time("drain_ms", DRAIN_MS));
    let retry_percent = section.number("retry_percent", 0..=100).unwrap_or(RETRY_PERCENT);
    Limits {
        head_bytes_max: usize::try_from(head).unwrap_or(usize::MAX).clamp(1 << 10, 1 << 20),
        connections_max: usize::try_from(connections).unwrap_or(usize::MAX),
        head: head_time,
        idle,
        drain,
        retry_percent,
    }
}

fn networks(section: &mut Section<'_, '_>) -> Vec<IpNet> {
    let texts = section.texts("proxies").unwrap_or_default();
    let at = section.place("proxies");
    let mut networks = Vec::new();
    for text in texts {
        match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => networks.push(network),
            Err(_) => section.wrong(
                at.clone(),
                format!("proxies has {text:?}; expected a network or an address"),
                "such as \"10.0.0.0/8\"",
            ),
        }
    }
    networks
}

fn resolvers(section: &mut Section<'_, '_>) -> Vec<SocketAddr> {
    let texts = section.texts("resolvers").unwrap_or_default();
    let at = section.place("resolvers");
    let mut addresses = Vec::new();
    for text in texts {
        match text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
        {
            Ok(address) => addresses.push(address),
            Err(_) => section.wrong(
                at.clone(),
                format!("resolvers has {text:?}; expected an address"),
                "such as \"10.0.0.2:53\"",
            ),
        }
    }
    addresses
}

fn routes(section: &mut Section<'_, '_>, whole: &Value<'_>) -> Vec<Route> {
    let Some(value) = section.value("route") else {
        let advice = "add one: [[gateway.route]] with path = \"/orders\" and service = \"orders\"";
        section.wrong(whole.span(), "[gateway] has no route; expected at least one", advice);
        return Vec::new();
    };
    let Some(list) = value.get_ref().as_array() else {
        let message = format!("gateway.route is {}; expected a list of tables", found(value));
        section.wrong(value.span(), message, "write [[gateway.route]], with two brackets");
        return Vec::new();
    };
    let read: Vec<_> =
        list.iter().map(|value| (value.span(), Route::read(section.mistakes, value))).collect();
    let mut routes: Vec<Route> = Vec::new();
    for (at, route) in read {
        let Some(route) = route else { continue };
        if let Some(other) = routes.iter().find(|other| other.is_ambiguous_with(&route)) {
            let message = format!("the route {} says the same as another before it", other.name);
            section.wrong(at, message, "give it another path, host or other methods, or remove one");
        }
        routes.push(route);
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, Vec<Mistake>> {
        Settings::read(text, Path::new("/shop")).map(|settings| settings.unwrap())
    }

    fn said(text: &str) -> Vec<String> {
        let mistakes = read(text).unwrap_err();
        mistakes.into_iter().map(|mistake| format!("{} | {}", mistake.message, mistake.advice)).collect()
    }

    #[test]
    fn a_manifest_without_a_gateway_has_none() {
        assert_eq!(Settings::read("[services.a]\ncommand = [\"a\"]\n", Path::new("/")), Ok(None));
    }

    #[test]
    fn a_whole_gateway_is_read() {
        let settings = read(
            "[gateway]\nport = 7100\nadmin_port = 7190\nhead_max = \"16 KiB\"\nproxies = [\"10.0.0.0/8\", \"::1\"]\n\
             tls = { chain = \"door.pem\", key = \"/etc/door.key\" }\n\
             [[gateway.route]]\npath = \"/orders\"\nservice = \"orders\"\nmethods = [\"GET\", \"POST\"]\nstrip = true\n\
             balance = \"hash:cookie:session\"\nrate = [{ by = \"user\", per_s = 5, burst = 10 }]\ntimeout_ms = 500\n\
             body_max = \"1 MiB\"\ncors = { origins = [\"https://shop.example\"] }\n\
             [[gateway.route]]\nhost = \"*.example.org\"\nupstreams = [\"http://10.0.0.1:80\", { url = \"http://10.0.0.2:80\", weight = 3 }]\n",
        )
        .unwrap();
        assert_eq!(settings.listen, "127.0.0.1:7100".parse().unwrap());
        assert_eq!(settings.admin, Some("127.0.0.1:7190".parse().unwrap()));
        assert_eq!(settings.limits.head_bytes_max, 16 << 10);
        assert_eq!(settings.tls.unwrap().chain, Path::new("/shop/door.pem"));
        assert_eq!(settings.proxies.len(), 2);
        let [orders, other] = &settings.routes[..] else { panic!("expected two routes") };
        assert_eq!(orders.source, Source::Service("orders".into()));
        assert_eq!(orders.balance, Balance::Hash(HashBy::Cookie("session".into())));
        assert_eq!((orders.timeout, orders.body_bytes_max), (Duration::from_millis(500), 1 << 20));
        assert_eq!(orders.rates[0], Rate { by: RateBy::User, per_s: 5, burst: 10 });
        let Source::Fixed(targets) = &other.source else { panic!("expected targets") };
        assert_eq!((targets[0].weight, targets[1].weight), (1, 3));
        assert_eq!(other.path.as_str(), "/");
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_what_to_do() {
        let said = said(
            "[gateway]\nprot = 1\n[[gateway.route]]\npath = \"orders\"\nservise = \"orders\"\n\
             [[gateway.route]]\nservice = \"a\"\nbalance = \"round-robbin\"\ndns = \"http://b\"\n",
        );
        let has = |text: &str| assert!(said.iter().any(|line| line.contains(text)), "{text}: {said:#?}");
        has("unknown key `prot` in [gateway]");
        has("did you mean `port`?");
        has("path is \"orders\"; expected one that begins with '/'");
        has("did you mean `service`?");
        has("has no place to send requests to");
        has("did you mean `round-robin`?");
        has("more than one place");
    }

    #[test]
    fn a_host_that_no_request_names_is_refused() {
        let with = |host: &str| format!("[gateway]\n[[gateway.route]]\nservice = \"a\"\nhost = \"{host}\"\n");
        for host in [".osh*p.example", "*", "*.*.example", "shop.example:80", "a@b", "a/b", "a b", ""] {
            assert!(said(&with(host))[0].contains("expected a name without a port"), "{host}");
        }
        for host in ["shop.example", "*.Shop.example", "127.0.0.1", "[::1]"] {
            assert!(read(&with(host)).is_ok(), "{host}");
        }
    }

    #[test]
    fn a_route_that_another_hides_is_refused() {
        let route = "[[gateway.route]]\npath = \"/a\"\nservice = \"a\"\n";
        assert!(said(&format!("[gateway]\n{route}{route}"))[0].contains("says the same as another"));
        let get = "[[gateway.route]]\npath = \"/a\"\nservice = \"a\"\nmethods = [\"GET\"]\n";
        assert!(read(&format!("[gateway]\n{route}{get}")).is_ok());
    }

    #[test]
    fn text_that_is_not_toml_and_an_empty_gateway_are_refused() {
        assert!(said("[gateway\n")[0].contains("this is not TOML"));
        assert!(said("[gateway]\n")[0].contains("has no route"));
        assert!(said("[gateway]\nroute = 1\n")[0].contains("two brackets"));
        assert!(said("gateway = 1\n")[0].contains("expected a table"));
    }
}
