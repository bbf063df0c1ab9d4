//! How two builds of a view are shown beside each other.
//!
//! Invariant: every table is named, the same or not; and what was not compared is said.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Context, Result};
use crate::output;

/// As much of the answer as is shown.
#[derive(Debug, Deserialize)]
struct Comparison {
    view: String,
    old: String,
    new: String,
    new_lacks_events: Option<u64>,
    old_lacks_events: Option<u64>,
    tables: Vec<Table>,
}

#[derive(Debug, Deserialize)]
struct Table {
    table: String,
    old_rows: Option<u64>,
    new_rows: Option<u64>,
    only_old_columns: Vec<String>,
    only_new_columns: Vec<String>,
    same: bool,
    differences: Vec<Difference>,
}

#[derive(Debug, Deserialize)]
struct Difference {
    old: Option<Map<String, Value>>,
    new: Option<Map<String, Value>>,
}

/// The comparison for people.
pub(super) fn text(answer: &Value) -> Result<String> {
    let comparison =
        Comparison::deserialize(answer).context(|| "the service's answer cannot be read".into())?;
    let Comparison { view, old, new, tables, .. } = &comparison;
    let mut text = format!("{view}: {old} (old) and {new} (new){}\n", progress(&comparison));
    text.push_str(&output::table(["TABLE", "OLD ROWS", "NEW ROWS", ""], tables.iter().map(row).collect()));
    for table in tables.iter().filter(|table| !table.differences.is_empty()) {
        text.push_str(&format!("\n\n{}: rows that differ, {} shown", table.table, table.differences.len()));
        for difference in &table.differences {
            text.push_str(&format!("\n\n{}", beside(difference, old, new)));
        }
    }
    Ok(text)
}

fn progress(comparison: &Comparison) -> String {
    match (comparison.new_lacks_events, comparison.old_lacks_events) {
        (None, _) => "; the new one has not begun".to_owned(),
        (Some(0), Some(0) | None) => ", at the same events".to_owned(),
        (Some(new), old) => {
            let old = old.unwrap_or_default();
            format!(
                "; the new one lacks {new} events of the old one, which lacks {old} of its: rows may differ by that"
            )
        }
    }
}

fn row(table: &Table) -> [String; 4] {
    let rows = |rows: Option<u64>| rows.map_or_else(|| "-".into(), |rows| rows.to_string());
    let mut notes = Vec::new();
    match (table.old_rows, table.new_rows) {
        (Some(_), None) => notes.push("only in the old".to_owned()),
        (None, Some(_)) => notes.push("only in the new".to_owned()),
        _ if table.same => notes.push("same".to_owned()),
        _ => notes.push("differs".to_owned()),
    }
    for (columns, side) in [(&table.only_old_columns, "old"), (&table.only_new_columns, "new")] {
        let is_compared = table.old_rows.is_some() && table.new_rows.is_some();
        if is_compared && !columns.is_empty() {
            notes.push(format!("not compared, only in the {side}: {}", columns.join(", ")));
        }
    }
    [table.table.clone(), rows(table.old_rows), rows(table.new_rows), notes.join("; ")]
}

/// A row in both builds; what differs is marked.
fn beside(difference: &Difference, old: &str, new: &str) -> String {
    let shown = |row: &Option<Map<String, Value>>, column: &str| match row.as_ref().map(|row| &row[column]) {
        None => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    let columns = difference.old.as_ref().or(difference.new.as_ref()).into_iter().flat_map(Map::keys);
    let rows = columns.map(|column| {
        let (one, other) = (shown(&difference.old, column), shown(&difference.new, column));
        let mark = if one == other { " " } else { "*" };
        [mark.to_owned(), column.clone(), one, other]
    });
    output::table([" ", "COLUMN", old, new], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_differs_stands_side_by_side() {
        let answer = json!({
            "view": "history", "old": "v1-b1", "new": "v2-b1", "new_lacks_events": 0, "old_lacks_events": 0,
            "tables": [
                { "table": "orders", "old_rows": 3, "new_rows": 3, "only_old_columns": [], "only_new_columns": ["tax"],
                  "same": false, "differences": [
                      { "old": { "id": "o1", "cents": 5 }, "new": { "id": "o1", "cents": 6 } },
                      { "old": { "id": "o2", "cents": 7 }, "new": null } ] },
                { "table": "users", "old_rows": 1, "new_rows": 1, "only_old_columns": [], "only_new_columns": [],
                  "same": true, "differences": [] },
            ],
        });
        let expected = "\
history: v1-b1 (old) and v2-b1 (new), at the same events
TABLE   OLD ROWS  NEW ROWS
orders  3         3         differs; not compared, only in the new: tax
users   1         1         same

orders: rows that differ, 2 shown

   COLUMN  v1-b1  v2-b1
*  cents   5      6
   id      o1     o1

   COLUMN  v1-b1  v2-b1
*  cents   7      -
*  id      o2     -";
        assert_eq!(text(&answer).unwrap(), expected);
    }
}
