//! `tombolo logs`: what a service wrote, from the files of the data folder, whether it runs or not.
//!
//! Invariant: with `--follow` no line is missed or shown twice, also when the file is put aside meanwhile.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::arguments::Logs;
use crate::error::{Context, Error, Result};
use crate::folder::{DataFolder, find};

/// How long between two looks at a file that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Shows a log.
pub(crate) async fn logs(arguments: Logs) -> Result<()> {
    let folder = match &arguments.found.data {
        Some(data) => DataFolder::at(data)?,
        None => DataFolder::at(&find(None)?.data)?,
    };
    let path = folder.log(&arguments.name);
    let mut file = File::open(&path).map_err(|_| unknown(&folder, &arguments.name))?;
    let doing = || format!("cannot show {}", path.display());
    let text = rest(&mut file).context(doing)?;
    show(last_lines(&text, arguments.lines)).context(doing)?;
    if !arguments.follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // Looked for before the rest is read: what is written meanwhile is in the one or in the other.
        let next = successor(&path, &file);
        show(&rest(&mut file).context(doing)?).context(doing)?;
        file = next.unwrap_or(file);
    }
}

/// What was written since the last look.
fn rest(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// The file that took the place of `file`, which was put aside.
fn successor(path: &Path, file: &File) -> Option<File> {
    let next = File::open(path).ok()?;
    let inode = |file: &File| file.metadata().map(|found| found.ino()).ok();
    (inode(&next) != inode(file)).then_some(next)
}

fn last_lines(text: &[u8], count: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut newlines = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    match count.checked_sub(1).map(|before| newlines.nth(before)) {
        None => &[],
        Some(None) => text,
        Some(Some(newline)) => &text[newline + 1..],
    }
}

fn show(text: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result,
    }
}

fn unknown(folder: &DataFolder, name: &str) -> Error {
    let entries = fs::read_dir(folder.path().join("logs")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log").map(str::to_owned))
        .collect();
    names.sort();
    let folder = folder.path().display();
    Error::not_found(match names.is_empty() {
        true => format!("there are no logs in {folder}; start the system with `tombolo dev`"),
        false => format!("there is no log of {name:?} in {folder}; there are: {}", names.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines_are_whole_lines() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb\nc", 1), b"c");
        assert_eq!(last_lines(b"a\nb\n", 9), b"a\nb\n");
        assert_eq!(last_lines(b"a\n", 0), b"");
        assert_eq!(last_lines(b"", 3), b"");
    }
}
