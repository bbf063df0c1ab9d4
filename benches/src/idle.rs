//! An idle system of the shop's size: what it does when nobody does anything.
//!
//! `tombolo dev` runs the shop; after it has come to rest, the statements that its services' databases get, the processor time
//! and the memory of each process are taken over half a minute.
//!
//! Invariant: every process that the runner started is counted.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;
use toml::Table;

use crate::dev;
use crate::error::{Error, Result};
use crate::scratch::Scratch;
use crate::table::{Bar, Row};

const REST: Duration = Duration::from_secs(10);
const WATCHED: Duration = Duration::from_secs(30);

/// What a process has used so far.
struct Used {
    name: String,
    pid: String,
    processor_seconds: f64,
    statements: usize,
}

/// The three figures.
pub(crate) async fn measure(scratch: &Scratch) -> Result<Vec<Row>> {
    let runner = dev::runner()?;
    if !runner.is_file() {
        let why = format!("not measured: {} is not built; `cargo xtask bench` builds it", runner.display());
        return Ok(vec![Row::absent("the shop, idle", why, Bar::None)]);
    }
    let system = dev::on_free_ports(&fs::read_to_string(dev::SHOP)?)?;
    let shop = system.to_string();
    let quiet = watched(&runner, scratch, "idle", &shop).await?;
    // Statements are counted in a run of their own: writing each into a log costs more than making it.
    let logging = watched(&runner, scratch, "idle-logging", &logging_statements(system)).await?;
    let row = |what: &str, (value, who): (f64, String), unit, bar| {
        Row::of_value(&format!("the shop, idle: {what}"), value, unit, bar).noting(&who)
    };
    let statements = logging.highest(|used| used.statements as f64);
    let processor = quiet.highest(|used| used.processor_seconds * 100.0);
    Ok(vec![
        row("statements per second of the service with the most", statements, "/s", Bar::Under(1.0)),
        row("processor of the busiest process", processor, "%", Bar::Under(1.0)),
        row("resident memory of the largest process", quiet.largest, "MB", Bar::Under(25.0)),
    ])
}

/// What was used at the beginning and at the end of the half minute.
struct Watched {
    before: Vec<Used>,
    after: Vec<Used>,
    seconds: f64,
    /// The memory of the largest process in MB, and which it is.
    largest: (f64, String),
}

impl Watched {
    /// The highest rate per second, and whose it is.
    fn highest(&self, of: fn(&Used) -> f64) -> (f64, String) {
        let both = self.before.iter().zip(&self.after);
        let rates = both.map(|(before, after)| ((of(after) - of(before)) / self.seconds, after.name.clone()));
        rates.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
    }
}

/// Runs a shop, lets it come to rest, and watches it.
async fn watched(runner: &Path, scratch: &Scratch, name: &str, shop: &str) -> Result<Watched> {
    let (manifest, data) = (scratch.path(&format!("{name}.toml")), scratch.path(name));
    fs::write(&manifest, shop)?;
    let start: [&Path; 5] = ["dev".as_ref(), &manifest, "--detach".as_ref(), "--data".as_ref(), &data];
    dev::call(runner, &start).await?;
    let watched = watch(runner, &data).await;
    dev::call(runner, &["down".as_ref(), "--data".as_ref(), &data]).await?;
    watched
}

async fn watch(runner: &Path, data: &Path) -> Result<Watched> {
    tokio::time::sleep(REST).await;
    let (began, before) = (Instant::now(), used(runner, data).await?);
    tokio::time::sleep(WATCHED).await;
    let (after, seconds) = (used(runner, data).await?, began.elapsed().as_secs_f64());
    let memory = after.iter().map(|used| Ok((resident_mb(&used.pid)?, used.name.clone())));
    let memory = memory.collect::<Result<Vec<_>>>()?.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
    Ok(Watched { before, after, seconds, largest: memory.unwrap_or_default() })
}

/// Each service writes every statement to its log.
fn logging_statements(mut system: Table) -> String {
    for service in dev::services(&mut system) {
        let own = service.entry("env").or_insert_with(|| Table::new().into());
        if let Some(own) = own.as_table_mut() {
            own.insert("RUST_LOG".into(), "sqlx::query=debug".into());
        }
    }
    system.to_string()
}

async fn used(runner: &Path, data: &Path) -> Result<Vec<Used>> {
    let status = dev::answer(
        runner,
        &["status".as_ref(), "--format".as_ref(), "json".as_ref(), "--data".as_ref(), data],
    )
    .await?;
    let status: Value = serde_json::from_str(&status)?;
    let mut all = Vec::new();
    for service in status["services"].as_array().into_iter().flatten() {
        let name = service["name"].as_str().unwrap_or_default();
        let log = fs::read_to_string(data.join("logs").join(format!("{name}.log"))).unwrap_or_default();
        let statements =
            log.lines().filter(|line| line.contains("db.statement") || line.contains("summary=")).count();
        for replica in service["replicas"].as_array().into_iter().flatten() {
            all.push(of_process(name, &replica["pid"], statements)?);
        }
    }
    all.push(of_process("bus", &status["bus"]["pid"], 0)?);
    Ok(all)
}

fn of_process(name: &str, pid: &Value, statements: usize) -> Result<Used> {
    let pid = pid.as_u64().ok_or_else(|| Error::new(format!("{name} does not run")))?.to_string();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The fields behind the name, which may itself hold blanks: utime and stime are the 14th and 15th of all.
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        behind.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
    Ok(Used { name: name.to_owned(), pid, processor_seconds: ticks / per_second, statements })
}

fn resident_mb(pid: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kb| kb.parse::<f64>().ok());
    Ok(kb.ok_or_else(|| Error::new(format!("/proc/{pid}/status has no VmRSS")))? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_logs_its_statements_and_keeps_what_it_was_told() {
        let manifest = fs::read_to_string(dev::SHOP).unwrap();
        let manifest = logging_statements(dev::on_free_ports(&manifest).unwrap());
        assert_eq!(manifest.matches("RUST_LOG").count(), 5, "{manifest}");
        assert!(manifest.contains("SHOP_SMTP") && manifest.contains("TOMBOLO_AUTH"), "{manifest}");
    }
}
