//! The command line of `tombolo archive`. Invariant: as in the file above.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use tombolo_bus::archiving::EVENTS_KEPT_MIN;
use tombolo_event::ServiceName;

use crate::output::Format;

/// Options of `archive`.
#[derive(Debug, Args)]
pub(crate) struct Archive {
    /// The bus that the topics are on
    #[arg(long, value_name = "URL")]
    pub(crate) from: String,
    /// The bus that keeps them for ever: postgres://…, or tombolo://… of a `tombolo bus` of its own
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// Only this topic; may be given several times [default: all, and those that come]
    #[arg(long = "topic", value_name = "NAME")]
    pub(crate) topics: Vec<ServiceName>,
    /// Copy what there is now, and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Remove from the bus what the archive has
    #[arg(long)]
    pub(crate) trim: bool,
    /// With --trim: events that are younger stay, such as 12h or 7d
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = age)]
    pub(crate) keep: Duration,
    /// With --trim: so many of the last events of each partition stay, however old: more than a service has on its way to the bus
    #[arg(long, value_name = "COUNT", default_value_t = EVENTS_KEPT_MIN)]
    pub(crate) keep_events: u64,
    /// Where to answer GET /metrics, in the format of Prometheus
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// How to show what is done: for scripts, each line is a JSON object
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

fn age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no age; expected a number and s, m, h or d, such as 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(number.checked_mul(seconds).ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_number_and_a_unit() {
        assert_eq!(age("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(age("0s"), Ok(Duration::ZERO));
        for wrong in ["", "7", "d", "-1d", "7w", "1.5h", "99999999999999999999d", "7ä"] {
            assert!(age(wrong).is_err(), "{wrong:?} is taken");
        }
    }
}
