//! The arguments of `tombolo parked`, and of what is done to subscriptions. Invariant: what cannot be undone needs `--yes`.

use clap::{Args, Subcommand};
use tombolo_event::operator::PartitionOf;
use tombolo_event::{EventId, ServiceName};

use super::Reached;
use crate::output::Format;

/// What can be done about parked events.
#[derive(Debug, Subcommand)]
pub(crate) enum ParkedEvents {
    /// List what is parked in a subscription, with the reasons
    List(ParkedOf),
    /// Show one parked event, as it is stored
    Show(ShowParked),
    /// Try parked events again now, each key's in order
    Redrive(Redrive),
    /// Drop parked events for good; says which, and does it with --yes
    Discard(Discard),
}

/// Which subscription is meant, and how to show what became of it.
#[derive(Debug, Args)]
pub(crate) struct Asked {
    /// The subscription, or SERVICE/SUBSCRIPTION if several services have one of that name
    pub(crate) subscription: String,
    #[command(flatten)]
    pub(crate) how: How,
}

/// How what is asked is asked, and shown.
#[derive(Debug, Args)]
pub(crate) struct How {
    #[command(flatten)]
    pub(crate) reached: Reached,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// How many seconds to wait until it is done
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) wait: u64,
}

/// Options of `parked list`.
#[derive(Debug, Args)]
pub(crate) struct ParkedOf {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Only this key
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// At most so many events
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub(crate) limit: usize,
}

/// Options of `parked show`.
#[derive(Debug, Args)]
pub(crate) struct ShowParked {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// The event's id
    pub(crate) event: EventId,
}

/// Which parked events are meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct WhichParked {
    /// All of this key
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// This event; a redrive takes all of its key, because order is kept
    #[arg(long, value_name = "ID")]
    pub(crate) event: Option<EventId>,
    /// Everything that is parked in the subscription
    #[arg(long)]
    all: bool,
}

/// Options of `parked redrive`.
#[derive(Debug, Args)]
pub(crate) struct Redrive {
    #[command(flatten)]
    pub(crate) asked: Asked,
    #[command(flatten)]
    pub(crate) which: WhichParked,
}

/// Options of `parked discard`.
#[derive(Debug, Args)]
pub(crate) struct Discard {
    #[command(flatten)]
    pub(crate) asked: Asked,
    #[command(flatten)]
    pub(crate) which: WhichParked,
    /// Really do it
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Options of `subscriptions reset`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("where").required(true)))]
pub(crate) struct Reset {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Before the first event of every partition
    #[arg(long, group = "where")]
    pub(crate) to_start: bool,
    /// Before the first event that was published then or later, such as 2026-11-21T12:00:00Z
    #[arg(long, value_name = "TIME", group = "where")]
    pub(crate) to_time: Option<jiff::Timestamp>,
    /// So that this sequence is the next one handled in this partition; may be given several times
    #[arg(long, value_name = "TOPIC/PARTITION=SEQUENCE", group = "where", value_parser = sequence_of)]
    pub(crate) to_sequence: Vec<(PartitionOf, u64)>,
    /// Really do it
    #[arg(long)]
    pub(crate) yes: bool,
    /// Do it although it is a view
    #[arg(long)]
    pub(crate) force: bool,
}

/// Options of `subscriptions skip`.
#[derive(Debug, Args)]
pub(crate) struct Skip {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// The partition
    #[arg(value_name = "TOPIC/PARTITION", value_parser = partition_of)]
    pub(crate) of: PartitionOf,
    /// The last sequence that is stepped over [default: only the next event]
    #[arg(long, value_name = "SEQUENCE")]
    pub(crate) to: Option<u64>,
    /// Really do it
    #[arg(long)]
    pub(crate) yes: bool,
}

fn partition_of(text: &str) -> Result<PartitionOf, String> {
    let (topic, partition) = text.split_once('/').ok_or("expected TOPIC/PARTITION, such as orders/3")?;
    let topic = ServiceName::new(topic).map_err(|error| error.to_string())?;
    let partition =
        partition.parse().map_err(|_| format!("{partition:?} is not the number of a partition"))?;
    Ok(PartitionOf { topic, partition })
}

fn sequence_of(text: &str) -> Result<(PartitionOf, u64), String> {
    let (of, sequence) =
        text.split_once('=').ok_or("expected TOPIC/PARTITION=SEQUENCE, such as orders/3=120")?;
    let sequence = sequence.parse().map_err(|_| format!("{sequence:?} is not a sequence"))?;
    Ok((partition_of(of)?, sequence))
}
