//! The manifest, `tombolo.toml`: which services a system consists of and how each is started.
//!
//! The first step of `tombolo dev`. Invariant: what leaves here is complete and checked; every mistake of the
//! text is reported at once, with its place, and no key is passed over.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tombolo_event::ServiceName;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::arguments::Elsewhere;
use crate::error::{Context, Error, Result};
use crate::mistake::{Mistake, nearest, show};

/// The manifest's name in its folder.
pub(crate) const FILE_NAME: &str = "tombolo.toml";
/// The name under which the operator's commands know the bus, which no service may have.
pub(crate) const BUS: &str = "bus";
/// The name under which they know the gateway.
pub(crate) const GATEWAY: &str = "gateway";
/// The most replicas of one service.
pub(crate) const REPLICAS_MAX: u32 = 64;
/// What the runner tells each service by itself (`TOMBOLO_…`), and what a manifest therefore may not set.
pub(crate) const RESERVED_ENV: [&str; 7] = [
    "TOMBOLO_SERVICE",
    "TOMBOLO_BUS",
    "TOMBOLO_LISTEN",
    "TOMBOLO_DATABASE",
    "TOMBOLO_REPLICA",
    "TOMBOLO_PARENT",
    "TOMBOLO_RUN",
];

/// The keys of `[bus]` that the bus itself reads.
const DOORS: [&str; 4] = ["credential", "plain", "push", "webhooks"];

/// A manifest as its author wrote it, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// The file.
    pub(crate) path: PathBuf,
    /// The bus that somebody else runs; without one the runner runs its own.
    pub(crate) bus: Option<String>,
    /// Where the runner's own bus listens; any free port if absent or 0.
    pub(crate) listen: Option<SocketAddr>,
    /// Whether it says who may call the runner's own bus, and whom it tells (`tombolo bus --config`).
    pub(crate) has_doors: bool,
    /// The services, in the order of the file.
    pub(crate) services: Vec<Service>,
    /// The door in front of them, if there is one.
    pub(crate) gateway: Option<tombolo_gateway::Settings>,
}

/// One service of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its name.
    pub(crate) name: ServiceName,
    /// The program, relative to the manifest's folder or in `PATH`, and its arguments.
    pub(crate) command: Vec<String>,
    /// The port of its first replica; the others count up from it.
    pub(crate) port: Option<u16>,
    /// Its database: a SQLite file if the manifest says nothing; `"none"` if it has none.
    pub(crate) database: Option<Database>,
    /// How many processes of it run.
    pub(crate) replicas: u32,
    /// What is added to the environment of its processes.
    pub(crate) env: BTreeMap<String, String>,
    /// The line of `command`, for messages.
    pub(crate) line: usize,
}

/// Where a service keeps its own data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Database {
    /// A SQLite file in the data folder, named after the service.
    Sqlite,
    /// A file of documents in the data folder, named after the service. It belongs to one process.
    Documents,
    /// A server that somebody else runs.
    Url(String),
}

impl Database {
    /// Reads `"sqlite"`, `"documents"`, `"none"` (which is none) or a URL; the error is the word that was probably meant, if there is one.
    fn parse(text: &str) -> std::result::Result<Option<Self>, Option<&'static str>> {
        match text {
            "sqlite" => return Ok(Some(Self::Sqlite)),
            "documents" => return Ok(Some(Self::Documents)),
            "none" => return Ok(None),
            _ => {}
        }
        let (scheme, rest) = text.split_once(':').unwrap_or_default();
        let lettered = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let is_file = matches!(scheme, "sqlite" | "documents") && !rest.is_empty();
        if lettered && (rest.len() > 2 && rest.starts_with("//") || is_file) {
            return Ok(Some(Self::Url(text.to_owned())));
        }
        Err(nearest(text, ["sqlite", "documents", "none"]))
    }

    /// Whether a second process of the service could not open it.
    pub(crate) fn is_of_one_process(&self) -> bool {
        match self {
            Self::Sqlite => false,
            Self::Documents => true,
            Self::Url(url) => url.starts_with("documents:"),
        }
    }
}

