//! Finds the servers' programs, and installs what is missing where that is allowed. Invariant: an
//! installation starts no system service, and nothing is installed unasked.

use super::{
    MARIADB_VARIABLE, NATS_VARIABLE, POSTGRES_VARIABLE, RABBITMQ_VARIABLE, REDIS_VARIABLE, VARIABLES,
};
use crate::chore;
use crate::error::{Context, Error};
use crate::workspace::output;
use nix::unistd::geteuid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest PostgreSQL that the adapters support.
const POSTGRES_MAJOR_MIN: u32 = 15;

/// What invoke-rc.d asks before it starts a service, and the answer that forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_FORBIDS: &str = "#!/bin/sh\nexit 101\n";

/// Where the programs are.
#[derive(Default)]
pub(super) struct Programs {
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
}

/// The programs for the servers named by `variables`.
pub(super) fn programs(variables: &[&str], install: bool) -> Result<Programs, Error> {
    let (found, missing) = look(variables);
    if missing.is_empty() {
        return Ok(found);
    }
    if !may_install(install) {
        return Err(Error::new(advice(&missing)));
    }
    apt(&missing)?;
    let (found, missing) = look(variables);
    if missing.is_empty() { Ok(found) } else { Err(Error::new(advice(&missing))) }
}

fn may_install(asked: bool) -> bool {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    (asked || ci) && geteuid().is_root() && Path::new("/usr/bin/apt-get").exists()
}

/// What builds the client library of Kafka, which all features together have: its own Makefile, with a C and a C++ compiler.
pub(crate) fn build_tools(install: bool) -> Result<(), Error> {
    let missing = || {
        let tools = [("make", "make"), ("cc", "gcc"), ("c++", "g++")];
        let missing = tools.into_iter().filter(|(tool, _)| on_path(tool).is_none());
        missing.map(|(_, package)| package).collect::<Vec<_>>()
    };
    if !missing().is_empty() && may_install(install) {
        apt(&missing())?;
    }
    let missing = missing().join(" ");
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!(
        "missing on this machine: {missing}, with which the client of Kafka is built (feature `kafka`)\n\
         \x20 Debian, Ubuntu: sudo apt-get install -y --no-install-recommends {missing}\n\
         \x20 macOS:          xcode-select --install"
    )))
}

/// What is there, and the Debian packages of what is not.
fn look(variables: &[&str]) -> (Programs, Vec<&'static str>) {
    let mut missing = Vec::new();
    let mut find = |variable, package, found: Option<PathBuf>| {
        if found.is_none() && variables.contains(&variable) {
            missing.push(package);
        }
        found.unwrap_or_default()
    };
    let postgres = find(POSTGRES_VARIABLE, "postgresql", postgres_folder());
    let mariadb = find(MARIADB_VARIABLE, "mariadb-server", on_path("mariadbd"));
    let mariadb_install = find(MARIADB_VARIABLE, "mariadb-server", on_path("mariadb-install-db"));
    let nats = find(NATS_VARIABLE, "nats-server", on_path("nats-server"));
    let redis = find(REDIS_VARIABLE, "redis-server", on_path("redis-server"));
    let rabbitmq = find(RABBITMQ_VARIABLE, "rabbitmq-server", rabbitmq_folder());
    let epmd = find(RABBITMQ_VARIABLE, "rabbitmq-server", on_path("epmd"));
    missing.dedup();
    (Programs { postgres, mariadb, mariadb_install, nats, redis, rabbitmq, epmd }, missing)
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
        VARIABLES.join(", "),
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

fn apt(packages: &[&str]) -> Result<(), Error> {
    let _forbidden = ServicesForbidden::set()?;
    chore::run(Command::new("apt-get").arg("update"))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]).args(packages);
    chore::run(install.env("DEBIAN_FRONTEND", "noninteractive"))
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
            eprintln!("xtask: failed to remove {POLICY}; remove it by hand: {error}");
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
