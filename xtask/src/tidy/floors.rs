//! The floors: who may import whom. Invariant: a crate imports only from floors below its own, so
//! siblings never know each other and every import goes one way.

use super::Finding;
use crate::workspace::Package;
use std::path::{Path, PathBuf};

/// The crates by floor. Services stand on floor 3, examples on top.
const FLOORS: [&[&str]; 5] = [
    &["tombolo-event"],
    &["tombolo-db", "tombolo-bus"],
    &["tombolo", "tombolo-http"],
    &["tombolo-gateway", "tombolo-console"],
    &["tombolo-cli"],
];
const SERVICES: u8 = 3;
const EXAMPLES: u8 = 5;
/// Benches and fault runs look at everything.
const BENCHES: u8 = 6;

/// What a service or an example imports: what users import, and nothing under it.
const USERS_FLOOR: u8 = 2;

/// What starts real servers: imports no crate of this repository, and only what is never shipped imports it.
const SERVERS: &str = "servers";

/// Programs that work on this repository: they import no crate of it but that one, and none imports them.
const TOOLS: [&str; 2] = ["xtask", "crates/tombolo-bus/proto/generate"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Floor {
    /// A floor, and the lowest one that it may import.
    Number(u8, u8),
    Servers,
    Tool,
}

pub(super) fn check(packages: &[Package], files: &[(PathBuf, String)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let manifest = package.folder.join("Cargo.toml");
        let text = files.iter().find(|(path, _)| *path == manifest).map_or("", |(_, text)| text);
        let Some(floor) = floor(package) else {
            let found = format!("the crate `{}`, which has no floor", package.name);
            findings.push(Finding::new(&manifest, 1, found, "a floor for it in xtask/src/tidy/floors.rs"));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(imported) = packages.iter().find(|it| it.name == *dependency) else { continue };
            if let Some(expected) = refusal(package, floor, imported) {
                let line = 1 + text.lines().position(|line| line.starts_with(dependency)).unwrap_or(0);
                findings.push(Finding::new(
                    &manifest,
                    line,
                    format!("an import of `{dependency}`"),
                    expected,
                ));
            }
        }
    }
    findings
}

fn floor(package: &Package) -> Option<Floor> {
    let folder = &package.folder;
    if TOOLS.iter().any(|tool| folder == Path::new(tool)) {
        return Some(Floor::Tool);
    }
    if folder == Path::new(SERVERS) {
        return Some(Floor::Servers);
    }
    for (top, number, lowest) in [
        ("services", SERVICES, USERS_FLOOR),
        ("examples", EXAMPLES, USERS_FLOOR),
        ("benches", BENCHES, 0),
        ("faults", BENCHES, 0),
    ] {
        if folder.starts_with(top) {
            return Some(Floor::Number(number, lowest));
        }
    }
    let number = FLOORS.iter().position(|names| names.contains(&package.name.as_str()))?;
    u8::try_from(number).ok().map(|number| Floor::Number(number, 0))
}

/// What was expected instead of this import; nothing if it is fine.
fn refusal(package: &Package, floor: Floor, imported: &Package) -> Option<String> {
    if package.name == imported.name || same_example(&package.folder, &imported.folder) {
        return None;
    }
    let (own, lowest, other) = match (floor, self::floor(imported)) {
        (Floor::Number(own, lowest), Some(Floor::Number(other, _))) => (own, lowest, other),
        (Floor::Tool | Floor::Number(EXAMPLES.., _), Some(Floor::Servers)) => return None,
        (_, Some(Floor::Servers)) => return Some("an import of it by nothing that is shipped".into()),
        _ => return Some("tools that import no crate of the workspace, and are imported by none".into()),
    };
    if other >= own {
        return Some(format!(
            "imports from below floor {own} only, and `{}` is on floor {other}",
            imported.name
        ));
    }
    (other < lowest).then(|| "what users import: `tombolo` and above".into())
}

fn same_example(one: &Path, other: &Path) -> bool {
    one.starts_with("examples") && one.iter().nth(1) == other.iter().nth(1) && other.starts_with("examples")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, folder: &str, dependencies: &[&str]) -> Package {
        let dependencies = dependencies.iter().map(|it| (*it).to_owned()).collect();
        Package { name: name.into(), folder: folder.into(), roots: vec![], features: vec![], dependencies }
    }

    fn found(packages: &[Package]) -> Vec<String> {
        check(packages, &[]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_import_of_a_sibling_or_from_above_is_found() {
        let found = found(&[
            package("tombolo-event", "crates/tombolo-event", &[]),
            package("tombolo-db", "crates/tombolo-db", &["tombolo-event"]),
            package("tombolo-bus", "crates/tombolo-bus", &["tombolo-db", "tombolo"]),
            package("tombolo", "crates/tombolo", &["tombolo-bus"]),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`tombolo-db` is on floor 1"), "{found:?}");
        assert!(found[1].contains("`tombolo` is on floor 2"), "{found:?}");
    }

    #[test]
    fn an_example_imports_what_users_import_and_its_own_crates() {
        let found = found(&[
            package("tombolo", "crates/tombolo", &[]),
            package("tombolo-bus", "crates/tombolo-bus", &[]),
            package("identity", "services/identity", &["tombolo"]),
            package("shop-words", "examples/shop/words", &["tombolo"]),
            package("shop-users", "examples/shop/users", &["shop-words", "identity", "tombolo-bus"]),
            package("blog", "examples/blog", &["shop-words"]),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("shop/users") && found[0].contains("`tombolo` and above"), "{found:?}");
        assert!(found[1].contains("`shop-words` is on floor 5"), "{found:?}");
    }

    #[test]
    fn a_crate_without_a_floor_and_an_import_by_a_tool_are_found() {
        let found = found(&[
            package("tombolo", "crates/tombolo", &[]),
            package("tombolo-extra", "crates/extra", &[]),
            package("xtask", "xtask", &["tombolo"]),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`tombolo-extra`, which has no floor"), "{found:?}");
        assert!(found[1].contains("tools that import no crate"), "{found:?}");
    }
    #[test]
    fn servers_are_imported_by_tools_and_fault_runs_alone() {
        let found = found(&[
            package("tombolo-servers", "servers", &["tombolo-event"]),
            package("tombolo-event", "crates/tombolo-event", &["tombolo-servers"]),
            package("xtask", "xtask", &["tombolo-servers"]),
            package("tombolo-faults", "faults", &["tombolo-servers"]),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("import no crate of the workspace"), "{found:?}");
        assert!(found[1].contains("nothing that is shipped"), "{found:?}");
    }
}