impl Manifest {
    /// Reads the manifest at `place`: the file itself, or the folder that holds one.
    pub(crate) fn read(place: &Path) -> Result<Self> {
        let path = if place.is_dir() { place.join(FILE_NAME) } else { place.to_owned() };
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Error::usage(format!(
                "cannot read {}: {error}; give the folder that holds a {FILE_NAME}: tombolo dev DIR",
                path.display()
            ))
        })?;
        let whole = path.canonicalize().context(|| format!("cannot resolve {}", path.display()))?;
        Self::parse(&whole, &text).map_err(|mistakes| Error::usage(show(&path, &text, mistakes)))
    }

    /// The same with what the command line says instead.
    pub(crate) fn with(mut self, elsewhere: &Elsewhere) -> Result<Self> {
        if let Some(bus) = &elsewhere.bus {
            self.bus = Some(bus.clone());
        }
        for (name, database) in &elsewhere.databases {
            let database = Database::parse(database).map_err(|_| {
                Error::usage(format!(
                    "--database {name}=… is none; expected {name}=sqlite, {name}=none, or a URL such as {name}=postgres://user@host"
                ))
            })?;
            let names: Vec<_> = self.services.iter().map(|service| service.name.to_string()).collect();
            let service = self.services.iter_mut().find(|service| service.name.as_str() == name);
            let unknown = || {
                Error::usage(format!(
                    "--database {name}=…: there is no service {name:?}; there are: {}",
                    names.join(", ")
                ))
            };
            service.ok_or_else(unknown)?.database = database;
        }
        Ok(self)
    }

    /// The folder that relative paths start from.
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn parse(path: &Path, text: &str) -> std::result::Result<Self, Vec<Mistake>> {
        let document = DeTable::parse(text).map_err(|error| vec![syntax(&error, text)])?;
        let mut reader = Reader { text, mistakes: Vec::new() };
        let manifest = reader.manifest(path, &document);
        if reader.mistakes.is_empty() { Ok(manifest) } else { Err(reader.mistakes) }
    }
}

fn syntax(error: &toml::de::Error, text: &str) -> Mistake {
    let at = error.span().unwrap_or(text.len()..text.len());
    Mistake { at, message: format!("this is not TOML: {}", error.message()), advice: String::new() }
}

type Value<'t> = Spanned<DeValue<'t>>;

/// Walks the document and collects what is wrong with it.
struct Reader<'t> {
    text: &'t str,
    mistakes: Vec<Mistake>,
}

impl<'t> Reader<'t> {
    fn wrong(&mut self, at: Range<usize>, message: impl Into<String>, advice: impl Into<String>) {
        self.mistakes.push(Mistake { at, message: message.into(), advice: advice.into() });
    }

    fn manifest(&mut self, path: &Path, document: &Spanned<DeTable<'t>>) -> Manifest {
        let root = document.get_ref();
        self.only_known(root, "the manifest", &["bus", "services", GATEWAY]);
        let (bus, listen) = root.get("bus").map(|bus| self.bus(bus)).unwrap_or_default();
        let has_doors =
            root.get("bus").is_some_and(|bus| DOORS.iter().any(|key| bus.get_ref().get(*key).is_some()));
        let services = match root.get("services") {
            Some(services) => self.services(services),
            None => {
                let advice = "add one: [services.NAME] with command = [\"path/to/binary\"]";
                self.wrong(0..0, "there is no service; expected at least one", advice);
                Vec::new()
            }
        };
        let gateway = self.gateway(path, &services);
        Manifest { path: path.to_owned(), bus, listen, has_doors, services, gateway }
    }

