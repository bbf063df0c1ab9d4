//! The plan of a run: every process that the manifest asks for, with its program, port and environment settled.
//!
//! Second step of `tombolo dev`, between the manifest and the first process. Invariant: whatever can be found
//! wrong without starting anything (a missing program, a port in use) is found here, before anything starts.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::error::{Context, Error, Result};
use crate::folder::DataFolder;
use crate::manifest::{BUS, Database, GATEWAY, Manifest, Service};
use crate::process::{RUN_VARIABLE, listener_on};

/// Whether a service makes its tables of Tombolo or only checks them; a manifest may say otherwise.
const SCHEMA_VARIABLE: &str = "TOMBOLO_SCHEMA";
/// Says where built binaries are, in place of the folder of `tombolo` itself.
const BIN_DIR_VARIABLE: &str = "TOMBOLO_BIN_DIR";
/// What stands for that folder in a command.
const TARGET: &str = "{target}";
/// The schemes of servers on which each service can have a database of its own name.
const DATABASE_SERVERS: [&str; 6] = ["postgres", "postgresql", "mysql", "mariadb", "mongodb", "mongodb+srv"];
/// The ports that are tried for those who asked for none; below those that the kernel gives to connections.
const FREE_PORTS: std::ops::Range<u16> = 10_240..32_768;

/// Everything that a run starts.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The run's own name.
    pub(crate) run: String,
    /// The manifest.
    pub(crate) manifest: PathBuf,
    /// The bus, for `TOMBOLO_BUS` and `--bus`.
    pub(crate) bus: String,
    /// The bus's process, unless somebody else runs the bus.
    pub(crate) own_bus: Option<Unit>,
    /// The services.
    pub(crate) services: Vec<Unit>,
    /// The door in front of them.
    pub(crate) gateway: Option<Unit>,
    /// Plans what is added while it runs.
    pub(crate) planner: Planner,
}

/// What has one name for the operator: the bus, or a service with all its replicas.
#[derive(Debug)]
pub(crate) struct Unit {
    /// Its name.
    pub(crate) name: String,
    /// The URL of its database.
    pub(crate) database: Option<String>,
    /// Its processes.
    pub(crate) replicas: Vec<Process>,
}

/// One process to be.
#[derive(Debug)]
pub(crate) struct Process {
    /// How people know it: its unit's name, with its number if there are several.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// The folder it works in.
    pub(crate) folder: PathBuf,
    /// What is added to its environment.
    pub(crate) env: Vec<(String, String)>,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// How to know that it is ready.
    pub(crate) probe: Probe,
}

/// How to know that a process is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// `GET /ready` answers 200.
    Http,
    /// It takes connections.
    Connect,
}

impl Process {
    /// Where it can be called.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listen)
    }
}

/// Settles everything that `manifest` leaves open.
pub(crate) fn plan(manifest: &Manifest, folder: &DataFolder) -> Result<Plan> {
    let mut planner = Planner::new(manifest.clone(), folder.clone())?;
    let (bus, own_bus) = match &manifest.bus {
        Some(url) => (url.clone(), None),
        None => planner.bus().map(|(url, unit)| (url, Some(unit)))?,
    };
    planner.bus_url.clone_from(&bus);
    let services = manifest.services.iter().map(|service| planner.service(service)).collect::<Result<_>>()?;
    let gateway = planner.gateway()?;
    let (run, manifest) = (planner.run.clone(), manifest.path.clone());
    Ok(Plan { run, manifest, bus, own_bus, services, gateway, planner })
}

/// A service as somebody sees it who starts nothing.
pub(crate) struct Looked {
    /// Its name.
    pub(crate) name: String,
    /// Its program, or what is wrong with it.
    pub(crate) program: Result<PathBuf>,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// The URL of its database.
    pub(crate) database: Option<String>,
    /// Whether it makes Tombolo's tables there, instead of only checking them.
    pub(crate) makes_tables: bool,
}

