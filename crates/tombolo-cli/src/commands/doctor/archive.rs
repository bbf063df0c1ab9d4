//! The archive: whether everything that was ever published can still be read, from the bus or from the archive that was named.
//!
//! Invariant: where a topic begins is asked of the bus itself, whoever has removed what was before: Tombolo, or the engine.

use tombolo_bus::archiving::{EVENTS_KEPT_MIN, Standing};
use tombolo_bus::{Bus, Error, Identity, Kind, Read, Tail, Topic};
use tombolo_event::Cursor;

use super::checks::Checks;
use crate::commands::connect;

const ARCHIVE: &str = "archive";
const ANSWERS: &str = "it answers";
const KEPT: &str = "its events are there from the first";
const ARCHIVED: &str = "its archive has what the bus has";

/// Looks at each topic of the bus, and at its archive if one is named.
pub(super) async fn look(bus: &dyn Bus, topics: &[Topic], named: Option<&str>, checks: &mut Checks) {
    let Some(url) = named else {
        for topic in topics {
            without(bus, topic, checks).await;
        }
        return;
    };
    let reached = async {
        let archive = connect(url, &Identity::Operator).await?;
        archive.topics().await?;
        Ok::<_, crate::error::Error>(archive)
    };
    match reached.await {
        Ok(archive) => {
            checks.pass(ARCHIVE, ANSWERS, &archive.guarantee().engine);
            for topic in topics {
                with(bus, &*archive, topic, checks).await;
            }
            archive.close().await;
        }
        Err(error) => {
            let fix =
                "start it, or correct the address; until then nobody can begin to read what was trimmed";
            checks.fail(ARCHIVE, ANSWERS, &error.message, fix);
        }
    }
}

/// Without an archive the bus has to have everything itself.
async fn without(bus: &dyn Bus, topic: &Topic, checks: &mut Checks) {
    let name = topic.name.as_str();
    match beginnings(bus, topic).await {
        Ok(()) => checks.pass(name, KEPT, "on the bus"),
        Err(error) if error.kind() == Kind::Trimmed => {
            let fix = "name the archive: --archive here, TOMBOLO_ARCHIVE for the services. Without one, new subscriptions and rebuilt \
                       views cannot begin (docs/archive.md)";
            checks.fail(name, KEPT, &error.to_string(), fix);
        }
        Err(error) => checks.fail(name, KEPT, &error.to_string(), "look at the bus"),
    }
}

/// Begins to read each partition from its first event.
async fn beginnings(bus: &dyn Bus, topic: &Topic) -> Result<(), Error> {
    for tail in bus.tails(&topic.name).await?.iter().filter(|tail| tail.sequence > 0) {
        let start = Cursor::start(topic.incarnation);
        drop(bus.read(Read::to_tail(&topic.name, tail.partition, start)).await?);
    }
    Ok(())
}

async fn with(bus: &dyn Bus, archive: &dyn Bus, topic: &Topic, checks: &mut Checks) {
    let name = topic.name.as_str();
    let running = "start `tombolo archive`, or look at what it says (docs/archive.md)";
    match compared(bus, archive, topic).await {
        Ok(Standing { archived, behind }) if behind <= EVENTS_KEPT_MIN => {
            checks.pass(name, ARCHIVED, &format!("{archived} events, {behind} behind"));
        }
        Ok(Standing { archived, behind }) => {
            checks.warn(name, ARCHIVED, &format!("{archived} events, {behind} behind"), running);
        }
        Err(error) if error.kind() == Kind::UnknownTopic => {
            checks.fail(name, ARCHIVED, "it is not archived", running);
        }
        Err(error) if error.kind() == Kind::Trimmed => {
            let found = format!("it lacks events that the bus does not have any more: {error}");
            checks.fail(name, ARCHIVED, &found, "restore the archive, or copy them from another one");
        }
        Err(error) => {
            checks.fail(
                name,
                ARCHIVED,
                &error.to_string(),
                "name the archive of this very bus, and restore it if it is that",
            );
        }
    }
}

/// How far the archive is; the bus proves that the archive's last events are its own.
async fn compared(bus: &dyn Bus, archive: &dyn Bus, topic: &Topic) -> Result<Standing, Error> {
    let archived = archive.tails(&topic.name).await?;
    let of = |partition| archived.iter().find(|tail| tail.partition == partition).copied();
    let mut standing = Standing { archived: 0, behind: 0 };
    for tail in bus.tails(&topic.name).await? {
        let end = of(tail.partition).unwrap_or(Tail { sequence: 0, id: None, ..tail });
        standing.archived += end.sequence;
        standing.behind += tail.sequence.saturating_sub(end.sequence);
        if tail.sequence == 0 {
            continue;
        }
        let after = end
            .id
            .map_or(Cursor::start(topic.incarnation), |id| Cursor::at(topic.incarnation, end.sequence, id));
        drop(bus.read(Read::to_tail(&topic.name, tail.partition, after)).await?);
    }
    Ok(standing)
}
