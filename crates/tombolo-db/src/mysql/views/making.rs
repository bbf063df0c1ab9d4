//! Making the tables of a build and removing them, on servers that commit after each such statement.
//!
//! Invariant: a table is dropped only if a row says that it is a build's own, and that row is written before the table is made,
//! after it was seen that nothing of its name is there.

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, QueryBuilder, Row};

use super::super::{Mysql, PREFIX, signed};
use super::build;
use crate::views::{Making, find, refusal};
use crate::{Build, BuildId, Error, Kind, Result, Views, Wanted};

/// The longest name of a table.
const TABLE_CHARS_MAX: usize = 64;

impl Mysql {
    /// Makes a build, or finds it. The caller has the right to make tables.
    pub(super) async fn make(
        &self,
        connection: &mut MySqlConnection,
        wanted: &Wanted,
    ) -> Result<Option<Build>> {
        self.clear(connection, &wanted.view).await?;
        let known = self.known(connection, &wanted.view, wanted.version).await?;
        let number = match find(&known, wanted)? {
            Making::There(build) => return Ok(build),
            Making::New(number) => number,
        };
        let build = self.announce(connection, wanted, number).await?;
        if let Err(error) = self.make_tables(connection, &build).await {
            self.clear(connection, &wanted.view).await?;
            return Err(error);
        }
        self.finish_making(connection, &build).await?;
        Ok(Some(build))
    }

