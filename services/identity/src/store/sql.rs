//! How a database runs a statement, and the few words in which its SQL differs from that of the others.
//!
//! Statements are written with `?` for each value. No value becomes a part of a statement's text.
//!
//! Invariant: what is different between the databases is in [`Words`], in their tables, and nowhere else.

use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Encode, FromRow, Row, Type};
use tombolo::{Database, Result};

use super::{Account, Refresh, StoredKey};

/// A value of a statement.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// Text.
    Text(&'a str),
    /// A number.
    Number(i64),
    /// Bytes.
    Bytes(&'a [u8]),
    /// Yes or no.
    Flag(bool),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<bool> for Value<'_> {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

/// A statement with a `?` for each of its values.
pub struct Statement<'a> {
    /// What is asked.
    pub text: String,
    /// The values, in the order of their places.
    pub values: Vec<Value<'a>>,
}

impl<'a> Statement<'a> {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    #[must_use]
    pub(super) fn bind(mut self, value: impl Into<Value<'a>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// As sqlx runs it.
    pub(super) fn query<D>(&self) -> Query<'a, D, D::Arguments>
    where
        D: sqlx::Database,
        &'a str: Encode<'a, D> + Type<D>,
        &'a [u8]: Encode<'a, D> + Type<D>,
        i64: Encode<'a, D> + Type<D>,
        bool: Encode<'a, D> + Type<D>,
    {
        let query = sqlx::query(AssertSqlSafe(self.text.clone()));
        self.values.iter().fold(query, |query, value| match *value {
            Value::Text(text) => query.bind(text),
            Value::Number(number) => query.bind(number),
            Value::Bytes(bytes) => query.bind(bytes),
            Value::Flag(flag) => query.bind(flag),
        })
    }
}

/// The words that differ.
#[derive(Debug)]
pub struct Words {
    /// Behind a `SELECT`: what it finds stays so until the transaction ends, and is waited for.
    pub locked: &'static str,
    /// The same, but what others have locked is passed over.
    pub unlocked: &'static str,
    /// Begins an insert of a row that may be there already, which then stays as it is.
    pub insert_new: &'static str,
    /// Ends it.
    pub unless_there: &'static str,
    /// Compares with a pattern, whatever is written large or small.
    pub like: &'static str,
}

/// A row that a `T` can be read from.
pub trait Holds<T> {
    /// Reads it.
    ///
    /// # Errors
    /// If the columns are others.
    fn read(&self) -> sqlx::Result<T>;
}

impl<R: Row, T: for<'r> FromRow<'r, R>> Holds<T> for R {
    fn read(&self) -> sqlx::Result<T> {
        T::from_row(self)
    }
}

/// A database that runs the service's statements.
pub trait Sql: Database {
    /// Its rows.
    type Row: Holds<Account>
        + Holds<StoredKey>
        + Holds<Refresh>
        + Holds<(String,)>
        + Holds<(String, String)>
        + Send;

    /// In what its SQL differs.
    const WORDS: Words;

    /// Makes the tables that are not there yet.
    fn make_tables(&self) -> impl Future<Output = Result<()>> + Send;

    /// Runs a statement in a transaction; how many rows it wrote.
    fn run(tx: &mut Self::Tx, statement: Statement<'_>) -> impl Future<Output = Result<u64>> + Send;

    /// What a statement finds in a transaction.
    fn find(
        tx: &mut Self::Tx,
        statement: Statement<'_>,
    ) -> impl Future<Output = Result<Vec<Self::Row>>> + Send;

    /// What a statement finds by itself.
    fn look(&self, statement: Statement<'_>) -> impl Future<Output = Result<Vec<Self::Row>>> + Send;
}

/// All rows, read.
pub(super) fn all<T, R: Holds<T>>(rows: &[R]) -> Result<Vec<T>> {
    Ok(rows.iter().map(R::read).collect::<sqlx::Result<_>>()?)
}

/// The first row, read.
pub(super) fn first<T, R: Holds<T>>(rows: &[R]) -> Result<Option<T>> {
    Ok(rows.first().map(R::read).transpose()?)
}
