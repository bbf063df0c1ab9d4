//! The services' programs: whether they are there, and what each says of itself when it is asked with `--describe`.
//!
//! Invariant: nothing that is asked outlives the asking.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use tombolo_event::descriptor::Descriptor;

use super::checks::Checks;
use crate::error::Result;
use crate::folder::DataFolder;
use crate::manifest::Manifest;
use crate::plan::{self, Looked};

/// How long a program may take to describe itself, which it does without starting anything.
const DESCRIBE_BOUND: Duration = Duration::from_secs(10);
const THERE: &str = "its program is there";
const DESCRIBES: &str = "it says what it publishes and handles";

/// A service of the manifest.
pub(crate) struct Service {
    pub(crate) name: String,
    /// The URL of its database.
    pub(crate) database: Option<String>,
    /// Whether it makes Tombolo's tables there when `tombolo dev` starts it.
    pub(crate) makes_tables: bool,
    pub(crate) descriptor: Option<Descriptor>,
}

/// Looks at each.
pub(crate) async fn look(
    manifest: &Manifest,
    folder: &DataFolder,
    checks: &mut Checks,
) -> Result<Vec<Service>> {
    let mut services = Vec::new();
    for looked in plan::look(manifest, folder)? {
        let descriptor = describe(&looked, checks).await;
        let Looked { name, database, makes_tables, .. } = looked;
        services.push(Service { name, database, makes_tables, descriptor });
    }
    Ok(services)
}

async fn describe(looked: &Looked, checks: &mut Checks) -> Option<Descriptor> {
    let name = looked.name.as_str();
    let program = match &looked.program {
        Ok(program) => program,
        Err(error) => {
            checks.fail(name, THERE, &error.message, "build or install it, or correct its command");
            return None;
        }
    };
    checks.pass(name, THERE, &program.display().to_string());
    let mut command = Command::new(program);
    command.args(&looked.arguments).arg("--describe").stdin(Stdio::null()).kill_on_drop(true);
    // What it says of its database, and whether it is built for that, follows from the address.
    command.envs(looked.database.iter().map(|url| ("TOMBOLO_DATABASE", url)));
    let output = timeout(DESCRIBE_BOUND, command.output()).await;
    let said = match output {
        Ok(Ok(output)) if output.status.success() => serde_json::from_slice(&output.stdout).ok(),
        _ => None,
    };
    let Some(descriptor): Option<Descriptor> = said else {
        let fix = "nothing, if it is not a service of Tombolo; else look at what it prints with --describe";
        checks.warn(name, DESCRIBES, "it does not, so its wiring is not checked", fix);
        return None;
    };
    let counts = format!(
        "{} types published, {} subscriptions, {} questions answered, on {}",
        descriptor.publishes.len(),
        descriptor.subscriptions.len(),
        descriptor.answers.len(),
        descriptor.database
    );
    checks.pass(name, DESCRIBES, &counts);
    if descriptor.service.as_str() != name {
        let found = format!("it calls itself {:?}", descriptor.service.as_str());
        checks.fail(name, "its name is that of the manifest", &found, "use one name in both places");
    }
    Some(descriptor)
}