    /// Removes what was left of builds of a view: tables of dropped ones, and of those that were never made whole.
    pub(super) async fn clear(&self, connection: &mut MySqlConnection, view: &str) -> Result<()> {
        let left = sqlx::query(self.sql(
            "SELECT view, version, build, subscription, namespace, tables, switches, live_epoch, NULL, made IS NULL
             FROM tombolo_build WHERE view = ? AND (made IS NULL OR dropped IS NOT NULL AND cleared IS NULL)",
        ));
        for row in left.bind(view).fetch_all(&mut *connection).await? {
            let build = build(&row)?;
            self.drop_tables(connection, &build).await?;
            let done = match row.try_get(9)? {
                true => "DELETE FROM tombolo_build WHERE subscription = ?",
                false => "UPDATE tombolo_build SET cleared = UTC_TIMESTAMP(6) WHERE subscription = ?",
            };
            sqlx::query(self.sql(done)).bind(&build.subscription).execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Writes down that a build is about to be made.
    async fn announce(
        &self,
        connection: &mut MySqlConnection,
        wanted: &Wanted,
        number: u32,
    ) -> Result<Build> {
        let mut transaction = connection.begin().await?;
        self.lock_opening(&mut transaction).await?;
        let number = self.free_number(&mut transaction, wanted, number).await?;
        let build = self.new_build(wanted, number)?;
        self.check_names(&mut transaction, &build).await?;
        sqlx::query(self.sql(
            "INSERT INTO tombolo_build (view, version, build, subscription, namespace, tables, switches, request)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        ))
        .bind(&build.view)
        .bind(signed(build.id.version))
        .bind(signed(build.id.number))
        .bind(&build.subscription)
        .bind(&build.namespace)
        .bind(&build.tables)
        .bind(build.switches)
        .bind(wanted.request)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(build)
    }

    async fn make_tables(&self, connection: &mut MySqlConnection, build: &Build) -> Result<()> {
        let Some(declared) = &build.tables else { return Ok(()) };
        let sql = self.tables(build).resolve(declared)?;
        let sql = &sql[..end_of_statements(&sql)];
        if sql.is_empty() {
            return Ok(());
        }
        let made = connection.execute(AssertSqlSafe(sql.to_owned())).await;
        made.map(|_| ()).map_err(|error| refusal::not_made(build, error))
    }

    /// The tables stand: from here on the build is seen, and the first of its view is read.
    async fn finish_making(&self, connection: &mut MySqlConnection, build: &Build) -> Result<()> {
        let mut transaction = connection.begin().await?;
        let made = self.sql("UPDATE tombolo_build SET made = UTC_TIMESTAMP(6) WHERE subscription = ?");
        sqlx::query(made).bind(&build.subscription).execute(&mut *transaction).await?;
        let view = sqlx::query_scalar(self.sql("SELECT EXISTS (SELECT 1 FROM tombolo_view WHERE view = ?)"));
        let is_there: bool = view.bind(&build.view).fetch_one(&mut *transaction).await?;
        if !is_there {
            let first =
                self.sql("INSERT INTO tombolo_view (view, version, build, epoch) VALUES (?, ?, ?, 0)");
            let first = sqlx::query(first).bind(&build.view);
            let first = first.bind(signed(build.id.version)).bind(signed(build.id.number));
            first.execute(&mut *transaction).await?;
            self.point(&mut transaction, &build.view, build.id, 1).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// A subscription of the build's name that is older than the view's own tables has its cursors at events which those
    /// tables do not have: then the number is passed over.
    async fn free_number(
        &self,
        connection: &mut MySqlConnection,
        wanted: &Wanted,
        number: u32,
    ) -> Result<u32> {
        let subscription = BuildId { version: wanted.version, number }.subscription(&wanted.view);
        let is_taken = sqlx::query_scalar(
            self.sql("SELECT EXISTS (SELECT 1 FROM tombolo_cursor WHERE subscription = ?)"),
        );
        let is_taken: bool = is_taken.bind(subscription).fetch_one(connection).await?;
        Ok(number + u32::from(wanted.tables.is_some() && is_taken))
    }

    /// Services that share a database have prefixes of their own for Tombolo's tables, and so for their builds.
    fn new_build(&self, wanted: &Wanted, number: u32) -> Result<Build> {
        let mut build = Build::new(wanted, number);
        if &*self.prefix != PREFIX {
            build.namespace = format!("{}{}", self.prefix, build.namespace);
        }
        match own_names(self, &build).into_iter().find(|name| name.len() > TABLE_CHARS_MAX) {
            None => Ok(build),
            Some(name) => Err(Error::new(
                Kind::View,
                format!(
                    "a table of {} would be called {name:?}, which has more than {TABLE_CHARS_MAX} characters; give the view or the table a shorter name",
                    build.of()
                ),
            )),
        }
    }

    /// Refuses names that somebody else's tables have.
    async fn check_names(&self, connection: &mut MySqlConnection, build: &Build) -> Result<()> {
        let there = self.own_tables(connection, build).await?;
        let Some((_, name)) = there.first() else { return Ok(()) };
        Err(Error::new(
            Kind::View,
            format!(
                "{} is to have a table {name:?}, but the database has one of that name already, which no build made; rename it, or give the view another name",
                build.of()
            ),
        ))
    }

    /// Which of the names of a build are in the database: views first, then tables.
    async fn own_tables(
        &self,
        connection: &mut MySqlConnection,
        build: &Build,
    ) -> Result<Vec<(&'static str, String)>> {
        let names = own_names(self, build);
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut own = QueryBuilder::new(
            "SELECT table_name, table_type = 'VIEW' FROM information_schema.tables
             WHERE table_schema = DATABASE() AND table_name IN (",
        );
        let mut list = own.separated(", ");
        names.iter().for_each(|name| {
            list.push_bind(name);
        });
        own.push(") ORDER BY table_type = 'VIEW' DESC, table_name");
        let rows = own.build().persistent(false).fetch_all(connection).await?;
        let kind = |is_view| if is_view { "VIEW" } else { "TABLE" };
        rows.iter().map(|row| Ok((kind(row.try_get(1)?), row.try_get(0)?))).collect()
    }

    /// Drops what a build made that does not go by itself. Indexes and triggers go with their tables. Waits for whoever
    /// writes to them.
    async fn drop_tables(&self, connection: &mut MySqlConnection, build: &Build) -> Result<()> {
        let own = self.own_tables(connection, build).await?;
        if own.is_empty() {
            return Ok(());
        }
        let mut sql = String::from("SET @tombolo_checks = @@foreign_key_checks, foreign_key_checks = 0");
        own.iter().for_each(|(kind, name)| sql.push_str(&format!("; DROP {kind} IF EXISTS `{name}`")));
        sql.push_str("; SET foreign_key_checks = @tombolo_checks");
        connection.execute(AssertSqlSafe(sql)).await?;
        Ok(())
    }
}

/// The names that a build's declaration has in braces, as they are in the database: of tables, views, and indexes.
fn own_names(database: &Mysql, build: &Build) -> Vec<String> {
    database.tables(build).names().map(|name| format!("{}_{name}", build.namespace)).collect()
}

/// Where the last statement of a text ends: what comes after it, spaces, semicolons and comments, would be an empty statement,
/// which these servers refuse.
fn end_of_statements(sql: &str) -> usize {
    let mut end = 0;
    let mut at = 0;
    while let Some(next) = sql[at..].chars().next() {
        let rest = &sql[at..];
        let length = match next {
            '\'' | '"' | '`' => quoted(rest, next),
            '#' => line(rest),
            '-' if rest.starts_with("--") => line(rest),
            // What is in such a comment may be a statement all the same.
            '/' if rest.starts_with("/*!") || rest.starts_with("/*M!") => 1,
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            _ => next.len_utf8(),
        };
        at += length;
        let is_comment =
            matches!(next, '#') || rest.starts_with("--") || (rest.starts_with("/*") && length > 1);
        if !is_comment && next != ';' && !next.is_whitespace() {
            end = at;
        }
    }
    end
}

/// The length of what is in quotes at the beginning of a text, with them. A quote that is written twice begins anew.
fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' if quote != '`' => is_escaped = true,
            _ if letter == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn line(text: &str) -> usize {
    text.find('\n').map_or(text.len(), |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_last_statement_is_cut_off_and_nothing_else() {
        for (sql, expected) in [
            ("CREATE TABLE a (b int); -- both\n", "CREATE TABLE a (b int)"),
            ("CREATE TABLE a (b int); # both\n;;", "CREATE TABLE a (b int)"),
            ("CREATE TABLE a (b int) /* why */ ;", "CREATE TABLE a (b int)"),
            ("CREATE TABLE a (b int DEFAULT '-- ;')", "CREATE TABLE a (b int DEFAULT '-- ;')"),
            ("CREATE TABLE a (b int DEFAULT 'it''s \\'# ')", "CREATE TABLE a (b int DEFAULT 'it''s \\'# ')"),
            ("A; /*!80000 B */", "A; /*!80000 B */"),
            ("CREATE TABLE ü (b int); ", "CREATE TABLE ü (b int)"),
            (" -- nothing\n ; ", ""),
        ] {
            assert_eq!(&sql[..end_of_statements(sql)], expected);
        }
    }
}