    fn gateway(&mut self, path: &Path, services: &[Service]) -> Option<tombolo_gateway::Settings> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let settings = match tombolo_gateway::Settings::read(self.text, folder) {
            Ok(settings) => settings?,
            Err(mistakes) => {
                mistakes.into_iter().for_each(|it| self.wrong(it.at, it.message, it.advice));
                return None;
            }
        };
        let names: Vec<_> = services.iter().map(|service| service.name.as_str()).collect();
        for name in settings.services().filter(|name| !names.contains(name)) {
            let at = self.text.find(&format!("service = \"{name}\"")).unwrap_or_default();
            let advice = nearest(name, names.iter().copied()).map(|it| format!("did you mean {it:?}?"));
            let message = format!("a route leads to the service {name:?}; there are: {}", names.join(", "));
            self.wrong(at..at, message, advice.unwrap_or_default());
        }
        if names.contains(&GATEWAY) {
            self.wrong(
                0..0,
                "a service is named \"gateway\"",
                "the gateway itself has that name; choose another",
            );
        }
        Some(settings)
    }

    fn bus(&mut self, value: &Value<'t>) -> (Option<String>, Option<SocketAddr>) {
        let Some(table) = self.table(value, "[bus]") else { return (None, None) };
        self.only_known(table, "[bus]", &[&["url", "listen"][..], &DOORS].concat());
        if let (Some(_), Some(listen)) = (table.get("url"), table.get("listen")) {
            let advice = "remove one: the bus at url is run by somebody else, and listens where they say";
            self.wrong(listen.span(), "[bus] has a url and an address to listen on", advice);
        }
        let url = table.get("url").and_then(|url| self.string(url, "url"));
        (url, table.get("listen").and_then(|listen| self.listen(listen)))
    }

    fn listen(&mut self, listen: &Value<'t>) -> Option<SocketAddr> {
        let text = self.string(listen, "listen")?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            let message = format!("listen is {text:?}; expected an IP address and a port");
            self.wrong(listen.span(), message, "such as \"127.0.0.1:7400\"; port 0 takes any that is free");
        }
        parsed
    }

    fn services(&mut self, value: &Value<'t>) -> Vec<Service> {
        let Some(table) = self.table(value, "services") else { return Vec::new() };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let read: Vec<_> = entries.into_iter().map(|(name, value)| self.service(name, value)).collect();
        let services: Vec<_> = read.into_iter().flatten().collect();
        self.ports_differ(table, &services);
        services
    }

    fn service(&mut self, name: &Spanned<std::borrow::Cow<'t, str>>, value: &Value<'t>) -> Option<Service> {
        let section = format!("[services.{}]", name.get_ref());
        let table = self.table(value, &section)?;
        self.only_known(table, &section, &["command", "port", "database", "replicas", "env"]);
        let checked = self.service_name(name);
        let command = match table.get("command") {
            Some(command) => self.command(command),
            None => {
                self.wrong(
                    name.span(),
                    format!("{section} has no command"),
                    "add command = [\"path/to/binary\"]",
                );
                None
            }
        };
        let port = table.get("port").and_then(|port| self.number(port, "port", 1, u32::from(u16::MAX)));
        let database = match table.get("database") {
            Some(database) => self.database(database),
            None => Some(Database::Sqlite),
        };
        let replicas = table.get("replicas").map(|count| self.replicas(count, &section, database.as_ref()));
        Some(Service {
            name: checked?,
            line: table.get("command").map_or(0, |command| self.line(command.span().start)),
            command: command?,
            port: port.and_then(|port| u16::try_from(port).ok()),
            database,
            replicas: replicas.unwrap_or(1),
            env: table.get("env").map(|env| self.env(env)).unwrap_or_default(),
        })
    }

    fn replicas(&mut self, value: &Value<'t>, section: &str, database: Option<&Database>) -> u32 {
        let count = self.number(value, "replicas", 1, REPLICAS_MAX).unwrap_or(1);
        if count > 1 && database.is_some_and(Database::is_of_one_process) {
            let message = format!("{section} has {count} replicas on documents, a file of one process");
            let advice = "set it to 1, or give the service a database that several processes share";
            self.wrong(value.span(), message, advice);
        }
        count
    }

    fn service_name(&mut self, name: &Spanned<std::borrow::Cow<'t, str>>) -> Option<ServiceName> {
        if name.get_ref() == BUS {
            self.wrong(
                name.span(),
                "a service is named \"bus\"",
                "the bus itself has that name; choose another",
            );
            return None;
        }
        ServiceName::new(name.get_ref().clone())
            .map_err(|error| self.wrong(name.span(), error.to_string(), "choose another name"))
            .ok()
    }

    fn command(&mut self, value: &Value<'t>) -> Option<Vec<String>> {
        let advice = "write it as a list: [\"path/to/binary\", \"argument\"]";
        let Some(parts) = value.get_ref().as_array() else {
            self.wrong(value.span(), format!("command is {}; expected a list", found(value)), advice);
            return None;
        };
        if parts.is_empty() {
            self.wrong(value.span(), "command is empty; expected a program and its arguments", advice);
            return None;
        }
        parts.iter().map(|part| self.string(part, "each part of command")).collect()
    }

    fn database(&mut self, value: &Value<'t>) -> Option<Database> {
        let text = self.string(value, "database")?;
        let advice = match Database::parse(&text) {
            Ok(database) => return database,
            Err(Some("sqlite")) => "did you mean \"sqlite\"?",
            Err(Some("documents")) => "did you mean \"documents\"?",
            Err(Some(_)) => "did you mean \"none\"?",
            Err(None) => {
                "write \"sqlite\" or \"documents\" for a file in the data folder, \"none\", or \"postgres://user@host/name\""
            }
        };
        self.wrong(value.span(), format!("database is {text:?}, which is not a URL"), advice);
        None
    }

    fn env(&mut self, value: &Value<'t>) -> BTreeMap<String, String> {
        let Some(table) = self.table(value, "env") else { return BTreeMap::new() };
        let mut env = BTreeMap::new();
        for (key, value) in table {
            if RESERVED_ENV.contains(&&**key.get_ref()) {
                let message = format!("{} is set by the runner", key.get_ref());
                self.wrong(key.span(), message, "remove it; use port, database or replicas instead");
            }
            if let Some(text) = self.string(value, "a value of env") {
                env.insert(key.get_ref().to_string(), text);
            }
        }
        env
    }

    /// Two services on one port would fail at the second's start, with a message that names neither.
    fn ports_differ(&mut self, table: &DeTable<'t>, services: &[Service]) {
        let mut taken: BTreeMap<u32, &ServiceName> = BTreeMap::new();
        for service in services {
            let Some(port) = service.port else { continue };
            for port in (u32::from(port)..).take(service.replicas as usize) {
                let Some(other) = taken.insert(port, &service.name) else { continue };
                let place = table.get(service.name.as_str()).and_then(|value| value.get_ref().get("port"));
                let at = place.map_or(0..0, Spanned::span);
                let message = format!("port {port} of {} is also {other}'s", service.name);
                self.wrong(at, message, "choose another; replicas count up from the first port");
                break;
            }
        }
    }

    fn only_known(&mut self, table: &DeTable<'t>, section: &str, known: &[&'static str]) {
        for key in table.keys().filter(|key| !known.contains(&&**key.get_ref())) {
            let advice = match nearest(key.get_ref(), known.iter().copied()) {
                Some(word) => format!("did you mean `{word}`?"),
                None => String::new(),
            };
            let message =
                format!("unknown key `{}` in {section}; expected {}", key.get_ref(), known.join(", "));
            self.wrong(key.span(), message, advice);
        }
    }

    fn table<'v>(&mut self, value: &'v Value<'t>, what: &str) -> Option<&'v DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong(value.span(), format!("{what} is {}; expected a table", found(value)), "");
        }
        table
    }

    fn string(&mut self, value: &Value<'t>, what: &str) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.wrong(
                value.span(),
                format!("{what} is {}; expected a string", found(value)),
                "put it in quotes",
            );
        }
        text
    }

    fn number(&mut self, value: &Value<'t>, what: &str, min: u32, max: u32) -> Option<u32> {
        let integer = value.get_ref().as_integer();
        let number = integer.and_then(|integer| u32::from_str_radix(integer.as_str(), integer.radix()).ok());
        let within = number.filter(|number| (min..=max).contains(number));
        if within.is_none() {
            let message = format!("{what} is {}; expected a number from {min} to {max}", found(value));
            self.wrong(value.span(), message, "");
        }
        within
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }
}

