//! A shop that runs: its folder, its processes, and the operator's commands on it.
//!
//! Invariant: [`Shop::end`] leaves nothing behind, and says so if it does; a shop whose test failed is ended all the same.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::built;
use crate::databases::{Database, Row};
use crate::wait::until;

/// How long a command of the operator may take.
const COMMAND_BOUND: Duration = Duration::from_secs(120);
/// The seconds for the payment of an order in tests that do not wait for its end.
const UNHURRIED: u32 = 900;
/// How many lines of each log are shown when a test fails.
const LOG_LINES_SHOWN: usize = 30;
/// The shop's services, and the sink for their mail.
pub(crate) const SERVICES: [&str; 5] = ["users", "products", "orders", "order-history", "mail"];

/// A shop in a temporary folder, with free ports.
pub(crate) struct Shop {
    pub(crate) client: reqwest::Client,
    scratch: TempDir,
    urls: Vec<(String, String)>,
    elsewhere: Elsewhere,
    ended: bool,
}

/// What a shop uses that is not its own: its bus, and databases on servers, by their services.
#[derive(Default)]
pub(crate) struct Elsewhere {
    pub(crate) bus: Option<String>,
    pub(crate) databases: Vec<(&'static str, String)>,
}

impl Elsewhere {
    /// The same as options of `tombolo dev`.
    fn options(&self) -> Vec<String> {
        let databases = self.databases.iter().map(|(service, url)| format!("--database={service}={url}"));
        self.bus.iter().map(|url| format!("--bus={url}")).chain(databases).collect()
    }
}

impl Shop {
    /// Starts one and waits until it is ready.
    pub(crate) async fn start() -> Self {
        Self::start_with(1).await
    }

    /// The same with several replicas of `orders`.
    pub(crate) async fn start_with(replicas_of_orders: u32) -> Self {
        Self::start_as(&manifest(replicas_of_orders, UNHURRIED), Elsewhere::default()).await
    }

    /// The same with so many seconds for the payment of an order.
    pub(crate) async fn start_with_payment_seconds(seconds: u32) -> Self {
        Self::start_as(&manifest(1, seconds), Elsewhere::default()).await
    }

    /// The same on a bus and databases that somebody else runs.
    pub(crate) async fn start_on(elsewhere: Elsewhere) -> Self {
        Self::start_as(&manifest(1, UNHURRIED), elsewhere).await
    }

    /// The shop's own manifest on free ports, with one line changed: how it is found out who asks.
    pub(crate) async fn start_checking(way: &str) -> Self {
        Self::start_as(&own_manifest(way), Elsewhere::default()).await
    }

    async fn start_as(manifest: &str, elsewhere: Elsewhere) -> Self {
        let scratch = tempfile::Builder::new().prefix("tombolo-shop-").tempdir().unwrap();
        fs::write(scratch.path().join("tombolo.toml"), manifest).unwrap();
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
        let mut shop = Self { client, scratch, urls: Vec::new(), elsewhere, ended: false };
        shop.up().await;
        shop
    }

    /// Starts its processes, and waits until they are ready.
    pub(crate) async fn up(&mut self) {
        let place = self.scratch.path().to_str().unwrap().to_owned();
        let options = self.elsewhere.options();
        let options = options.iter().map(String::as_str);
        let dev: Vec<&str> = ["dev", &place, "--detach"].into_iter().chain(options).collect();
        self.tombolo(&dev).await;
        let status = self.status().await;
        self.urls.clear();
        for service in status["services"].as_array().unwrap() {
            for replica in service["replicas"].as_array().unwrap() {
                self.urls.push((text(&service["name"]), text(&replica["url"])));
            }
        }
    }

    /// Ends its processes, and leaves its data.
    pub(crate) async fn down(&self) {
        self.tombolo(&["down"]).await;
        assert_eq!(self.processes(), BTreeSet::new(), "processes are left");
    }