/// What `manifest` says of each service.
pub(crate) fn look(manifest: &Manifest, folder: &DataFolder) -> Result<Vec<Looked>> {
    let planner = Planner::new(manifest.clone(), folder.clone())?;
    let looked = manifest.services.iter().map(|service| Looked {
        name: service.name.to_string(),
        program: planner.program(service),
        arguments: planner.arguments(service),
        database: planner.database(service),
        makes_tables: service.env.get(SCHEMA_VARIABLE).is_none_or(|schema| schema == "apply"),
    });
    Ok(looked.collect())
}

/// Settles one process after the other.
#[derive(Debug)]
pub(crate) struct Planner {
    manifest: Manifest,
    folder: DataFolder,
    bin_dir: PathBuf,
    run: String,
    bus_url: String,
    ports: BTreeSet<u16>,
}

impl Planner {
    fn new(manifest: Manifest, folder: DataFolder) -> Result<Self> {
        let fixed = manifest.services.iter().flat_map(|service| fixed_ports(service).into_iter().flatten());
        let door = manifest.gateway.iter().flat_map(|door| std::iter::once(door.listen).chain(door.admin));
        let doors = manifest.listen.into_iter().chain(door).map(|listen| listen.port());
        let ports = fixed.chain(doors).collect();
        let (bin_dir, run) = (bin_dir()?, Uuid::now_v7().to_string());
        Ok(Self { manifest, folder, bin_dir, run, bus_url: String::new(), ports })
    }

    /// One more process of a service that runs, on the manifest's port if that has one for it, else on a free one.
    pub(crate) fn another(&mut self, service: &str, replica: u32) -> Result<Process> {
        let found = self.manifest.services.iter().find(|known| known.name.as_str() == service).cloned();
        let found = found.ok_or_else(|| Error::not_found(format!("there is no service {service:?}")))?;
        if replica > 1 && found.database.as_ref().is_some_and(Database::is_of_one_process) {
            return Err(Error::failed(format!(
                "service {service:?} keeps documents in a file of one process, so it has one replica; give it a database that several share"
            )));
        }
        let (program, database) = (self.program(&found)?, self.database(&found));
        let process = self.replica(&found, replica, &program, database.as_deref())?;
        Ok(Process { name: numbered(service, replica), ..process })
    }

    fn database(&self, service: &Service) -> Option<String> {
        service.database.as_ref().map(|database| match database {
            Database::Sqlite => sqlite_url(&self.folder.database(service.name.as_str())),
            Database::Documents => {
                format!("documents:{}", self.folder.documents(service.name.as_str()).display())
            }
            Database::Url(url) => own_database(url, service.name.as_str()),
        })
    }

    fn bus(&mut self) -> Result<(String, Unit)> {
        let program = std::env::current_exe().context(|| "cannot find the program tombolo itself".into())?;
        let asked = self.manifest.listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let port = match asked.port() {
            0 => self.free_port(asked.ip(), BUS, 1)?,
            port => port,
        };
        let listen = SocketAddr::new(asked.ip(), port);
        check_free(listen, BUS)?;
        let mut arguments = vec!["bus".to_owned(), "--data".into(), self.folder.bus().display().to_string()];
        arguments.extend(["--listen".into(), listen.to_string()]);
        let metrics = SocketAddr::new(asked.ip(), self.free_port(asked.ip(), "bus-metrics", 1)?);
        arguments.extend(["--metrics".into(), metrics.to_string()]);
        if self.manifest.has_doors {
            arguments.extend(["--config".into(), self.manifest.path.display().to_string()]);
        }
        let mut url = format!("tombolo://{listen}");
        if let Some(socket) = self.folder.bus_socket() {
            arguments.extend(["--socket".into(), socket.display().to_string()]);
            url = format!("tombolo+unix://{}", socket.display());
        }
        let process = Process {
            name: BUS.into(),
            program,
            arguments,
            folder: self.folder.path().to_owned(),
            env: vec![(RUN_VARIABLE.into(), self.run.clone())],
            listen,
            probe: Probe::Connect,
        };
        Ok((url, Unit { name: BUS.into(), database: None, replicas: vec![process] }))
    }

