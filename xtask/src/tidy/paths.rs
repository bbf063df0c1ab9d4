//! Absolute paths of the machine that somebody worked on. Invariant: nothing tracked works, or reads
//! right, on one machine only.

use super::Finding;
use std::path::Path;

/// Folders that are somebody's own; written apart, so that this file may hold them.
const FOLDERS: [&str; 2] = [concat!("/", "work/"), concat!("/", "root/")];

pub(super) fn check(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for folder in FOLDERS {
            let absolute = |(at, _): (usize, &str)| {
                !line[..at].ends_with(|it: char| it.is_alphanumeric() || "._-})>*~".contains(it))
            };
            if line.match_indices(folder).any(absolute) {
                let expected = "a path relative to the repository, or a scratch folder found at run time";
                findings.push(Finding::new(
                    path,
                    index + 1,
                    format!("the absolute path `{folder}…`"),
                    expected,
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_path_is_found_and_a_relative_one_is_not() {
        let text = format!("see {0}main\ncd ..{0}x\n\"{1}.cargo\"\nhttp://a.b{1}c\n", FOLDERS[0], FOLDERS[1]);
        let lines: Vec<usize> = check(Path::new("a.md"), &text).iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [1, 3]);
    }
}