    /// Starts it as one process on the same data, and waits until that is ready.
    pub(crate) async fn up_as_one(&mut self) -> OneProcess {
        let mut program = Command::new(built::binary("shop-one"));
        program.arg(self.scratch.path()).arg("--data").arg(self.data());
        let mut child = program.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.urls.clear();
        while let Some(line) = timeout(COMMAND_BOUND, lines.next_line()).await.unwrap().unwrap() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [service, url] if url.starts_with("http") => self.urls.push((service.into(), url.into())),
                ["ready,", ..] => return OneProcess { child },
                _ => {}
            }
        }
        panic!("the one process ended before it was ready");
    }

    /// The data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// Where the first replica of a service is.
    pub(crate) fn url(&self, service: &str) -> &str {
        self.urls_of(service)[0]
    }

    /// Where all of them are.
    pub(crate) fn urls_of(&self, service: &str) -> Vec<&str> {
        let of = self.urls.iter().filter(|(name, _)| name == service);
        of.map(|(_, url)| url.as_str()).collect()
    }

    /// Where its gateway is, as its manifest says.
    pub(crate) fn gateway(&self) -> String {
        self.said_of_gateway("\nport = ")
    }

    /// Where its operators look.
    pub(crate) fn gateway_admin(&self) -> String {
        self.said_of_gateway("\nadmin_port = ")
    }

    fn said_of_gateway(&self, key: &str) -> String {
        let manifest = fs::read_to_string(self.scratch.path().join("tombolo.toml")).unwrap();
        let (_, gateway) = manifest.split_once("[gateway]").unwrap();
        let (_, port) = gateway.split_once(key).unwrap();
        format!("http://127.0.0.1:{}", port.lines().next().unwrap())
    }

    /// Runs an operator's command on this shop, which must succeed; returns its output.
    pub(crate) async fn tombolo(&self, arguments: &[&str]) -> String {
        let output = self.try_tombolo(arguments).await;
        let (said, error) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "tombolo {arguments:?}: {}: {error}{said}", output.status);
        said
    }

    /// Runs an operator's command on this shop, whatever becomes of it.
    pub(crate) async fn try_tombolo(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(built::binary("tombolo"));
        command.args(arguments).arg("--data").arg(self.data());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(COMMAND_BOUND, command.output()).await;
        output.unwrap_or_else(|_| panic!("tombolo {arguments:?} took too long")).unwrap()
    }

    /// The folder of its manifest.
    pub(crate) fn place(&self) -> &Path {
        self.scratch.path()
    }

    /// `tombolo status --format json`.
    pub(crate) async fn status(&self) -> Value {
        serde_json::from_str(&self.tombolo(&["status", "--format", "json"]).await).unwrap()
    }

    /// The process of a service (its first replica), or of the bus.
    pub(crate) async fn pid(&self, name: &str) -> Option<i32> {
        let status = self.status().await;
        let mut services = status["services"].as_array().unwrap().iter();
        let found = match name {
            "bus" => &status["bus"]["pid"],
            _ => &services.find(|service| service["name"] == name).unwrap()["replicas"][0]["pid"],
        };
        found.as_i64().map(|pid| i32::try_from(pid).unwrap())
    }

    /// The processes of a service, or of the bus, as they run now; asks nobody.
    pub(crate) fn pids_of(&self, name: &str) -> Vec<i32> {
        let program = |pid: &i32| {
            let said = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = said.split('\0');
            let program = Path::new(words.next()?).file_name()?.to_str()?.to_owned();
            if program == "tombolo" { words.next().map(str::to_owned) } else { Some(program) }
        };
        let wanted = if name == "bus" { name.to_owned() } else { format!("shop-{name}") };
        self.processes().into_iter().filter(|pid| program(pid).as_ref() == Some(&wanted)).collect()
    }

    /// Sends a signal to a process of this shop; whether it is still there.
    pub(crate) fn signal(&self, pid: i32, signal: Signal) -> bool {
        self.is_ours(pid) && kill(Pid::from_raw(pid), signal).is_ok()
    }

    /// Kills a service or the bus with SIGKILL, and waits until the runner has it running again.
    pub(crate) async fn kill(&self, name: &str) {
        let pid = self.pid(name).await.unwrap();
        assert!(self.signal(pid, Signal::SIGKILL), "{pid} is not a process of this shop");
        until(&format!("{name} to run again"), async || match self.pid(name).await {
            Some(new) if new != pid => Ok(()),
            other => Err(other),
        })
        .await;
        if name != "bus" {
            self.until_ready(name).await;
        }
    }

    pub(crate) async fn until_ready(&self, service: &str) {
        let url = format!("{}/ready", self.url(service));
        until(&format!("{service} to be ready"), async || match self.client.get(&url).send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            other => Err(other.map(|answer| answer.status())),
        })
        .await;
    }

    /// The database of a service, to read what cannot be seen from outside.
    fn database(&self, service: &str) -> Database {
        let elsewhere = self.elsewhere.databases.iter().find(|(name, _)| *name == service);
        let file = || format!("sqlite://{}?mode=ro", self.data().join(format!("{service}.db")).display());
        Database::at(&elsewhere.map_or_else(file, |(_, url)| url.clone()))
    }

    /// The rows of a query on the database of a service.
    pub(crate) async fn rows<T: Row>(&self, service: &str, query: &str) -> Vec<T> {
        self.database(service).rows(query).await
    }

    /// The rows of a query on the live build of a service's view, whose tables are named in braces.
    pub(crate) async fn view_rows<T: Row>(&self, service: &str, query: &str) -> Vec<T> {
        self.database(service).view_rows(query).await
    }

    /// What a service wrote.
    pub(crate) fn log(&self, service: &str) -> String {
        fs::read_to_string(self.data().join("logs").join(format!("{service}.log"))).unwrap_or_default()
    }

    /// Whether a process says by its folder, its arguments or its environment that it belongs to this shop.
    fn is_ours(&self, pid: i32) -> bool {
        if fs::read_link(format!("/proc/{pid}/cwd"))
            .is_ok_and(|folder| folder.starts_with(self.scratch.path()))
        {
            return true;
        }
        let folder = self.scratch.path().as_os_str().as_encoded_bytes();
        ["cmdline", "environ"].iter().any(|file| {
            let found = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            found.windows(folder.len()).any(|part| part == folder)
        })
    }

    fn processes(&self) -> BTreeSet<i32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|&pid| self.is_ours(pid)).collect()
    }

    /// Ends everything, and asserts that nothing is left.
    pub(crate) async fn end(mut self) {
        assert!(self.processes().len() > SERVICES.len(), "the look for processes finds none while they run");
        self.tombolo(&["down"]).await;
        self.ended = true;
        assert_eq!(self.processes(), BTreeSet::new(), "processes are left");
        let place = self.scratch.path().to_owned();
        for socket in ["control.sock", "bus.sock"] {
            assert!(!self.data().join(socket).exists(), "{socket} is left");
        }
        drop(self);
        assert!(!Path::new(&place).exists(), "the folder is left");
    }
}

