//! What is printed: one row for each figure, beside its yardstick and its bar, as Markdown or as JSON.
//!
//! Invariant: a row shows what was measured, met or not; a figure without a bar is there to explain another.

use serde::Serialize;

use crate::rounds::Rounds;

/// What a ratio, or a time, is held against.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    /// The ratio must be so large.
    AtLeast(f64),
    /// The ratio must not be larger.
    AtMost(f64),
    /// The seconds must be fewer; there is no yardstick but time.
    UnderSeconds(f64),
    /// The value must be smaller, in its own unit; there is no yardstick.
    Under(f64),
    /// The value must be so large, in its own unit; there is no yardstick.
    Reaches(f64),
    /// Only shown.
    None,
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// The figure, with its unit.
    pub(crate) figure: String,
    /// The yardstick, with its unit.
    pub(crate) yardstick: String,
    /// The median of the rounds' ratios.
    pub(crate) ratio: Option<f64>,
    /// The smallest and the largest of them.
    pub(crate) spread: Option<(f64, f64)>,
    /// What it is held against.
    pub(crate) bar: Bar,
    /// Whether that holds; none where there is no bar, or nothing could be measured.
    pub(crate) met: Option<bool>,
    /// The load average of the last minute when it was measured.
    pub(crate) load: f64,
}

impl Row {
    /// A row of rounds; `show` writes a figure with its unit.
    pub(crate) fn of(what: &str, rounds: &Rounds, bar: Bar, show: fn(f64) -> String) -> Self {
        let (ratio, ratios) = (rounds.ratio(), rounds.ratios());
        Self {
            what: what.to_owned(),
            figure: show(rounds.subject()),
            yardstick: show(rounds.yardstick()),
            ratio: Some(ratio),
            spread: ratios.first().copied().zip(ratios.last().copied()),
            bar,
            met: is_met(bar, ratio),
            load: crate::scratch::load(),
        }
    }

    /// A row of a time in seconds.
    pub(crate) fn of_seconds(what: &str, seconds: f64, bar: Bar) -> Self {
        Self {
            what: what.to_owned(),
            figure: format!("{seconds:.2} s"),
            yardstick: "the clock".to_owned(),
            ratio: None,
            spread: None,
            bar,
            met: is_met(bar, seconds),
            load: crate::scratch::load(),
        }
    }

    /// A row of a value in its own unit.
    pub(crate) fn of_value(what: &str, value: f64, unit: &str, bar: Bar) -> Self {
        Self {
            figure: format!("{value:.2} {unit}"),
            yardstick: "–".to_owned(),
            ..Self::of_seconds(what, value, bar)
        }
    }

    /// A row that could not be measured, and why.
    pub(crate) fn absent(what: &str, why: String, bar: Bar) -> Self {
        let (ratio, spread, met) = (None, None, None);
        let load = crate::scratch::load();
        Self {
            what: what.to_owned(), figure: why, yardstick: "–".to_owned(), ratio, spread, bar, met, load
        }
    }

    /// Adds to the figure's text.
    #[must_use]
    pub(crate) fn noting(mut self, note: &str) -> Self {
        self.figure = format!("{} ({note})", self.figure);
        self
    }

    fn markdown(&self) -> String {
        let ratio = self.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        let spread = self.spread.map_or(String::new(), |(low, high)| format!(" ({low:.2} to {high:.2})"));
        let bar = match self.bar {
            Bar::AtLeast(least) | Bar::Reaches(least) => format!("≥ {least}"),
            Bar::AtMost(ratio) => format!("≤ {ratio}"),
            Bar::UnderSeconds(seconds) => format!("< {seconds} s"),
            Bar::Under(most) => format!("< {most}"),
            Bar::None => "–".to_owned(),
        };
        let met = self.met.map_or("–", |met| if met { "yes" } else { "no" });
        let Self { what, figure, yardstick, load, .. } = self;
        format!("| {what} | {figure} | {yardstick} | {ratio}{spread} | {bar} | {met} | {load:.2} |")
    }
}

fn is_met(bar: Bar, value: f64) -> Option<bool> {
    match bar {
        Bar::AtLeast(least) | Bar::Reaches(least) => Some(value >= least),
        Bar::AtMost(most) => Some(value <= most),
        Bar::UnderSeconds(most) | Bar::Under(most) => Some(value < most),
        Bar::None => None,
    }
}

/// The first lines of the Markdown table.
pub(crate) const HEAD: &str = "| what | figure | yardstick | ratio (spread of the rounds) | bar | met? | load |\n|---|---|---|---|---|---|---|";

/// All rows as a Markdown table.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let lines = rows.iter().map(Row::markdown);
    std::iter::once(HEAD.to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
}

/// Events per second.
pub(crate) fn rate(events: f64) -> String {
    match events {
        many if many >= 1e6 => format!("{:.2}M/s", many / 1e6),
        some => format!("{:.0}k/s", some / 1e3),
    }
}

/// Microseconds.
pub(crate) fn micros(us: f64) -> String {
    format!("{us:.0} µs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_bar_is_shown_as_missed() {
        for (bar, value, met) in [
            (Bar::AtLeast(0.5), 0.49, Some(false)),
            (Bar::AtLeast(0.5), 0.5, Some(true)),
            (Bar::AtMost(1.5), 1.6, Some(false)),
            (Bar::UnderSeconds(2.0), 2.0, Some(false)),
            (Bar::Reaches(5_000.0), 4_999.0, Some(false)),
            (Bar::Reaches(5_000.0), 5_000.0, Some(true)),
            (Bar::None, 9.0, None),
        ] {
            assert_eq!(is_met(bar, value), met, "{bar:?} {value}");
        }
    }

    #[test]
    fn what_was_not_measured_counts_as_neither() {
        let row = Row::absent("x", "no binary".into(), Bar::UnderSeconds(2.0));
        assert!(markdown(&[row]).contains("| no binary | – | – | < 2 s | – |"));
    }
}
