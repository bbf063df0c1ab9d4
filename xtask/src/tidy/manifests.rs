//! The manifests: one place for versions, and a reason for each dependency. Invariant: whoever adds a
//! dependency says why on the same line.

use super::Finding;
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};

pub(super) fn check(files: &[(PathBuf, String)], workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in files {
        if path == Path::new("Cargo.toml") {
            findings.extend(reasons(path, text));
        } else if workspace.packages.iter().any(|package| package.folder.join("Cargo.toml") == *path) {
            findings.extend(inherited(path, text));
        }
    }
    findings
}

/// Each dependency of the workspace says why it is there; its own crates need not.
fn reasons(path: &Path, text: &str) -> Vec<Finding> {
    let dependencies = entries(text, |section| section == "[workspace.dependencies]");
    let bare = dependencies.into_iter().filter(|(_, line)| {
        let reason = line.split_once(" #").is_some_and(|(_, reason)| !reason.trim().is_empty());
        !reason && !line.contains("path =")
    });
    let expected = "the reason for it in a comment on the same line";
    bare.map(|(number, line)| Finding::new(path, number, format!("`{}`", name(line)), expected)).collect()
}

/// Each dependency of a member comes from the workspace.
fn inherited(path: &Path, text: &str) -> Vec<Finding> {
    let dependencies = entries(text, |section| section.trim_end_matches(']').ends_with("dependencies"));
    let own = dependencies
        .into_iter()
        .filter(|(_, line)| !line.contains("workspace = true") && !line.contains("path = \".\""));
    let expected = "`workspace = true`, and the version and its reason in the root's Cargo.toml";
    own.map(|(number, line)| Finding::new(path, number, format!("`{}`", line.trim()), expected)).collect()
}

/// The lines that begin an entry in the chosen sections, with their numbers.
fn entries(text: &str, chosen: impl Fn(&str) -> bool) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut open = 0_i64;
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let code = line.split(" #").next().unwrap_or_default().trim();
        if open == 0 && code.starts_with('[') {
            inside = chosen(code);
            continue;
        }
        if inside && open == 0 && code.contains('=') && !code.starts_with('#') {
            entries.push((index + 1, line));
        }
        let count = |marks: [char; 2]| i64::try_from(code.matches(marks).count()).unwrap_or(0);
        open += count(['[', '{']) - count([']', '}']);
    }
    entries
}

fn name(line: &str) -> &str {
    line.split(['=', '.']).next().unwrap_or(line).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_without_a_reason_is_found() {
        let text = "[workspace.dependencies]\n# words\nours = { path = \"crates/ours\" }\nserde = \"1\" # why\nrand = \"1\"\nsqlx = { features = [\n  \"a=b\",\n] } # why\n[profile.dev]\ndebug = 1\n";
        let found = reasons(Path::new("Cargo.toml"), text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].line, found[0].found.as_str()), (5, "`rand`"));
        assert_eq!(found[1].line, 6, "the reason stands on the first line");
    }

    #[test]
    fn a_member_with_a_version_of_its_own_is_found() {
        let text = "[dependencies]\na.workspace = true\nb = { workspace = true, optional = true }\n[target.'cfg(unix)'.dev-dependencies]\nc = \"1\"\n[features]\nd = []\n";
        let found = inherited(Path::new("crates/x/Cargo.toml"), text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].line, found[0].found.as_str()), (5, "`c = \"1\"`"));
    }
}