/// A shop in one process.
pub(crate) struct OneProcess {
    child: Child,
}

impl OneProcess {
    /// Ends it as Ctrl-C does.
    pub(crate) async fn end(mut self) {
        let pid = self.child.id().unwrap();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGINT).unwrap();
        let ended = timeout(COMMAND_BOUND, self.child.wait()).await.unwrap().unwrap();
        assert!(ended.success(), "{ended}");
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        for name in SERVICES.iter().chain(&["bus"]) {
            let log = self.log(name);
            let lines: Vec<_> = log.lines().rev().take(LOG_LINES_SHOWN).collect();
            eprintln!("--- {name}\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        let mut down = std::process::Command::new(built::binary("tombolo"));
        let ended = down.arg("down").arg("--data").arg(self.data()).status();
        eprintln!("--- ended after a failure: {ended:?}");
    }
}

fn manifest(replicas_of_orders: u32, payment_seconds: u32) -> String {
    let smtp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let service = |name: &str| {
        let replicas = if name == "orders" { replicas_of_orders } else { 1 };
        let database = match name {
            "mail" => "none",
            "products" => "documents",
            _ => "sqlite",
        };
        format!(
            "[services.{name}]\ncommand = [\"{{target}}/shop-{name}\"]\ndatabase = \"{database}\"\nreplicas = {replicas}\n\
             env = {{ SHOP_SMTP = \"{smtp}\", SHOP_PAYMENT_SECONDS = \"{payment_seconds}\" }}\n"
        )
    };
    SERVICES.map(service).join("\n")
}

fn own_manifest(way: &str) -> String {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tombolo.toml");
    let mut manifest = fs::read_to_string(own).unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap();
    // All are held until each has one of its own.
    let held: Vec<_> = (0..8).map(|_| free()).collect();
    let ports = held.iter().map(|listener| listener.local_addr().unwrap().port());
    for (own, port) in ["7101", "7102", "7103", "7104", "7105", "7125", "7100", "7190"].into_iter().zip(ports)
    {
        manifest = manifest.replace(own, &port.to_string());
    }
    let users = held[0].local_addr().unwrap();
    let line = "TOMBOLO_AUTH = \"local\"";
    assert_eq!(manifest.matches(line).count(), 2, "{manifest}");
    manifest.replace(line, &format!("TOMBOLO_AUTH = \"{way}\"\nTOMBOLO_AUTH_ISSUER = \"http://{users}\""))
}

/// A JSON string as text.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}
