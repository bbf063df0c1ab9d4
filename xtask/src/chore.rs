//! Commands run on behalf of the person at the terminal: shown before they run, their failure named.
//! Invariant: what is shown can be pasted into a shell.

use std::os::unix::process::CommandExt;
use std::process::Command;
use tombolo_servers::{Context, Error};

/// Runs a command with the terminal as its output.
pub(crate) fn run(command: &mut Command) -> Result<(), Error> {
    let shown = shown(command);
    eprintln!("xtask: {shown}");
    let status = command.status().context(|| format!("run `{shown}`"))?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("`{shown}` ended with {status}"))) }
}

/// Becomes a program, so that Ctrl-C and the exit code are its own; returns only if it could not be started.
pub(crate) fn exec(program: &mut Command) -> Error {
    let failed = program.exec();
    Error::new(format!("failed to run `{}`: {failed}", shown(program)))
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let program = if program.file_name().is_some_and(|name| name == "cargo") {
        "cargo".into()
    } else {
        program.to_string_lossy()
    };
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={} ", name.to_string_lossy(), quoted(&value?.to_string_lossy())))
    });
    let arguments = command.get_args().map(|argument| format!(" {}", quoted(&argument.to_string_lossy())));
    variables.chain([program.into_owned()]).chain(arguments).collect()
}

fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_=/.,:+@".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("/toolchain/bin/cargo");
        command.args(["doc", "it's", ""]).env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(shown(&command), r"RUSTDOCFLAGS='-D warnings' cargo doc 'it'\''s' ''");
    }
}