/// What a value is, for people.
fn found(value: &Value<'_>) -> String {
    match value.get_ref() {
        DeValue::String(text) => format!("the string {text:?}"),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => format!("the time {time}"),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<Manifest, String> {
        Manifest::parse(Path::new("/shop/tombolo.toml"), text)
            .map_err(|mistakes| show(Path::new("tombolo.toml"), text, mistakes))
    }

    fn refusal(text: &str) -> String {
        parse(text).unwrap_err()
    }

    #[test]
    fn a_whole_manifest_is_read_in_its_order() {
        let manifest = parse(
            "[bus]\nlisten = \"127.0.0.1:7400\"\n[services.users]\ncommand = [\"../users\", \"-v\"]\nport = 7101\n\
             database = \"sqlite\"\nenv = { KEY = \"value\" }\n[services.orders]\ncommand = [\"orders\"]\n\
             database = \"postgres://shop@db/orders\"\nreplicas = 3\n",
        )
        .unwrap();
        assert_eq!(manifest.listen, Some("127.0.0.1:7400".parse().unwrap()));
        let names: Vec<_> = manifest.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["users", "orders"]);
        let users = &manifest.services[0];
        assert_eq!(users.command, ["../users", "-v"]);
        assert_eq!((users.port, users.replicas, users.line), (Some(7101), 1, 4));
        assert_eq!(users.database, Some(Database::Sqlite));
        assert_eq!(users.env["KEY"], "value");
        let orders = &manifest.services[1];
        assert_eq!((orders.port, orders.replicas), (None, 3));
        assert_eq!(orders.database, Some(Database::Url("postgres://shop@db/orders".into())));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        assert_eq!(
            refusal("[services.users]\ncomand = [\"x\"]\ncommand = [\"x\"]\n"),
            "tombolo.toml:2:1: unknown key `comand` in [services.users]; expected command, port, database, replicas, env\n  \
             |\n2 | comand = [\"x\"]\n  | ^^^^^^ did you mean `command`?"
        );
        assert!(refusal("[service.users]\ncommand = [\"x\"]\n").contains("did you mean `services`?"));
    }

    #[test]
    fn every_mistake_is_reported_at_once_in_the_order_of_the_file() {
        let text = "[services.users]\nport = 70000\ncommand = \"users\"\n[services.Orders]\ncommand = []\nreplicas = \"two\"\n";
        let said = refusal(text);
        let heads: Vec<_> = said.lines().filter(|line| line.starts_with("tombolo.toml:")).collect();
        assert_eq!(
            heads,
            [
                "tombolo.toml:2:8: port is the number 70000; expected a number from 1 to 65535",
                "tombolo.toml:3:11: command is the string \"users\"; expected a list",
                "tombolo.toml:4:11: service name \"Orders\" contains 'O'; expected lowercase letters, digits and '-', starting with a letter, at most 63 bytes",
                "tombolo.toml:5:11: command is empty; expected a program and its arguments",
                "tombolo.toml:6:12: replicas is the string \"two\"; expected a number from 1 to 64",
            ]
        );
    }

    #[test]
    fn text_that_is_not_toml_is_shown_at_its_place() {
        let said = refusal("[services.users]\ncommand = [\"x\"\nport = 1\n");
        assert!(said.starts_with("tombolo.toml:3:"), "{said}");
        assert!(said.contains("this is not TOML"), "{said}");
        assert!(said.contains("3 | port = 1"), "{said}");
    }

    #[test]
    fn a_database_that_is_no_url_is_refused() {
        let with = |database: &str| format!("[services.a]\ncommand = [\"x\"]\ndatabase = \"{database}\"\n");
        let said = refusal(&with("postgres"));
        assert!(said.contains("tombolo.toml:3:12: database is \"postgres\", which is not a URL"), "{said}");
        assert!(refusal(&with("sqlte")).contains("did you mean \"sqlite\"?"));
        assert!(refusal(&with("postgres:/db")).contains("not a URL"));
        assert_eq!(parse(&with("none")).unwrap().services[0].database, None);
        assert!(refusal(&with("document")).contains("did you mean \"documents\"?"));
        assert_eq!(parse(&with("documents")).unwrap().services[0].database, Some(Database::Documents));
        assert!(parse(&with("documents:/srv/a.redb")).is_ok());
        assert!(parse(&with("mongodb+srv://db/a")).is_ok());
        assert!(parse(&with("sqlite::memory:")).is_ok());
    }

    #[test]
    fn a_bus_elsewhere_is_named_by_its_url_and_listens_nowhere() {
        let with = |bus: &str| format!("[bus]\n{bus}\n[services.a]\ncommand = [\"x\"]\n");
        let manifest = parse(&with("url = \"nats://host/shop\"")).unwrap();
        assert_eq!((manifest.bus.as_deref(), manifest.listen), (Some("nats://host/shop"), None));
        let said = refusal(&with("url = \"nats://host\"\nlisten = \"127.0.0.1:7400\""));
        assert!(said.contains("tombolo.toml:3:10: [bus] has a url and an address"), "{said}");
        assert!(refusal(&with("ulr = \"nats://host\"")).contains("did you mean `url`?"));
    }

    #[test]
    fn the_command_line_comes_before_the_manifest() {
        let text = "[bus]\nurl = \"nats://host\"\n[services.a]\ncommand = [\"x\"]\n[services.b]\ncommand = [\"x\"]\n";
        let with = |databases: &[(&str, &str)]| {
            let databases = databases.iter().map(|(name, url)| ((*name).to_owned(), (*url).to_owned()));
            let elsewhere = Elsewhere { bus: Some("redis://host".into()), databases: databases.collect() };
            parse(text).unwrap().with(&elsewhere)
        };
        let manifest = with(&[("a", "postgres://db"), ("b", "none")]).unwrap();
        assert_eq!(manifest.bus.as_deref(), Some("redis://host"));
        let databases: Vec<_> = manifest.services.iter().map(|service| service.database.clone()).collect();
        assert_eq!(databases, [Some(Database::Url("postgres://db".into())), None]);
        let said = with(&[("c", "sqlite")]).unwrap_err().message;
        assert!(said.contains("no service \"c\"; there are: a, b"), "{said}");
        let said = with(&[("a", "postgres:secret")]).unwrap_err().message;
        assert!(said.contains("a=postgres://user@host") && !said.contains("secret"), "{said}");
    }

    #[test]
    fn several_replicas_on_a_file_of_one_process_are_refused() {
        for database in ["documents", "documents:/srv/a.redb"] {
            let text = format!("[services.a]\ncommand = [\"x\"]\ndatabase = \"{database}\"\nreplicas = 2\n");
            let said = refusal(&text);
            assert!(
                said.starts_with("tombolo.toml:4:12: [services.a] has 2 replicas on documents"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_gateway_leads_to_services_that_there_are() {
        let services = "[services.orders]\ncommand = [\"x\"]\n";
        let with = |gateway: &str| format!("{services}{gateway}");
        let route = "[gateway]\nport = 7100\n[[gateway.route]]\npath = \"/orders\"\nservice = \"orders\"\n";
        let gateway = parse(&with(route)).unwrap().gateway.unwrap();
        assert_eq!(gateway.services().collect::<Vec<_>>(), ["orders"]);
        let said = refusal(&with(&route.replace("\"orders\"", "\"order\"")));
        assert!(
            said.contains("tombolo.toml:7:1: a route leads to the service \"order\"; there are: orders"),
            "{said}"
        );
        assert!(said.contains("did you mean \"orders\"?"), "{said}");
        assert!(refusal(&with("[gateway]\nprot = 1\n")).contains("did you mean `port`?"));
        assert!(
            refusal("[services.gateway]\ncommand = [\"x\"]\n[[gateway.route]]\nservice = \"gateway\"")
                .contains("choose another")
        );
        assert_eq!(parse(services).unwrap().gateway, None);
    }

    #[test]
    fn two_services_on_one_port_are_refused() {
        let text = "[services.a]\ncommand = [\"x\"]\nport = 7000\nreplicas = 2\n[services.b]\ncommand = [\"x\"]\nport = 7001\n";
        assert!(
            refusal(text).starts_with("tombolo.toml:7:8: port 7001 of b is also a's"),
            "{}",
            refusal(text)
        );
    }

    #[test]
    fn what_the_runner_tells_a_service_cannot_be_set_by_hand() {
        let said = refusal("[services.a]\ncommand = [\"x\"]\nenv = { TOMBOLO_BUS = \"y\" }\n");
        assert!(said.contains("TOMBOLO_BUS is set by the runner"), "{said}");
    }

    #[test]
    fn a_service_named_bus_and_an_empty_manifest_are_refused() {
        assert!(refusal("[services.bus]\ncommand = [\"x\"]\n").contains("the bus itself has that name"));
        assert!(refusal("").contains("there is no service"));
        assert!(
            refusal("[bus]\nlisten = \"localhost\"\n[services.a]\ncommand = [\"x\"]")
                .contains("tombolo.toml:2:10")
        );
    }
}
