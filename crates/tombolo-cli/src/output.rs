//! How lists are shown. Invariant: tables are for people and may change; JSON is for scripts and may not.

use comfy_table::{ContentArrangement, Table, presets};

/// How a list is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

/// A table without lines, which can be copied and cut.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A URL as it may be shown: without its user and password.
pub(crate) fn without_password(url: &str) -> String {
    let is_path = ["sqlite:", "tombolo+unix:", "file:"].iter().any(|scheme| url.starts_with(scheme));
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) if !is_path => format!("{scheme}://…@{place}"),
        _ => url.to_owned(),
    }
}

/// Prints `text` and a newline. A reader that has closed the pipe has seen enough, so that is no error.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password_and_a_path_as_it_is() {
        assert_eq!(without_password("postgres://shop:p@ss@db/orders"), "postgres://…@db/orders");
        assert_eq!(without_password("nats://db:4222/shop"), "nats://db:4222/shop");
        assert_eq!(without_password("sqlite:///a@b/c.db?mode=rwc"), "sqlite:///a@b/c.db?mode=rwc");
    }
}