    /// The gateway follows this run by its data folder.
    fn gateway(&self) -> Result<Option<Unit>> {
        let Some(settings) = &self.manifest.gateway else { return Ok(None) };
        let program = std::env::current_exe().context(|| "cannot find the program tombolo itself".into())?;
        for listen in std::iter::once(settings.listen).chain(settings.admin) {
            if listen.port() == 0 {
                return Err(Error::usage(
                    "the gateway's port is 0; with `tombolo dev` it has to be known beforehand",
                ));
            }
            check_free(listen, GATEWAY)?;
        }
        let manifest = self.manifest.path.display().to_string();
        let data = self.folder.path().display().to_string();
        let mut arguments = vec![GATEWAY.to_owned(), "--config".into(), manifest];
        arguments.extend(["--data".into(), data, "--bus".into(), self.bus_url.clone()]);
        let process = Process {
            name: GATEWAY.into(),
            program,
            arguments,
            folder: self.manifest.folder().to_owned(),
            env: vec![(RUN_VARIABLE.into(), self.run.clone())],
            listen: settings.listen,
            probe: Probe::Connect,
        };
        Ok(Some(Unit { name: GATEWAY.into(), database: None, replicas: vec![process] }))
    }

    fn service(&mut self, service: &Service) -> Result<Unit> {
        let (program, database) = (self.program(service)?, self.database(service));
        let replicas = (1..=service.replicas)
            .map(|replica| self.replica(service, replica, &program, database.as_deref()))
            .collect::<Result<_>>()?;
        Ok(Unit { name: service.name.to_string(), database, replicas })
    }

    fn replica(
        &mut self,
        service: &Service,
        replica: u32,
        program: &Path,
        database: Option<&str>,
    ) -> Result<Process> {
        let name = match service.replicas {
            1 => service.name.to_string(),
            _ => numbered(service.name.as_str(), replica),
        };
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let port = match fixed_ports(service).and_then(|mut ports| ports.nth(replica as usize - 1)) {
            Some(port) => port,
            None => self.free_port(host, service.name.as_str(), replica)?,
        };
        let listen = SocketAddr::new(host, port);
        check_free(listen, &name)?;
        Ok(Process {
            name,
            program: program.to_owned(),
            arguments: self.arguments(service),
            folder: self.manifest.folder().to_owned(),
            env: self.env(service, replica, listen, database),
            listen,
            probe: Probe::Http,
        })
    }

    fn env(
        &self,
        service: &Service,
        replica: u32,
        listen: SocketAddr,
        database: Option<&str>,
    ) -> Vec<(String, String)> {
        let mut env: Vec<(String, String)> = service.env.clone().into_iter().collect();
        let mut set = |key: &str, value: String| env.push((key.to_owned(), value));
        set("TOMBOLO_SERVICE", service.name.to_string());
        set("TOMBOLO_BUS", self.bus_url.clone());
        set("TOMBOLO_LISTEN", listen.to_string());
        set("TOMBOLO_REPLICA", replica.to_string());
        set("TOMBOLO_PARENT", std::process::id().to_string());
        set(RUN_VARIABLE, self.run.clone());
        if let Some(database) = database {
            set("TOMBOLO_DATABASE", database.to_owned());
        }
        if !service.env.contains_key(SCHEMA_VARIABLE) {
            set(SCHEMA_VARIABLE, "apply".to_owned());
        }
        env
    }

    fn arguments(&self, service: &Service) -> Vec<String> {
        let bin_dir = self.bin_dir.display().to_string();
        service.command[1..].iter().map(|part| part.replace(TARGET, &bin_dir)).collect()
    }

