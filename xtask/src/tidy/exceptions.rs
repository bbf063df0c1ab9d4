//! The list of exceptions. Invariant: it can only shrink: an entry that allows more than is needed is
//! as wrong as something that no entry allows.

use super::Finding;
use super::sizes::{FILE_LINES, FUNCTION_LINES, FUNCTION_LINES_MAX, Kind, Measure};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use tombolo_servers::{Context, Error};

const FILE: &str = "xtask/tidy-exceptions.txt";

/// The list, with its comments.
pub(super) struct Exceptions {
    lines: Vec<Line>,
}

#[derive(Clone)]
enum Line {
    Entry(Entry),
    /// A comment, an empty line, or what could not be read.
    Other {
        text: String,
        wrong: bool,
    },
}

#[derive(Clone)]
struct Entry {
    kind: Kind,
    path: PathBuf,
    name: String,
    allowed: usize,
    reason: String,
}

impl Exceptions {
    pub(super) fn load(root: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(root.join(FILE)).context(|| format!("read {FILE}"))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| match Entry::parse(line) {
            Some(entry) => Line::Entry(entry),
            None => {
                let wrong = !line.trim().is_empty() && !line.starts_with('#');
                Line::Other { text: line.to_owned(), wrong }
            }
        };
        Exceptions { lines: text.lines().map(line).collect() }
    }

    pub(super) fn save(&self, root: &Path) -> Result<(), Error> {
        fs::write(root.join(FILE), self.text()).context(|| format!("write {FILE}"))
    }

    fn text(&self) -> String {
        let text = |line: &Line| match line {
            Line::Entry(entry) => format!("{entry}\n"),
            Line::Other { text, .. } => format!("{text}\n"),
        };
        self.lines.iter().map(text).collect()
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.lines.iter().filter_map(|line| match line {
            Line::Entry(entry) => Some(entry),
            Line::Other { .. } => None,
        })
    }

    /// The same list without what is no longer needed.
    pub(super) fn shrunk(&self, measures: &[Measure]) -> Self {
        let mut lines = Vec::new();
        for line in &self.lines {
            let Line::Entry(entry) = line else {
                lines.push(line.clone());
                continue;
            };
            if let Some(needed) = entry.needed(measures) {
                let allowed = entry.allowed.min(needed);
                lines.push(Line::Entry(Entry { allowed, ..entry.clone() }));
            }
        }
        Exceptions { lines }
    }

    /// Where measures and entries do not agree.
    pub(super) fn judge(&self, measures: &[Measure]) -> Vec<Finding> {
        let over = measures.iter().filter_map(|measure| self.judge_measure(measure));
        let stale = self.lines.iter().enumerate().filter_map(|(index, line)| {
            let (found, expected) = match line {
                Line::Entry(entry) => entry.judge(measures)?,
                Line::Other { text, wrong: true } => (format!("`{text}`"), EXPECTED_FORM.to_owned()),
                Line::Other { .. } => return None,
            };
            Some(Finding::new(Path::new(FILE), index + 1, found, expected))
        });
        over.chain(stale).collect()
    }

    fn judge_measure(&self, measure: &Measure) -> Option<Finding> {
        let entry = self.entries().find(|entry| entry.is_for(measure));
        let allowed = entry.map_or(0, |entry| entry.allowed);
        let hard = measure.kind == Kind::Function && measure.value > FUNCTION_LINES_MAX;
        if measure.value <= allowed && !hard {
            return None;
        }
        let (found, rule) = match measure.kind {
            Kind::Function => {
                let rule = format!("at most {FUNCTION_LINES} as a rule and {FUNCTION_LINES_MAX} as the end");
                (format!("`{}` of {} lines", measure.name, measure.value), rule)
            }
            Kind::File => (format!("{} lines without tests", measure.value), format!("at most {FILE_LINES}")),
            Kind::Sleep => {
                (format!("{} sleeps in tests", measure.value), "a wait for a state, with a bound".into())
            }
        };
        let entry = Entry::of(measure);
        let expected = if hard { rule } else { format!("{rule}, or with a good reason in {FILE}: {entry}") };
        Some(Finding::new(&measure.path, measure.line, found, expected))
    }
}

impl fmt::Display for Exceptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |kind| self.entries().filter(|entry| entry.kind == kind).count();
        let (functions, files, sleeps) = (count(Kind::Function), count(Kind::File), count(Kind::Sleep));
        write!(out, "exceptions for {functions} functions, {files} files and sleeps in {sleeps} files")
    }
}

