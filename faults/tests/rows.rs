//! The table of what goes wrong in `docs/faults.md` names tests. Invariant: each of them exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where the table begins and ends.
const TABLE: (&str, &str) = ("## What goes wrong, and the test", "\n## ");
/// Where tests are.
const SOURCES: [&str; 5] = ["crates", "examples", "faults", "benches", "xtask"];

#[test]
fn every_test_that_the_table_of_faults_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/faults.md")).unwrap();
    let table = page.split_once(TABLE.0).expect("the page has the table").1;
    let table = table.split(TABLE.1).next().unwrap();
    let mut functions = BTreeSet::new();
    SOURCES.iter().for_each(|folder| collect(&root.join(folder), &mut functions));
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "the table has {} rows", rows.len());
    for row in rows {
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty() || tests.contains("open:"), "no test, and not said to be open: {row}");
        for name in named {
            assert!(functions.contains(name), "there is no test {name:?}: {row}");
        }
    }
}

/// The names of all functions in the sources below a folder.
fn collect(folder: &Path, functions: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("the folder of the sources can be read").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, functions);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let source = fs::read_to_string(&path).expect("a source can be read");
            let names = source.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
            functions.extend(names.map(str::to_owned));
        }
    }
}
