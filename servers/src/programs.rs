//! Finds the servers' programs, and installs what is missing where that is allowed. Invariant: an
//! installation starts no system service, and nothing is installed unasked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

use crate::{Context, Engine, Error};

/// The oldest PostgreSQL that the adapters support.
const POSTGRES_MAJOR_MIN: u32 = 15;

/// What invoke-rc.d asks before it starts a service, and the answer that forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_FORBIDS: &str = "#!/bin/sh\nexit 101\n";

/// What a command printed; an error with what it complained of, if it failed.
///
/// # Errors
/// If it cannot be run, fails, or prints what is no UTF-8.
pub fn output(command: &mut Command) -> Result<String, Error> {
    let shown = format!("{command:?}");
    let output = command.output().context(|| format!("run `{shown}`"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(format!("`{shown}` ended with {}: {}", output.status, complaint.trim())));
    }
    String::from_utf8(output.stdout).context(|| format!("read what `{shown}` printed"))
}

/// Whether a command can be run at all and succeeds, silently.
pub fn succeeds(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Where the programs are.
#[derive(Default)]
pub struct Programs {
    /// The folder with `initdb`, `postgres` and `pg_isready`.
    pub(super) postgres: PathBuf,
    /// The server, and what makes its data folder.
    pub(super) mariadb: PathBuf,
    pub(super) mariadb_install: PathBuf,
    pub(super) nats: PathBuf,
    /// The folder with `rabbitmq-server` itself, not the one that becomes another user first.
    pub(super) rabbitmq: PathBuf,
    pub(super) epmd: PathBuf,
    pub(super) redis: PathBuf,
    pub(super) mongodb: PathBuf,
}

/// Whether there is a MongoDB, which is never installed.
pub(super) fn has_mongodb() -> bool {
    on_path("mongod").is_some()
}

/// The programs for servers of these engines. What is missing is installed if that is allowed: by `install`, or by `CI=true`.
///
/// # Errors
/// If something is missing and may not or cannot be installed; it says how to install it.
pub fn find(engines: &[Engine], install: bool) -> Result<Programs, Error> {
    let (found, missing) = look(engines);
    if missing.is_empty() {
        return Ok(found);
    }
    if !may_install(install) {
        return Err(Error::new(advice(&missing)));
    }
    apt(&missing)?;
    let (found, missing) = look(engines);
    if missing.is_empty() { Ok(found) } else { Err(Error::new(advice(&missing))) }
}

fn may_install(asked: bool) -> bool {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    (asked || ci) && geteuid().is_root() && Path::new("/usr/bin/apt-get").exists()
}

/// Whether packages may be fetched that need no root.
#[must_use]
pub fn may_fetch(asked: bool) -> bool {
    asked || std::env::var("CI").is_ok_and(|value| value == "true")
}

/// What builds the client library of Kafka, which all features together have: its own Makefile, with a C and a C++ compiler.
/// Installed if that is allowed, as the programs are.
///
/// # Errors
/// If something is missing and may not or cannot be installed.
pub fn build_tools(install: bool) -> Result<(), Error> {
    commands(&[("make", "make"), ("cc", "gcc"), ("c++", "g++")], install)
}

/// Commands, each with its Debian package, which is installed if that is allowed.
///
/// # Errors
/// If something is missing and may not or cannot be installed.
pub fn commands(wanted: &[(&str, &'static str)], install: bool) -> Result<(), Error> {
    let missing = || {
        let missing = wanted.iter().filter(|(command, _)| on_path(command).is_none());
        missing.map(|(_, package)| *package).collect::<Vec<_>>()
    };
    if !missing().is_empty() && may_install(install) {
        apt(&missing())?;
    }
    let missing = missing().join(" ");
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!(
        "missing on this machine: {missing}\n\
         \x20 Debian, Ubuntu: sudo apt-get install -y --no-install-recommends {missing}\n\
         \x20 elsewhere:      install what these packages are called there"
    )))
}

/// What is there, and the Debian packages of what is not.
fn look(engines: &[Engine]) -> (Programs, Vec<&'static str>) {
    let mut missing = Vec::new();
    let mut find = |engine, package, found: Option<PathBuf>| {
        if found.is_none() && engines.contains(&engine) {
            missing.push(package);
        }
        found.unwrap_or_default()
    };
    let postgres = find(Engine::Postgres, "postgresql", postgres_folder());
    let mariadb = find(Engine::MariaDb, "mariadb-server", on_path("mariadbd"));
    let mariadb_install = find(Engine::MariaDb, "mariadb-server", on_path("mariadb-install-db"));
    let nats = find(Engine::Nats, "nats-server", on_path("nats-server"));
    let redis = find(Engine::Redis, "redis-server", on_path("redis-server"));
    let rabbitmq = find(Engine::RabbitMq, "rabbitmq-server", rabbitmq_folder());
    let epmd = find(Engine::RabbitMq, "rabbitmq-server", on_path("epmd"));
    let mongodb = find(Engine::MongoDb, "mongod", on_path("mongod"));
    missing.dedup();
    (Programs { postgres, mariadb, mariadb_install, nats, redis, rabbitmq, epmd, mongodb }, missing)
}

fn advice(missing: &[&str]) -> String {
    let packages = missing.join(" ");
    format!(
        "missing on this machine: {packages} (PostgreSQL must be {POSTGRES_MAJOR_MIN} or newer)\n\
         \x20 Debian, Ubuntu: sudo apt-get update && sudo apt-get install -y --no-install-recommends {packages}\n\
         \x20                 (as root, `--install` does it without starting system services)\n\
         \x20 macOS:          brew install {}\n\
         \x20 elsewhere:      https://www.postgresql.org/download/, https://mariadb.org/download/, https://nats.io/download/, https://www.rabbitmq.com/docs/download, https://redis.io/downloads/\n\
         or point {} to servers that tests may use",
        packages
            .replace("postgresql", "postgresql@17")
            .replace("mariadb-server", "mariadb")
            .replace("rabbitmq-server", "rabbitmq")
            .replace("redis-server", "redis"),
        Engine::ALL.map(Engine::variable).join(", "),
    )
}

/// The newest PostgreSQL of this machine, if it is new enough.
fn postgres_folder() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for parent in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path().join("bin")));
    }
    let named = output(Command::new("pg_config").arg("--bindir"));
    folders.extend(named.map(|folder| PathBuf::from(folder.trim())));
    folders.extend(on_path("postgres").and_then(|program| Some(program.parent()?.to_path_buf())));
    folders.retain(|folder| ["initdb", "postgres", "pg_isready"].iter().all(|it| folder.join(it).exists()));
    let newest = folders.into_iter().filter_map(|folder| Some((major(&folder)?, folder))).max()?;
    (newest.0 >= POSTGRES_MAJOR_MIN).then_some(newest.1)
}

