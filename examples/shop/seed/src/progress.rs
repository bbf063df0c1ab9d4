//! The progress line, and numbers for people. Invariant: it goes to the standard error, and only if that is a terminal,
//! so that what is piped is the summary alone.

use indicatif::{ProgressBar, ProgressStyle};

/// A line that counts up to `length`.
pub(crate) fn line(what: &'static str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:<11} {bar:30} {human_pos}/{human_len} {per_sec} {msg}");
    let bar = ProgressBar::new(length as u64).with_prefix(what);
    match style {
        Ok(style) => bar.with_style(style),
        // The bar's own style shows the same with fewer words.
        Err(_) => bar,
    }
}

/// `5000` as `5,000`.
pub(crate) fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_parted() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
