//! The tables of one build of a view, and the SQL that names them in braces: `{orders}` is the build's own table.
//!
//! Each build has tables of its own, so that the next one can be made beside it: a schema for each build where the
//! database has schemas, else a prefix. The same SQL makes, writes and reads the tables of every build.
//!
//! Invariant: a name in braces that the view did not declare is an error which lists the ones that it did, never SQL.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::{Error, Kind, Result};

/// What is named in front of which SQL takes no schema: it lies where its table lies.
const WITHOUT_SCHEMA: [&str; 4] = ["INDEX", "CONSTRAINT", "TRIGGER", "RULE"];

/// How the tables of a build are told from those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(all(
        feature = "postgres",
        feature = "documents",
        feature = "mongodb",
        any(feature = "sqlite", feature = "mysql")
    )),
    expect(dead_code, reason = "each database has its own way")
)]
pub(crate) enum Apart {
    /// By a schema for each build.
    BySchema,
    /// By a prefix for each build, in the quotes that the database has for names.
    ByPrefix(char),
    /// They are collections of documents, which no SQL names.
    Collections,
    /// The same, with names that people type in a shell.
    Dotted,
}

/// What the names in braces stand for in one build of a view. Cheap to clone.
#[derive(Clone)]
pub struct Tables(Arc<Inner>);

struct Inner {
    /// Whose tables they are, for people.
    of: String,
    apart: Apart,
    namespace: String,
    names: BTreeSet<String>,
    /// What came of a text before. A static text is known by its place, so that nothing is read for each event.
    resolved: Mutex<HashMap<(usize, usize), Arc<str>>>,
}

impl Tables {
    #[cfg(any(
        feature = "sqlite",
        feature = "postgres",
        feature = "mysql",
        feature = "documents",
        feature = "mongodb"
    ))]
    /// The tables that `declared` makes for the build `of` in `namespace`.
    pub(crate) fn new(of: String, apart: Apart, namespace: &str, declared: &str) -> Self {
        let names = pieces(declared).filter_map(|piece| match piece {
            Piece::Name(name) => Some(name.to_owned()),
            Piece::Text(_) => None,
        });
        let (names, namespace) = (names.collect(), namespace.to_owned());
        Self(Arc::new(Inner { of, apart, namespace, names, resolved: Mutex::default() }))
    }

    /// `text` with the build's own tables in the places of their names in braces, for `sqlx::query`. A brace that is
    /// meant as such is written twice: `{{`.
    ///
    /// # Errors
    /// `View` for a name that the view's tables do not have.
    pub fn sql(&self, text: &'static str) -> Result<SqlStr> {
        let place = (text.as_ptr().addr(), text.len());
        let mut resolved = self.0.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let sql = match resolved.get(&place) {
            Some(sql) => Arc::clone(sql),
            None => {
                let sql: Arc<str> = self.resolve(text)?.into();
                resolved.insert(place, Arc::clone(&sql));
                sql
            }
        };
        Ok(AssertSqlSafe(sql).into_sql_str())
    }

    /// What the store calls the build's own collection of a name.
    #[cfg(any(feature = "documents", feature = "mongodb"))]
    pub(crate) fn collection(&self, name: &str) -> Result<String> {
        match self.0.names.contains(name) {
            true => Ok(self.qualified(name, false)),
            false => Err(self.unknown(name)),
        }
    }

    /// The names that the view declared, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names.iter().map(String::as_str)
    }

    pub(crate) fn resolve(&self, text: &str) -> Result<String> {
        if matches!(self.0.apart, Apart::Collections | Apart::Dotted) {
            return Err(self.without_sql());
        }
        let mut sql = String::with_capacity(text.len() * 2);
        for piece in pieces(text) {
            match piece {
                Piece::Text(text) => sql.push_str(text),
                Piece::Name(name) if self.0.names.contains(name) => {
                    let name = self.qualified(name, is_without_schema(&sql));
                    sql.push_str(&name);
                }
                Piece::Name(name) => return Err(self.unknown(name)),
            }
        }
        Ok(sql)
    }

    fn qualified(&self, name: &str, without_schema: bool) -> String {
        let namespace = &self.0.namespace;
        match self.0.apart {
            Apart::ByPrefix(quote) => format!("{quote}{namespace}_{name}{quote}"),
            Apart::BySchema if without_schema => format!("\"{name}\""),
            Apart::BySchema => format!("\"{namespace}\".\"{name}\""),
            Apart::Collections => format!("view/{namespace}/{name}"),
            Apart::Dotted => format!("{namespace}.{name}"),
        }
    }

    fn without_sql(&self) -> Error {
        let of = &self.0.of;
        Error::new(
            Kind::View,
            format!(
                "{of} has collections of documents, and no SQL; name one as `Collection::of_view(…)` of documents, or `tx.view_collection(…)` of MongoDB"
            ),
        )
    }

    fn unknown(&self, name: &str) -> Error {
        let of = &self.0.of;
        let names: Vec<String> = self.0.names.iter().map(|name| format!("{{{name}}}")).collect();
        let known = match names.is_empty() {
            true => "it has none of its own: declare them with `.tables(…)`".to_owned(),
            false => format!("it has {}", names.join(", ")),
        };
        Error::new(
            Kind::View,
            format!(
                "{of} has no table {{{name}}}; {known}; a brace that is meant as such is written twice, {{{{"
            ),
        )
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").field("of", &self.0.of).field("names", &self.0.names).finish_non_exhaustive()
    }
}