    fn program(&self, service: &Service) -> Result<PathBuf> {
        let command = service.command[0].replace(TARGET, &self.bin_dir.display().to_string());
        let place = format!("{}:{}", self.manifest.path.display(), service.line);
        if !command.contains('/') {
            return in_path(&command).ok_or_else(|| {
                Error::usage(format!(
                    "service {}: there is no program {command:?} in PATH ({place}); install it, or write its path with a '/' in command",
                    service.name
                ))
            });
        }
        let path = self.manifest.folder().join(&command);
        let path = path.canonicalize().unwrap_or(path);
        if is_program(&path) {
            return Ok(path);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let found = if path.exists() { "is not an executable file" } else { "does not exist" };
        Err(Error::usage(format!(
            "service {}: {} {found} ({place}); build it (cargo build --bin {name}), or correct its command",
            service.name,
            path.display()
        )))
    }

    /// A port that nobody has: the same for the same service of the same folder, as long as it stays free.
    fn free_port(&mut self, host: IpAddr, unit: &str, replica: u32) -> Result<u16> {
        let seed =
            Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("{}/{unit}/{replica}", self.folder.key()).as_bytes());
        let count = u128::from(FREE_PORTS.end - FREE_PORTS.start);
        let first = u16::try_from(seed.as_u128() % count).unwrap_or_default() + FREE_PORTS.start;
        let found = (first..FREE_PORTS.end)
            .chain(FREE_PORTS.start..first)
            .find(|port| !self.ports.contains(port) && TcpListener::bind((host, *port)).is_ok());
        let port = found.ok_or_else(|| {
            Error::failed(format!(
                "no port from {} to {} is free for {unit}",
                FREE_PORTS.start, FREE_PORTS.end
            ))
        })?;
        self.ports.insert(port);
        Ok(port)
    }
}

/// How people know one of several processes of a service.
fn numbered(service: &str, replica: u32) -> String {
    format!("{service}.{replica}")
}

fn fixed_ports(service: &Service) -> Option<impl Iterator<Item = u16> + use<>> {
    service.port.map(|port| (port..).take(service.replicas as usize))
}

/// Says who has a port that is not free.
pub(crate) fn check_free(listen: SocketAddr, who: &str) -> Result<()> {
    let Err(error) = TcpListener::bind(listen) else { return Ok(()) };
    if error.kind() != std::io::ErrorKind::AddrInUse {
        return Err(error).context(|| format!("{who} cannot listen on {listen}"));
    }
    let holder = match listener_on(listen.port()) {
        Some((pid, name)) => format!("{name} (pid {pid})"),
        None => "another process".into(),
    };
    Err(Error::failed(format!(
        "{who} cannot listen on {listen}: port {} is in use by {holder}; end that process, or choose another port",
        listen.port()
    )))
}

fn bin_dir() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(BIN_DIR_VARIABLE) {
        return std::path::absolute(folder).context(|| format!("cannot resolve {BIN_DIR_VARIABLE}"));
    }
    let own = std::env::current_exe().context(|| "cannot find the program tombolo itself".into())?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

fn in_path(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(command)).find(|file| is_program(file))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// `url`, or if it names only a server, the database on it that is named after the service.
fn own_database(url: &str, service: &str) -> String {
    let (place, query) = url.split_once('?').map_or((url, None), |(place, query)| (place, Some(query)));
    let Some((scheme, server)) = place.split_once("://") else { return url.to_owned() };
    let names_server_only = server.split_once('/').is_none_or(|(_, name)| name.is_empty());
    let is_named_otherwise =
        query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("dbname=")));
    if !DATABASE_SERVERS.contains(&scheme) || !names_server_only || is_named_otherwise {
        return url.to_owned();
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{scheme}://{}/{}{query}", server.trim_end_matches('/'), service.replace('-', "_"))
}

