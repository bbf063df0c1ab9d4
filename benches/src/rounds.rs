//! Yardstick and subject by turns, so that what the machine does meanwhile meets both.
//!
//! Invariant: a ratio is taken within one round, and of the rounds the median counts.

use std::time::{Duration, Instant};

use crate::error::Result;

/// The fewest rounds of a figure.
pub(crate) const ROUNDS_MIN: usize = 3;
/// How long the rounds of one figure may go on before the fewest are enough: on a busy disk a round takes seconds.
const ROUNDS_TIME_MAX: Duration = Duration::from_secs(25);

/// Counts the rounds of one figure: as many as wanted, or as time allows.
#[derive(Debug)]
pub(crate) struct Turns {
    began: Instant,
    wanted: usize,
    begun: usize,
}

impl Turns {
    pub(crate) fn new(wanted: usize) -> Self {
        Self { began: Instant::now(), wanted, begun: 0 }
    }

    /// Whether there is another round.
    pub(crate) fn next(&mut self) -> bool {
        let late = self.begun >= ROUNDS_MIN && self.began.elapsed() > ROUNDS_TIME_MAX;
        self.begun += 1;
        self.begun <= self.wanted && !late
    }
}

/// What one round measured: of the yardstick and of the subject, in the same unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) yardstick: f64,
    pub(crate) subject: f64,
}

/// The rounds of one figure.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds(pub(crate) Vec<Round>);

impl Rounds {
    /// Measures yardstick and subject by turns, `wanted` times if time allows.
    pub(crate) async fn measure(
        wanted: usize,
        mut yardstick: impl AsyncFnMut() -> Result<f64>,
        mut subject: impl AsyncFnMut() -> Result<f64>,
    ) -> Result<Self> {
        let mut rounds = Self::default();
        let mut turns = Turns::new(wanted);
        while turns.next() {
            let yardstick = yardstick().await?;
            rounds.0.push(Round { yardstick, subject: subject().await? });
        }
        Ok(rounds)
    }

    /// The median of the yardstick.
    pub(crate) fn yardstick(&self) -> f64 {
        median(self.0.iter().map(|round| round.yardstick))
    }

    /// The median of the subject.
    pub(crate) fn subject(&self) -> f64 {
        median(self.0.iter().map(|round| round.subject))
    }

    /// The ratios of subject to yardstick, smallest first.
    pub(crate) fn ratios(&self) -> Vec<f64> {
        sorted(self.0.iter().map(|round| round.subject / round.yardstick))
    }

    /// The median of the ratios.
    pub(crate) fn ratio(&self) -> f64 {
        median(self.ratios().into_iter())
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle value; of an even number the mean of the two in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let values = sorted(values);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_odd_round_does_not_move_the_figure() {
        let rounds = [(10.0, 20.0), (10.0, 21.0), (1.0, 90.0)];
        let rounds = rounds.map(|(yardstick, subject)| Round { yardstick, subject });
        assert_eq!(Rounds(rounds.to_vec()).ratio(), 2.1);
    }

    #[test]
    fn there_are_as_many_rounds_as_wanted_and_a_few_when_time_is_up() {
        let count = |mut turns: Turns| std::iter::from_fn(|| turns.next().then_some(())).count();
        assert_eq!(count(Turns::new(7)), 7);
        let long_ago = Instant::now().checked_sub(ROUNDS_TIME_MAX * 2).unwrap();
        assert_eq!(count(Turns { began: long_ago, wanted: 7, begun: 0 }), ROUNDS_MIN);
    }

    #[tokio::test]
    async fn yardstick_and_subject_take_turns() {
        let turns = std::cell::RefCell::new(String::new());
        let turn = |who: char| turns.borrow_mut().push(who);
        let yardstick = async || {
            turn('a');
            Ok(1.0)
        };
        let subject = async || {
            turn('b');
            Ok(2.0)
        };
        let rounds = Rounds::measure(3, yardstick, subject).await.unwrap();
        assert_eq!(*turns.borrow(), "ababab");
        assert_eq!(rounds.ratio(), 2.0);
    }
}
