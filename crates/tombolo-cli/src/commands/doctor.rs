//! `tombolo doctor`: looks at a manifest and at everything that it points to, and says what is wrong and what mends it.
//!
//! Invariant: it changes nothing, makes no file and no table, and one thing that cannot be looked at hides no other.

mod checks;
mod programs;
mod wiring;
mod bus;
mod archive;
mod databases;
mod running;

use serde_json::json;

use crate::arguments::Doctor;
use crate::commands::{say, show};
use crate::error::{Error, Result};
use crate::folder::{DataFolder, FOLDER_NAME};
use crate::manifest::Manifest;
use crate::output::Format;
use checks::{Checks, Verdict};

/// `tombolo doctor`.
pub(crate) async fn doctor(arguments: Doctor) -> Result<()> {
    let mut checks = Checks::default();
    match Manifest::read(&arguments.place).and_then(|manifest| manifest.with(&arguments.elsewhere)) {
        Ok(manifest) => {
            let found = format!("{}: {} services", manifest.path.display(), manifest.services.len());
            checks.pass("manifest", "it can be read", &found);
            look(&manifest, &arguments, &mut checks).await?;
        }
        Err(error) => checks.fail("manifest", "it can be read", &error.message, "correct it"),
    }
    print(&checks, arguments.format)?;
    match checks.count(Verdict::Fail) {
        0 => Ok(()),
        failed => Err(Error::failed(format!("{failed} of {} checks failed", checks.0.len()))),
    }
}

async fn look(manifest: &Manifest, arguments: &Doctor, checks: &mut Checks) -> Result<()> {
    let place = arguments.data.clone().unwrap_or_else(|| manifest.folder().join(FOLDER_NAME));
    let folder = DataFolder::at(&place)?;
    let services = programs::look(manifest, &folder, checks).await?;
    let descriptors: Vec<_> = services.iter().filter_map(|service| service.descriptor.as_ref()).collect();
    wiring::check(&descriptors, checks);
    let run = folder.running();
    let named = bus::Named { bus: manifest.bus.as_deref(), archive: arguments.archive.as_deref() };
    bus::look(&named, run.as_ref(), &descriptors, checks).await;
    for service in &services {
        databases::look(service, checks).await;
    }
    match run {
        Some(run) => running::look(run, checks).await,
        None => checks.pass("system", "it runs", "no: `tombolo dev` starts it"),
    }
    Ok(())
}

fn print(checks: &Checks, format: Format) -> Result<()> {
    let rows = checks.0.iter().map(|check| {
        let fix = check.fix.clone().unwrap_or_else(|| "-".into());
        [check.verdict.word().to_owned(), check.subject.clone(), check.what.clone(), check.found.clone(), fix]
    });
    show(format, ["", "OF", "CHECK", "FOUND", "TO DO"], rows.collect(), &json!(checks.0))?;
    if format == Format::Table {
        let [passed, warned, failed] =
            [Verdict::Pass, Verdict::Warn, Verdict::Fail].map(|verdict| checks.count(verdict));
        say(&format!("\n{passed} passed, {warned} warned, {failed} failed"))?;
    }
    Ok(())
}