/// The URL of a SQLite file, which is made if it is not there.
fn sqlite_url(path: &Path) -> String {
    let mut url = String::from("sqlite://");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'%' | b'?' | b'#' | b' ' | 0x7f.. => url.push_str(&format!("%{byte:02X}")),
            _ => url.push(char::from(*byte)),
        }
    }
    url + "?mode=rwc"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Elsewhere;

    fn planned(text: &str, bus: Option<&str>) -> Result<Plan> {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("tombolo.toml"), text).unwrap();
        let elsewhere = Elsewhere { bus: bus.map(str::to_owned), databases: Vec::new() };
        let manifest = Manifest::read(scratch.path()).unwrap().with(&elsewhere).unwrap();
        let folder = DataFolder::make(&scratch.path().join(".tombolo")).unwrap();
        plan(&manifest, &folder)
    }

    fn value<'p>(process: &'p Process, key: &str) -> Option<&'p str> {
        process.env.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    #[test]
    fn each_replica_is_told_who_and_where_it_is() {
        let text = "[services.a]\ncommand = [\"sh\", \"-c\", \"x\"]\ndatabase = \"sqlite\"\nreplicas = 2\n";
        let plan = planned(text, None).unwrap();
        let [first, second] = &plan.services[0].replicas[..] else { panic!("expected two replicas") };
        assert_eq!((&*first.name, &*second.name), ("a.1", "a.2"));
        assert_ne!(first.listen, second.listen);
        assert_eq!(value(first, "TOMBOLO_SERVICE"), Some("a"));
        assert_eq!(value(second, "TOMBOLO_REPLICA"), Some("2"));
        assert_eq!(value(second, "TOMBOLO_LISTEN"), Some(&*second.listen.to_string()));
        assert_eq!(value(first, "TOMBOLO_BUS"), Some(&*plan.bus));
        let database = value(first, "TOMBOLO_DATABASE").unwrap();
        assert!(
            database.starts_with("sqlite:///") && database.ends_with("/.tombolo/a.db?mode=rwc"),
            "{database}"
        );
        assert_eq!(first.arguments, ["-c", "x"]);
        assert!(plan.own_bus.is_some());
    }

    #[test]
    fn documents_are_a_file_in_the_data_folder() {
        let text = "[services.a]\ncommand = [\"sh\"]\ndatabase = \"documents\"\n";
        let plan = planned(text, None).unwrap();
        let database = value(&plan.services[0].replicas[0], "TOMBOLO_DATABASE").unwrap();
        assert!(database.starts_with("documents:/") && database.ends_with("/.tombolo/a.redb"), "{database}");
    }

    #[test]
    fn a_bus_that_somebody_else_runs_is_not_started() {
        let plan =
            planned("[services.a]\ncommand = [\"sh\"]\ndatabase = \"none\"\n", Some("nats://host")).unwrap();
        assert!(plan.own_bus.is_none());
        assert_eq!(value(&plan.services[0].replicas[0], "TOMBOLO_BUS"), Some("nats://host"));
        assert_eq!(value(&plan.services[0].replicas[0], "TOMBOLO_DATABASE"), None);
    }

    #[test]
    fn a_missing_program_names_its_service_its_path_and_how_to_build_it() {
        let said = planned("[services.users]\ncommand = [\"./bin/users\"]\n", None).unwrap_err().message;
        assert!(said.starts_with("service users: ") && said.contains("bin/users does not exist"), "{said}");
        assert!(said.contains("tombolo.toml:2") && said.contains("cargo build --bin users"), "{said}");
        let said = planned("[services.users]\ncommand = [\"no-such-program\"]\n", None).unwrap_err().message;
        assert!(said.contains("no program \"no-such-program\" in PATH"), "{said}");
    }

    #[test]
    fn a_port_in_use_names_its_holder() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let text = format!("[services.a]\ncommand = [\"sh\"]\nport = {port}\n");
        let said = planned(&text, None).unwrap_err().message;
        assert!(said.contains(&format!("port {port} is in use by")), "{said}");
        assert!(said.contains(&format!("(pid {})", std::process::id())), "{said}");
    }

    #[test]
    fn on_a_server_without_a_database_each_service_has_one_of_its_own_name() {
        for (url, own) in [
            ("postgres://shop:x@db:5432", "postgres://shop:x@db:5432/order_history"),
            ("postgres://db/", "postgres://db/order_history"),
            ("mysql://db?ssl-mode=disabled", "mysql://db/order_history?ssl-mode=disabled"),
            ("mongodb://a:1,b:2/?replicaSet=rs0", "mongodb://a:1,b:2/order_history?replicaSet=rs0"),
            ("postgres://db/shop", "postgres://db/shop"),
            ("postgres://db?dbname=shop", "postgres://db?dbname=shop"),
            ("mongodb://db", "mongodb://db/order_history"),
            ("sqlite:orders.db", "sqlite:orders.db"),
        ] {
            assert_eq!(own_database(url, "order-history"), own);
        }
    }

    #[test]
    fn a_sqlite_path_with_odd_letters_becomes_a_url() {
        assert_eq!(sqlite_url(Path::new("/a b/50%?#.db")), "sqlite:///a%20b/50%25%3F%23.db?mode=rwc");
    }
}
