//! How long `tombolo dev` takes from nothing but built binaries until the whole shop is ready.
//!
//! The runner itself says when: with `--detach` it returns once the bus listens and every service has answered
//! `GET /ready`. Each round has a data folder of its own, so the databases, the log and the topics are made in it.
//!
//! Invariant: what was started here is ended here, also when it was never ready.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use tokio::process::Command;
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::rounds::median;
use crate::scratch::Scratch;
use crate::table::{Bar, Row};

const ROUNDS: usize = 5;
const BAR: Bar = Bar::UnderSeconds(2.0);
const WHAT: &str = "`tombolo dev examples/shop` to ready, already built, with an empty data folder";
/// The shop, seen from this crate.
pub(crate) const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop/tombolo.toml");

/// The median of the rounds.
pub(crate) async fn until_ready(scratch: &Scratch) -> Result<Vec<Row>> {
    let runner = runner()?;
    if !runner.is_file() {
        let why = format!("not measured: {} is not built; `cargo xtask bench` builds it", runner.display());
        return Ok(vec![Row::absent(WHAT, why, BAR)]);
    }
    let manifest = scratch.path("tombolo.toml");
    fs::write(&manifest, on_free_ports(&fs::read_to_string(SHOP)?)?.to_string())?;
    let mut seconds = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let data = scratch.path(&format!("shop-{round}"));
        let start: [&Path; 5] = ["dev".as_ref(), &manifest, "--detach".as_ref(), "--data".as_ref(), &data];
        let began = Instant::now();
        let started = call(&runner, &start).await;
        let took = began.elapsed();
        let ended = call(&runner, &["down".as_ref(), "--data".as_ref(), &data]).await;
        started?;
        ended?;
        seconds.push(took.as_secs_f64());
    }
    let slowest = seconds.iter().copied().fold(0.0, f64::max);
    let row = Row::of_seconds(WHAT, median(seconds.into_iter()), BAR);
    Ok(vec![row.noting(&format!("slowest {slowest:.2} s"))])
}

pub(crate) fn runner() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("tombolo"))
}

/// The same system on any ports, so that a shop which runs beside this is left alone; without its gateway, whose port has to be known.
pub(crate) fn on_free_ports(manifest: &str) -> Result<Table> {
    let mut system: Table = toml::from_str(manifest)?;
    system.remove("gateway");
    for service in services(&mut system) {
        service.remove("port");
    }
    Ok(system)
}

/// The tables of its services.
pub(crate) fn services(system: &mut Table) -> impl Iterator<Item = &mut Table> {
    let services = system.get_mut("services").and_then(Value::as_table_mut);
    services
        .into_iter()
        .flat_map(|services| services.iter_mut())
        .filter_map(|(_, service)| service.as_table_mut())
}

pub(crate) async fn call(runner: &Path, arguments: &[&Path]) -> Result<()> {
    answer(runner, arguments).await.map(drop)
}

/// What the runner prints.
pub(crate) async fn answer(runner: &Path, arguments: &[&Path]) -> Result<String> {
    let mut command = Command::new(runner);
    let output = command.args(arguments).stdin(Stdio::null()).output().await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(format!("{command:?} ended with {}: {}", output.status, complaint.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_of_the_shop_is_taken() {
        let manifest = fs::read_to_string(SHOP).unwrap();
        assert!(manifest.contains("\nport = "), "{manifest}");
        let mut system = on_free_ports(&manifest).unwrap();
        assert_eq!(services(&mut system).count(), 5);
        assert!(!system.to_string().contains("port = "));
    }
}
