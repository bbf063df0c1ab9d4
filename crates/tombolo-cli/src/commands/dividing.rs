//! `tombolo topics divide`: a service's topic gets another number of partitions, while it runs.
//!
//! Invariant: as every request of an operator: it is written down by the service, carried out by the leader of its relay, and
//! a command that says that it was done has read that in the outcome.

use tombolo_event::operator::{Action, of_topic};

use super::asking::Target;
use super::subscriptions::{ask_one, replicas};
use crate::arguments::Divide;
use crate::error::{Error, Result};
use crate::runner::client;

/// Asks the service, and says what became of it.
pub(crate) async fn divide(arguments: Divide) -> Result<()> {
    let (service, client) = (&arguments.service, client()?);
    let mut silent = Vec::new();
    for replica in replicas(&arguments.how.reached).await? {
        if replica.service != service.as_str() {
            continue;
        }
        match ask_one(&client, &replica.url).await {
            Ok(_) => {
                let target = Target::of(client, &replica.url, of_topic(service));
                let action = Action::Divide { partitions: arguments.partitions };
                return target.carry_out(&arguments.how, action).await;
            }
            Err(why) => silent.push(format!("{} {}: {why}", replica.service, replica.number)),
        }
    }
    if silent.is_empty() {
        let message = format!("service {service} does not run; a topic is divided by its service: start it");
        return Err(Error::not_found(message));
    }
    Err(Error::not_running(format!("service {service} does not answer: {}", silent.join(", "))))
}