/// The scripts of RabbitMQ: of Debian, of Homebrew, or next to a program on the path.
fn rabbitmq_folder() -> Option<PathBuf> {
    let installed = fs::read_dir("/usr/lib/rabbitmq/lib").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = installed.map(|entry| entry.path().join("sbin")).collect();
    folders.extend(["/opt/homebrew/opt/rabbitmq/sbin".into(), "/usr/local/opt/rabbitmq/sbin".into()]);
    folders.extend(on_path("rabbitmq-server").and_then(|program| Some(program.parent()?.to_path_buf())));
    folders.into_iter().find(|folder| folder.join("rabbitmq-server").exists())
}

fn major(folder: &Path) -> Option<u32> {
    let printed = output(Command::new(folder.join("postgres")).arg("--version")).ok()?;
    parse_major(&printed)
}

/// Reads `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
fn parse_major(printed: &str) -> Option<u32> {
    let version = printed.split_once("(PostgreSQL) ")?.1;
    let digits = version.split(|letter: char| !letter.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|program| program.is_file())
}

/// Runs a command with the terminal as its output.
fn run(command: &mut Command) -> Result<(), Error> {
    let shown = format!("{command:?}");
    eprintln!("{shown}");
    let status = command.status().context(|| format!("run `{shown}`"))?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("`{shown}` ended with {status}"))) }
}

fn apt(packages: &[&str]) -> Result<(), Error> {
    let _forbidden = ServicesForbidden::set()?;
    run(Command::new("apt-get").arg("update"))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]).args(packages);
    run(install.env("DEBIAN_FRONTEND", "noninteractive"))
}

/// While it lives, installing a package starts no service. An existing policy is left alone.
struct ServicesForbidden {
    ours: bool,
}

impl ServicesForbidden {
    fn set() -> Result<Self, Error> {
        if Path::new(POLICY).exists() {
            return Ok(ServicesForbidden { ours: false });
        }
        let doing = || format!("write {POLICY}, which keeps the installation from starting services");
        fs::write(POLICY, POLICY_FORBIDS).context(doing)?;
        let forbidden = ServicesForbidden { ours: true };
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).context(doing)?;
        Ok(forbidden)
    }
}

impl Drop for ServicesForbidden {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("failed to remove {POLICY}; remove it by hand: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_as_distributions_print_it() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_major("mysqld 8.0"), None);
    }

    #[test]
    fn the_advice_names_the_packages_that_are_missing_and_no_others() {
        let advice = advice(&["nats-server"]);
        assert!(advice.contains("--no-install-recommends nats-server\n"), "{advice}");
        assert!(!advice.contains("postgresql@17"), "{advice}");
    }
}
