//! The commands that a running runner carries out: status, stop, start, kill, scale, down.
//!
//! Invariant: success is printed only after the runner said that it was done.

use crate::arguments::{Found, Named, Scaled, Shown};
use crate::commands::say;
use crate::error::Result;
use crate::folder::find;
use crate::output::Format;
use crate::runner::control::{Request, Status, ask};

/// `tombolo status`.
pub(crate) async fn status(arguments: Shown) -> Result<()> {
    let status = ask(&find(arguments.found.data.as_deref())?, &Request::Status).await?;
    match arguments.format {
        Format::Table => say(&status.table()),
        Format::Json => say(&status.json().to_string()),
    }
}

/// `tombolo stop`, `start`, `kill`.
pub(crate) async fn order(arguments: Named, request: fn(String) -> Request, done: &str) -> Result<()> {
    let run = find(arguments.found.data.as_deref())?;
    let status = ask(&run, &request(arguments.name.clone())).await?;
    say(&format!("{} {done}{}", arguments.name, where_it_is(&status, &arguments.name)))
}

/// `tombolo scale`.
pub(crate) async fn scale(arguments: Scaled) -> Result<()> {
    let run = find(arguments.found.data.as_deref())?;
    let (name, count) = arguments.to;
    let status = ask(&run, &Request::Scale(name.clone(), count)).await?;
    say(&format!("{name} runs {count} times{}", where_it_is(&status, &name)))
}

/// `tombolo down`.
pub(crate) async fn down(arguments: Found) -> Result<()> {
    let run = find(arguments.data.as_deref())?;
    ask(&run, &Request::Down).await?;
    say(&format!("everything in {} has ended", run.data.display()))
}

fn where_it_is(status: &Status, name: &str) -> String {
    let replicas = status.services.iter().filter(|service| service.name == name).flat_map(|s| &s.replicas);
    let urls: Vec<_> = replicas.filter(|replica| replica.ready).map(|replica| &*replica.url).collect();
    if urls.is_empty() { String::new() } else { format!(": {}", urls.join(", ")) }
}