/// Whether what comes next names an index or the like.
fn is_without_schema(before: &str) -> bool {
    let mut words = before.split_whitespace().rev().peekable();
    for word in ["EXISTS", "NOT", "IF"] {
        words.next_if(|found| found.eq_ignore_ascii_case(word));
    }
    words.next().is_some_and(|last| WITHOUT_SCHEMA.iter().any(|word| last.eq_ignore_ascii_case(word)))
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'t> {
    Text(&'t str),
    Name(&'t str),
}

/// Cuts a text at its names in braces.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, length) = match (rest.strip_prefix('{'), name_at(rest)) {
            (_, Some(name)) => (Piece::Name(name), name.len() + 2),
            (Some(after), None) if after.starts_with('{') => (Piece::Text("{"), 2),
            (Some(after), None) => {
                let end = 1 + after.find('{').unwrap_or(after.len());
                (Piece::Text(&rest[..end]), end)
            }
            (None, None) => {
                let end = rest.find('{').unwrap_or(rest.len());
                (Piece::Text(&rest[..end]), end)
            }
        };
        rest = &rest[length..];
        Some(piece)
    })
}

/// The name in braces with which `text` begins: lowercase letters, digits and `_`, not a digit first.
fn name_at(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix('{')?.split_once('}')?;
    let is_word = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    (is_word && name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')).then_some(name)
}

#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "documents",
    feature = "mongodb"
))]
/// Whether two texts declare the same, apart from spaces and comments.
pub(crate) fn declare_the_same(one: &str, other: &str) -> bool {
    let words = |text| {
        let lines = str::lines(text).map(|line| line.split_once("--").map_or(line, |(before, _)| before));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect::<Vec<_>>()
    };
    words(one) == words(other)
}

/// Whether a text declares collections and nothing else: names in braces, between them spaces, commas and comments.
#[cfg(any(feature = "documents", feature = "mongodb"))]
pub(crate) fn declares_collections(text: &str) -> bool {
    let lines = text.lines().map(|line| line.split_once("--").map_or(line, |(before, _)| before));
    let mut pieces = lines.flat_map(|line| pieces(line).collect::<Vec<_>>());
    pieces.all(|piece| match piece {
        Piece::Name(_) => true,
        Piece::Text(text) => text.chars().all(|other| other.is_whitespace() || other == ','),
    })
}

#[cfg(all(
    test,
    any(
        feature = "sqlite",
        feature = "postgres",
        feature = "mysql",
        feature = "documents",
        feature = "mongodb"
    )
))]
mod tests {
    use super::*;

    const DECLARED: &str =
        "CREATE TABLE {orders} (id TEXT); CREATE INDEX IF NOT EXISTS {by_user} ON {orders} (id);";

    fn tables(apart: Apart) -> Tables {
        Tables::new("build v2-b1 of view \"history\"".into(), apart, "history_v2_b1", DECLARED)
    }

    #[test]
    fn names_in_braces_become_the_tables_of_the_build() {
        assert_eq!(
            tables(Apart::ByPrefix('"')).resolve(DECLARED).unwrap(),
            "CREATE TABLE \"history_v2_b1_orders\" (id TEXT); CREATE INDEX IF NOT EXISTS \"history_v2_b1_by_user\" ON \"history_v2_b1_orders\" (id);"
        );
        assert_eq!(
            tables(Apart::BySchema).resolve(DECLARED).unwrap(),
            "CREATE TABLE \"history_v2_b1\".\"orders\" (id TEXT); CREATE INDEX IF NOT EXISTS \"by_user\" ON \"history_v2_b1\".\"orders\" (id);"
        );
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = tables(Apart::ByPrefix('"')).sql("SELECT 1 FROM {ordres}").unwrap_err();
        assert_eq!(error.kind(), Kind::View);
        assert!(error.to_string().contains("no table {ordres}; it has {by_user}, {orders}"), "{error}");
    }

    #[test]
    fn other_braces_stay_as_they_are_and_two_are_one() {
        let resolve = |text| tables(Apart::ByPrefix('"')).resolve(text).unwrap();
        assert_eq!(
            resolve("SELECT '{}', '{\"a\": 1}', '{{orders}', '{A}', '{'"),
            "SELECT '{}', '{\"a\": 1}', '{orders}', '{A}', '{'"
        );
        assert_eq!(resolve("{orders}"), "\"history_v2_b1_orders\"");
    }

    #[test]
    fn a_text_is_resolved_once() {
        let tables = tables(Apart::ByPrefix('"'));
        let text = "SELECT 1 FROM {orders}";
        let (first, second) = (tables.sql(text).unwrap(), tables.sql(text).unwrap());
        assert_eq!(first.as_str().as_ptr(), second.as_str().as_ptr());
    }

    #[test]
    fn comments_and_spaces_declare_nothing() {
        assert!(declare_the_same("CREATE TABLE {a} (b); -- why", "CREATE  TABLE {a}\n(b);"));
        assert!(!declare_the_same("CREATE TABLE {a} (b)", "CREATE TABLE {a} (b, c)"));
    }
}