const EXPECTED_FORM: &str =
    "`function PATH NAME LINES # reason`, `file PATH LINES # reason` or `sleep PATH COUNT # reason`";

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let (entry, reason) = line.split_once(" # ")?;
        let words: Vec<&str> = entry.split_whitespace().collect();
        let (kind, path, name, allowed) = match words[..] {
            ["function", path, name, allowed] => (Kind::Function, path, name, allowed),
            ["file", path, allowed] => (Kind::File, path, "", allowed),
            ["sleep", path, allowed] => (Kind::Sleep, path, "", allowed),
            _ => return None,
        };
        let reason = reason.trim().to_owned();
        Some(Entry { kind, path: path.into(), name: name.into(), allowed: allowed.parse().ok()?, reason })
    }

    fn of(measure: &Measure) -> Self {
        let Measure { kind, path, name, value, .. } = measure.clone();
        Entry { kind, path, name, allowed: value, reason: "why".into() }
    }

    fn is_for(&self, measure: &Measure) -> bool {
        self.kind == measure.kind && self.path == measure.path && self.name == measure.name
    }

    /// What it must allow; nothing if it isn't needed at all.
    fn needed(&self, measures: &[Measure]) -> Option<usize> {
        measures.iter().filter(|measure| self.is_for(measure)).map(|measure| measure.value).max()
    }

    fn judge(&self, measures: &[Measure]) -> Option<(String, String)> {
        match self.needed(measures) {
            None => Some((
                "an exception that is no longer needed".into(),
                "its removal (`cargo xtask tidy --shrink` does it)".into(),
            )),
            Some(needed) if needed < self.allowed => Some((
                format!("{} allowed and {needed} needed", self.allowed),
                format!("{needed} (`cargo xtask tidy --shrink` does it)"),
            )),
            Some(_) if self.reason.is_empty() || self.reason == "why" => Some((
                "an exception without a reason".into(),
                "why it is better as it is, after ` # `".into(),
            )),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.kind {
            Kind::Function => write!(out, "function {path} {} ", self.name)?,
            Kind::File => write!(out, "file {path} ")?,
            Kind::Sleep => write!(out, "sleep {path} ")?,
        }
        write!(out, "{} # {}", self.allowed, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        "# The list.\nfunction src/a.rs A::a 50 # one state machine\nfile src/b.rs 600 # a table\n";

    fn function(value: usize) -> Measure {
        Measure { kind: Kind::Function, path: "src/a.rs".into(), name: "A::a".into(), line: 7, value }
    }

    fn file(value: usize) -> Measure {
        Measure { kind: Kind::File, path: "src/b.rs".into(), name: String::new(), line: 1, value }
    }

    fn found(list: &str, measures: &[Measure]) -> Vec<String> {
        Exceptions::parse(list).judge(measures).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_list_that_fits_finds_nothing() {
        assert_eq!(found(LIST, &[function(50), file(600)]), [""; 0]);
    }

    #[test]
    fn what_grew_and_what_is_new_are_found_with_the_line_to_add() {
        let grew = found(LIST, &[function(51), file(600)]);
        assert_eq!(grew.len(), 1, "{grew:?}");
        assert!(grew[0].starts_with("src/a.rs:7: found `A::a` of 51 lines"), "{grew:?}");
        let new = found("", &[file(600)]);
        assert!(new[0].ends_with("file src/b.rs 600 # why"), "{new:?}");
    }

    #[test]
    fn an_entry_that_allows_too_much_is_found() {
        let found = found(LIST, &[function(44)]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("txt:2: found 50 allowed and 44 needed"), "{found:?}");
        assert!(found[1].contains("txt:3: found an exception that is no longer needed"), "{found:?}");
    }

    #[test]
    fn nothing_allows_a_function_over_the_hard_bound() {
        let list = "function src/a.rs A::a 71 # long\n";
        assert_eq!(found(list, &[function(71)]).len(), 1);
    }

    #[test]
    fn an_entry_needs_its_form_and_a_reason() {
        assert_eq!(found("function src/a.rs A::a 50 # why\n", &[function(50)]).len(), 1);
        assert!(found("file src/b.rs\n", &[])[0].contains("expected `function PATH NAME LINES # reason`"));
    }

    #[test]
    fn shrinking_lowers_and_removes_and_never_raises() {
        let list = Exceptions::parse(LIST);
        assert_eq!(
            list.shrunk(&[function(44)]).text(),
            "# The list.\nfunction src/a.rs A::a 44 # one state machine\n"
        );
        assert_eq!(list.shrunk(&[function(60), file(600)]).text(), LIST);
    }
}
