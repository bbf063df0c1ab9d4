//! `tombolo archive`: copies topics to a bus that keeps them for ever, as they grow, and removes from where they were what is kept there.
//!
//! It keeps nothing of its own: where it goes on is where the archive ends, so it may be killed at any moment, or run twice.
//!
//! Invariant: a topic that cannot be archived is said, with the reason, and holds up no other; nothing is removed from the bus for an
//! archive that a power cut could take it from.

mod metrics;
mod topic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tombolo_bus::archiving::Archiver;
use tombolo_bus::{Bus, Identity};
use tombolo_event::ServiceName;

use crate::arguments::Archive;
use crate::commands::bus::{end_on_signal, trace};
use crate::commands::{connect, say, show};
use crate::error::{Error, Kind, Result};
use crate::output::Format;
use metrics::Metrics;
use topic::{Kept, Topic};

/// How often it is said how far the archive is, and looked whether there are other topics.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// `tombolo archive`.
pub(crate) async fn archive(arguments: Archive) -> Result<()> {
    trace();
    let work = Work::begin(arguments).await?;
    let done = if work.arguments.once { work.once().await } else { work.follow().await };
    work.bus.close().await;
    if let Some(archive) = &work.archive {
        archive.close().await;
    }
    done
}

/// What is to be done.
struct Work {
    arguments: Archive,
    bus: Arc<dyn Bus>,
    /// One connection for all topics; none where each topic is written in the name of its owner.
    archive: Option<Arc<dyn Bus>>,
}

impl Work {
    async fn begin(arguments: Archive) -> Result<Self> {
        let bus = connect(&arguments.from, &Identity::Operator).await?;
        // Only a `tombolo bus` asks in whose name.
        let is_asked = arguments.to.starts_with("tombolo");
        let archive = connect(&arguments.to, &Identity::Operator).await?;
        archive.topics().await?;
        let guarantee = archive.guarantee();
        if arguments.trim && !guarantee.survives_power_cut {
            let message = format!(
                "nothing is archived: with --trim the bus would lose what a power cut takes from the archive, {}: {}; use an archive \
                 that syncs what it acknowledges, or leave out --trim",
                guarantee.engine, guarantee.detail
            );
            return Err(Error::failed(message));
        }
        if is_asked {
            archive.close().await;
        }
        Ok(Self { arguments, bus, archive: (!is_asked).then_some(archive) })
    }

    /// The topics that are meant and there.
    async fn wanted(&self) -> Result<Vec<ServiceName>> {
        let names = self.bus.topics().await?.into_iter().map(|topic| topic.name);
        let wanted = &self.arguments.topics;
        Ok(names.filter(|name| wanted.is_empty() || wanted.contains(name)).collect())
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        let archive = match &self.archive {
            Some(archive) => Arc::clone(archive),
            None => connect(&self.arguments.to, &Identity::Service(name.clone())).await?,
        };
        let archiver = Archiver::new(Arc::clone(&self.bus), archive, name.clone());
        let kept = self
            .arguments
            .trim
            .then_some(Kept { age: self.arguments.keep, events: self.arguments.keep_events });
        let topic = Topic::new(name.clone(), archiver, kept);
        topic.check().await?;
        Ok(topic)
    }

    /// Copies what there is now.
    async fn once(&self) -> Result<()> {
        let there_are = self.wanted().await?;
        if let Some(name) = self.arguments.topics.iter().find(|name| !there_are.contains(name)) {
            return Err(Error::not_found(format!("there is no topic {name} on the bus")));
        }
        let (mut rows, mut list, mut failed) = (Vec::new(), Vec::new(), 0);
        for name in &there_are {
            let topic = self.topic(name).await?;
            let done = topic.once().await;
            failed += u32::from(done.is_err());
            let state = done.err().map_or_else(|| "archived".to_owned(), |error| error.message);
            let (archived, behind) = topic.standing().await.unwrap_or_default();
            let removed = topic.removed();
            list.push(json!({
                "topic": name, "archived": archived, "behind": behind, "removed": removed, "state": state,
            }));
            rows.push([
                name.to_string(),
                archived.to_string(),
                behind.to_string(),
                removed.to_string(),
                state,
            ]);
        }
        let header = ["TOPIC", "ARCHIVED", "BEHIND", "REMOVED", "STATE"];
        show(self.arguments.format, header, rows, &Value::Array(list))?;
        match failed {
            0 => Ok(()),
            _ => Err(Error::failed(format!("{failed} of {} topics could not be archived", there_are.len()))),
        }
    }

    /// Copies topics as they grow, until it is told to end.
    async fn follow(&self) -> Result<()> {
        let shutdown = CancellationToken::new();
        let ended = end_on_signal(shutdown.clone(), None)?;
        let board = metrics::Board::default();
        let mut tasks = JoinSet::new();
        if let Some(listen) = self.arguments.metrics {
            let metrics = Metrics::bind(listen, board.clone()).await?;
            let url = metrics.url()?;
            match self.arguments.format {
                Format::Table => say(&format!("metrics on {url}"))?,
                Format::Json => say(&json!({ "metrics": url }).to_string())?,
            }
            tasks.spawn(metrics.serve(shutdown.clone()));
        }
        let working = self.work(&board, &mut tasks);
        tokio::select! {
            failed = working => failed?,
            () = ended => {}
        }
        tasks.shutdown().await;
        Ok(())
    }

    async fn work(&self, board: &metrics::Board, tasks: &mut JoinSet<Result<()>>) -> Result<()> {
        let mut look = tokio::time::interval(REPORT_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = BTreeMap::new();
        loop {
            tokio::select! {
                _ = look.tick() => {}
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    ended.map_err(|error| Error::failed(format!("an archiver ended: {error}")))??;
                    continue;
                }
            }
            match self.wanted().await {
                Ok(names) => {
                    for name in names.iter().filter(|name| !board.has(name)) {
                        self.begin_topic(name, board, tasks).await?;
                    }
                }
                Err(error) => tracing::warn!("the topics of the bus cannot be listed: {}", error.message),
            }
            self.report(board, &mut said).await?;
        }
    }

    async fn begin_topic(
        &self,
        name: &ServiceName,
        board: &metrics::Board,
        tasks: &mut JoinSet<Result<()>>,
    ) -> Result<()> {
        match self.topic(name).await {
            Ok(topic) => {
                let topic = Arc::new(topic);
                board.add(&topic);
                tasks.spawn(async move { topic.follow().await });
            }
            Err(error) if error.kind == Kind::NotRunning => {
                tracing::warn!(topic = %name, "is not archived yet: {}", error.message);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Says of each topic how far it is, if that is something else than before.
    async fn report(&self, board: &metrics::Board, said: &mut BTreeMap<ServiceName, String>) -> Result<()> {
        for topic in board.topics() {
            let state = topic.state();
            let line = match (topic.standing().await, self.arguments.format) {
                (Ok((archived, behind)), Format::Json) => json!({
                    "topic": topic.name, "archived": archived, "behind": behind, "removed": topic.removed(),
                    "state": state,
                })
                .to_string(),
                (Ok((archived, behind)), Format::Table) => format!(
                    "{}: {archived} events archived, {behind} behind, {} removed from the bus; {state}",
                    topic.name,
                    topic.removed()
                ),
                (Err(error), _) => {
                    tracing::warn!(topic = %topic.name, "how far its archive is cannot be seen: {}", error.message);
                    continue;
                }
            };
            if said.get(&topic.name) != Some(&line) {
                say(&line)?;
                said.insert(topic.name.clone(), line);
            }
        }
        Ok(())
    }
}
