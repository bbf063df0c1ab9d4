//! `tombolo services`: what each replica said of itself when it registered at the bus.
//!
//! Invariant: nothing is guessed; a descriptor that cannot be read is shown as it came.

use serde_json::{Value, json};
use tombolo_bus::Registration;
use tombolo_event::descriptor::Descriptor;

use crate::arguments::OfBus;
use crate::commands::{reach, show};
use crate::error::Result;

/// `tombolo services list`.
pub(crate) async fn list(arguments: OfBus) -> Result<()> {
    let bus = reach(&arguments.reached).await?;
    let registrations = bus.registrations().await?;
    bus.close().await;
    let rows = registrations.iter().map(row).collect();
    let list: Vec<_> = registrations.iter().map(json).collect();
    let header = ["SERVICE", "REPLICA", "URL", "DATABASE", "PUBLISHES", "HANDLES", "ANSWERS"];
    show(arguments.format, header, rows, &Value::Array(list))
}

fn row(registration: &Registration) -> [String; 7] {
    let Registration { service, replica, url, descriptor } = registration;
    let [database, publishes, handles, answers] = match serde_json::from_str(descriptor) {
        Ok(descriptor) => columns(&descriptor),
        Err(_) => ["?".into(), "?".into(), "?".into(), "?".into()],
    };
    [service.to_string(), replica.to_string(), url.clone(), database, publishes, handles, answers]
}

fn columns(descriptor: &Descriptor) -> [String; 4] {
    let types = |handled: &tombolo_event::descriptor::Handled| handled.types.first().cloned();
    let handled = descriptor.subscriptions.iter().map(|subscription| {
        let types: Vec<_> = subscription.handles.iter().filter_map(types).collect();
        format!("{}: {}", subscription.name, types.join(", "))
    });
    let joined = |words: Vec<String>| if words.is_empty() { "-".into() } else { words.join("; ") };
    [
        descriptor.database.clone(),
        joined(descriptor.publishes.iter().map(|published| published.event_type.clone()).collect()),
        joined(handled.collect()),
        joined(descriptor.answers.iter().map(|answered| answered.question.clone()).collect()),
    ]
}

fn json(registration: &Registration) -> Value {
    let descriptor = serde_json::from_str(&registration.descriptor)
        .unwrap_or_else(|_| Value::String(registration.descriptor.clone()));
    json!({
        "service": registration.service, "replica": registration.replica, "url": registration.url,
        "descriptor": descriptor,
    })
}
