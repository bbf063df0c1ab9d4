//! A mistake in the manifest, shown to its author: file, line, column, the line itself, a caret, and what to do.
//!
//! Invariant: every mistake found is shown, in the order of the file, so that one reading mends them all.

use std::ops::Range;
use std::path::Path;

/// What is wrong at one place of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// The place, in bytes.
    pub(crate) at: Range<usize>,
    /// What was found, and what was expected.
    pub(crate) message: String,
    /// What to do, beside the caret.
    pub(crate) advice: String,
}

/// Shows mistakes in the order of the text.
pub(crate) fn show(path: &Path, text: &str, mut mistakes: Vec<Mistake>) -> String {
    mistakes.sort_by_key(|mistake| mistake.at.start);
    let shown: Vec<_> = mistakes.iter().map(|mistake| show_one(path, text, mistake)).collect();
    shown.join("\n\n")
}

fn show_one(path: &Path, text: &str, mistake: &Mistake) -> String {
    let start = mistake.at.start.min(text.len());
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let number = text[..line_start].matches('\n').count() + 1;
    let column = text[line_start..start].chars().count();
    let end = mistake.at.end.clamp(start, line_start + line.len());
    let carets = text[start..end].chars().count().max(1);
    let margin = " ".repeat(number.to_string().len());
    let marks = format!("{}{} {}", " ".repeat(column), "^".repeat(carets), mistake.advice);
    format!(
        "{}:{number}:{}: {}\n{margin} |\n{number} | {line}\n{margin} | {}",
        path.display(),
        column + 1,
        mistake.message,
        marks.trim_end()
    )
}

/// The word among `known` that somebody who wrote `found` probably meant.
pub(crate) fn nearest<'k>(found: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let likeness = |word: &str| strsim::damerau_levenshtein(found, word);
    let tolerable = (found.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|word| (likeness(word), word))
        .filter(|(distance, word)| *distance <= tolerable || (found.len() > 2 && word.starts_with(found)))
        .min()
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_under_its_word_even_after_wide_letters() {
        let text = "a = 1\nümlaut = \"x\" # note\n";
        let at = text.find('"').unwrap();
        let mistake =
            Mistake { at: at..at + 3, message: "found a string".into(), advice: "write a number".into() };
        assert_eq!(
            show(Path::new("t.toml"), text, vec![mistake]),
            "t.toml:2:10: found a string\n  |\n2 | ümlaut = \"x\" # note\n  |          ^^^ write a number"
        );
    }

    #[test]
    fn a_typo_finds_its_word_and_nonsense_finds_none() {
        let known = ["command", "port", "database", "replicas", "env"];
        assert_eq!(nearest("comand", known), Some("command"));
        assert_eq!(nearest("prot", known), Some("port"));
        assert_eq!(nearest("repl", known), Some("replicas"));
        assert_eq!(nearest("colour", known), None);
    }

    #[test]
    fn a_place_beyond_the_text_is_shown_at_its_end() {
        let mistake = Mistake { at: 90..95, message: "ends early".into(), advice: String::new() };
        assert_eq!(show(Path::new("t"), "a =", vec![mistake]), "t:1:4: ends early\n  |\n1 | a =\n  |    ^");
    }
}
