//! `tombolo topics copy`: moves topics to another bus, with their sequences and ids, and seals them where they were.
//!
//! Invariant: nothing is sealed without `--yes`, and whatever breaks off can be begun again.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tombolo_bus::{Bus, Identity, Topic, moving};
use tombolo_event::ServiceName;

use crate::arguments::CopyTopics;
use crate::commands::{archived, connect, say, show};
use crate::error::{Error, Result};
use crate::output::Format;

/// `tombolo topics copy`.
pub(crate) async fn copy(arguments: CopyTopics) -> Result<()> {
    let bus = connect(&arguments.from, &Identity::Operator).await?;
    let topics = wanted(&*bus, &arguments.topics).await?;
    if !arguments.yes {
        return preview(&*bus, &topics, arguments.format).await;
    }
    // The log of a folder can be open once.
    bus.close().await;
    let (mut rows, mut list) = (Vec::new(), Vec::new());
    for topic in &topics {
        let moved = one(&arguments, &topic.name).await?;
        let name = topic.name.to_string();
        list.push(json!({ "topic": name, "events": moved.events, "copied": moved.copied }));
        rows.push([name, moved.events.to_string(), moved.copied.to_string()]);
    }
    show(arguments.format, ["TOPIC", "EVENTS", "COPIED NOW"], rows, &Value::Array(list))?;
    if arguments.format == Format::Table {
        say(
            "\nthe topics are sealed where they were; start their services, and those that read them, with the new bus",
        )?;
    }
    Ok(())
}

/// One topic, in the name of the service that owns it: nobody else may publish to it.
async fn one(arguments: &CopyTopics, name: &ServiceName) -> Result<moving::Moved> {
    let owner = Identity::Service(name.clone());
    let from = archived(connect(&arguments.from, &owner).await?, arguments.archive.as_deref()).await?;
    let to = connect(&arguments.to, &owner).await?;
    let style =
        ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len} events, {per_sec}, {eta} to go");
    let bar = ProgressBar::new(0).with_message(name.to_string());
    let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
    let moved = moving::topic(&*from, &*to, name, |copied, all| {
        bar.set_length(all);
        bar.set_position(copied);
    });
    let moved = moved.await;
    bar.finish_and_clear();
    from.close().await;
    to.close().await;
    Ok(moved?)
}

async fn wanted(bus: &dyn Bus, names: &[ServiceName]) -> Result<Vec<Topic>> {
    let mut topics = bus.topics().await?;
    let there_are: Vec<_> = topics.iter().map(|topic| topic.name.to_string()).collect();
    if let Some(name) = names.iter().find(|name| topics.iter().all(|topic| topic.name != **name)) {
        return Err(Error::not_found(format!(
            "there is no topic {name}; there are: {}",
            there_are.join(", ")
        )));
    }
    topics.retain(|topic| names.is_empty() || names.contains(&topic.name));
    if topics.is_empty() {
        return Err(Error::not_found("there is no topic to copy on this bus"));
    }
    Ok(topics)
}

async fn preview(bus: &dyn Bus, topics: &[Topic], format: Format) -> Result<()> {
    let (mut rows, mut list) = (Vec::new(), Vec::new());
    for topic in topics {
        let events: u64 = bus.tails(&topic.name).await?.iter().map(|tail| tail.sequence).sum();
        let sealed = moving::is_moved(topic.epoch);
        list.push(json!({ "topic": topic.name, "events": events, "sealed": sealed }));
        rows.push([topic.name.to_string(), events.to_string(), if sealed { "sealed" } else { "-" }.into()]);
    }
    show(format, ["TOPIC", "EVENTS", "STATE"], rows, &json!({ "would_move": list }))?;
    Err(Error::usage(
        "nothing was moved: with --yes these topics are copied, and sealed where they are, so that nothing more is published there",
    ))
}
