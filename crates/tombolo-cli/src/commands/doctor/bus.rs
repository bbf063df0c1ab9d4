//! The bus: whether it answers, what its acknowledgement means, and whether each topic is the service's own.
//!
//! Invariant: no password of its URL is shown.

use tombolo_bus::{Bus, Identity, Kind, moving};
use tombolo_event::descriptor::Descriptor;

use super::archive;
use super::checks::Checks;
use crate::commands::connect;
use crate::folder::Run;

const BUS: &str = "bus";
const ANSWERS: &str = "it answers";
const KEEPS: &str = "what it acknowledged survives a power cut";
const TOPIC: &str = "its topic is as it says";

/// What the command line names.
pub(crate) struct Named<'a> {
    pub(crate) bus: Option<&'a str>,
    pub(crate) archive: Option<&'a str>,
}

/// Looks at the bus that is named, or that of the system that runs.
pub(crate) async fn look(
    named: &Named<'_>,
    run: Option<&Run>,
    descriptors: &[&Descriptor],
    checks: &mut Checks,
) {
    let Some(url) = named.bus.or(run.map(|run| run.bus.as_str())) else {
        checks.pass(BUS, ANSWERS, "none runs: `tombolo dev` starts one of its own");
        return;
    };
    let bus = match connect(url, &Identity::Operator).await {
        Ok(bus) => bus,
        Err(error) => {
            checks.fail(BUS, ANSWERS, &error.message, "correct the address, or what the error names");
            return;
        }
    };
    match bus.topics().await {
        Ok(topics) => {
            let guarantee = bus.guarantee();
            checks.pass(BUS, ANSWERS, &format!("{}, {} topics", guarantee.engine, topics.len()));
            if guarantee.survives_power_cut {
                checks.pass(BUS, KEEPS, &guarantee.detail);
            } else {
                let fix = "use settings, or an engine, that sync before they acknowledge";
                checks.warn(BUS, KEEPS, &guarantee.detail, fix);
            }
            for descriptor in descriptors {
                topic(&*bus, descriptor, checks).await;
            }
            archive::look(&*bus, &topics, named.archive, checks).await;
        }
        Err(error) => checks.fail(BUS, ANSWERS, &error.to_string(), remedy(error.kind())),
    }
    bus.close().await;
}

/// What to do about a bus that does not answer.
fn remedy(kind: Kind) -> &'static str {
    match kind {
        Kind::Configuration => {
            "do what the error says: nothing makes or sets up what a bus runs on, `tombolo dev` neither"
        }
        _ => "start it, or correct the address; services go on without it, and their outboxes fill",
    }
}

async fn topic(bus: &dyn Bus, descriptor: &Descriptor, checks: &mut Checks) {
    let name = descriptor.service.as_str();
    let topic = match bus.topic(&descriptor.service).await {
        Ok(topic) => topic,
        Err(error) if error.kind() == Kind::UnknownTopic => {
            return checks.pass(name, TOPIC, "not made yet: the service makes it when it starts");
        }
        Err(error) => return checks.fail(name, TOPIC, &error.to_string(), "look at the bus"),
    };
    if moving::is_moved(topic.epoch) {
        let fix = "start the service with the bus to which its topic was moved";
        return checks.fail(name, TOPIC, "it was moved to another bus, and is sealed here", fix);
    }
    if !topic.generations.each().contains(&descriptor.partitions) {
        let found =
            format!("{} partitions, but the service says {}", topic.generations, descriptor.partitions);
        let fix =
            format!("set it to {}; `tombolo topics divide` changes a topic", topic.generations.present());
        return checks.fail(name, TOPIC, &found, &fix);
    }
    checks.pass(name, TOPIC, &format!("{} partitions, epoch {}", topic.generations, topic.epoch));
}
