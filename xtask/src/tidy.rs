//! `cargo xtask tidy`: the habits of this code that a machine can check. Invariant: it judges what git
//! tracks or would track, and nothing that a build leaves behind.

mod exceptions;
mod floors;
mod manifests;
mod paths;
mod reachable;
mod sizes;
mod source;
mod words;

use crate::workspace::Workspace;
use clap::Args;
use exceptions::Exceptions;
use source::Source;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use tombolo_servers::{Context, Error};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Lower and remove the exceptions that are no longer needed; adds none.
    #[arg(long)]
    shrink: bool,
}

/// Something that is not as it should be.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: PathBuf,
    /// 0 means the whole file.
    line: usize,
    found: String,
    expected: String,
}

impl Finding {
    fn new(path: &Path, line: usize, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Finding { path: path.to_path_buf(), line, found: found.into(), expected: expected.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line.max(1);
        write!(out, "{}:{line}: found {}; expected {}", self.path.display(), self.found, self.expected)
    }
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Error> {
    let files = read(workspace)?;
    let mut findings = manifests::check(&files, workspace);
    findings.extend(floors::check(&workspace.packages, &files));
    findings.extend(files.iter().flat_map(|(path, text)| paths::check(path, text)));
    let (sources, unreadable) = sources(&files);
    findings.extend(unreadable);
    findings.extend(reachable::check(&sources, &files, workspace));
    findings.extend(sources.iter().flat_map(header));
    findings.extend(sources.iter().flat_map(words::check));
    let measures: Vec<_> =
        sources.iter().flat_map(sizes::measure).chain(sources.iter().filter_map(words::sleeps)).collect();
    let exceptions = Exceptions::load(&workspace.root)?;
    if options.shrink {
        exceptions.shrunk(&measures).save(&workspace.root)?;
        return run(workspace, &Options::default());
    }
    findings.extend(exceptions.judge(&measures));
    report(findings, sources.len(), &exceptions)
}

fn report(mut findings: Vec<Finding>, sources: usize, exceptions: &Exceptions) -> Result<(), Error> {
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        return Err(Error::new(format!("{} findings of tidy", findings.len())));
    }
    eprintln!("xtask: tidy: {sources} source files are in order, with {exceptions}");
    Ok(())
}

/// All text files with their text.
fn read(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>, Error> {
    let mut files = Vec::new();
    for path in workspace.files()? {
        let bytes = fs::read(workspace.root.join(&path)).context(|| format!("read {}", path.display()))?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push((path, text));
        }
    }
    Ok(files)
}

fn sources(files: &[(PathBuf, String)]) -> (Vec<Source>, Vec<Finding>) {
    let mut sources = Vec::new();
    let mut unreadable = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.extension().is_some_and(|it| it == "rs")) {
        match Source::parse(path, text) {
            Ok(source) => sources.push(source),
            Err(error) => {
                unreadable.push(Finding::new(path, 1, format!("no Rust: {error}"), "a file that parses"))
            }
        }
    }
    (sources, unreadable)
}

fn header(source: &Source) -> Option<Finding> {
    let bare = !source.generated && !source.text.starts_with("//!");
    bare.then(|| {
        let first = source.text.lines().next().unwrap_or("nothing");
        let expected = "`//!` first: what the file does, where it stands on the path, its one invariant";
        Finding::new(&source.path, 1, format!("`{first}`"), expected)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_header_is_found() {
        let bare = Source::parse(Path::new("a.rs"), "use std::fs;\n").unwrap();
        let finding = header(&bare).unwrap().to_string();
        assert!(finding.starts_with("a.rs:1: found `use std::fs;`; expected `//!` first"), "{finding}");
        let good = Source::parse(Path::new("a.rs"), "//! What it does.\nuse std::fs;\n").unwrap();
        assert_eq!(header(&good), None);
    }
}
