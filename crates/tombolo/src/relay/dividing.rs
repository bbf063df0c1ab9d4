//! Dividing the topic anew: an operator asks, the database does it, and the bus follows once everything before is there.
//!
//! takes: an operator's request; then numbered rows of a generation that the bus does not have · writes: the generations and the
//! outcome in the database; then the seals of the earlier partitions and the new ones at the bus · commits when: the database
//! has it in one transaction; then the bus has acknowledged · if we crash here: the next leader finds the database ahead of the
//! bus, and goes on · if it repeats: refused by the database; the bus finds its topic divided so already.
//!
//! ```text
//!  database   0 1 │ 2 3 4       divided by its leader: what has no number yet gets it in 2, 3 or 4
//!  lanes      0 1   ┄ ┄ ┄       rows of 2, 3 and 4 wait until every row of 0 and 1 is acknowledged
//!  bus        0 1 ┤             sealed at their tails, which are final, and 2, 3 and 4 begin: readers enter them behind these
//! ```
//!
//! Invariant: the bus is divided when every number that the database gave in its earlier generations is acknowledged, and no row
//! of the new one is sent before.

use bytes::Bytes;
use tombolo_bus::{Signal, Topic};
use tombolo_db::port::recovery::Standing;
use tombolo_db::{Leader, Mark};
use tombolo_event::operator::{Action, Outcome, Request, of_topic};
use tombolo_event::{Generations, barrier};

use super::Relay;
use super::lanes::Lanes;
use crate::{Result, directory};

/// What the bus is divided into next; none if it has what the database has.
fn next(database: &Generations, bus: &Generations) -> Option<Generations> {
    let next = database.each().get(..=bus.each().len())?;
    Generations::try_from(next.to_vec()).ok()
}

/// Whether everything that was numbered in the partitions that the bus has is acknowledged: removed by now, or `done`.
fn is_acknowledged(standing: &Standing, topic: &Topic, done: &[Mark]) -> bool {
    let acknowledged = |partition| {
        let done = done.iter().find(|mark: &&Mark| mark.partition == partition);
        done.map_or(0, |mark| mark.sequence)
    };
    let on_bus = standing.partitions.iter().filter(|counted| counted.removed.partition < topic.partitions());
    on_bus.into_iter().all(|counted| {
        counted.removed.sequence.max(acknowledged(counted.removed.partition)) >= counted.numbered
    })
}

impl Relay {
    /// Has the bus follow the database, if it is behind and everything before is there.
    pub(super) async fn divide_bus(&self, leader: &dyn Leader, lanes: &mut Lanes) -> Result<()> {
        let topic = lanes.topic().clone();
        let Some(generations) = next(leader.generations(), &topic.generations) else { return Ok(()) };
        if lanes.is_sending() {
            return Ok(());
        }
        let standing = self.outbox.standing(self.holder).await?;
        if !is_acknowledged(&standing, &topic, lanes.done()) {
            return Ok(());
        }
        barrier::reach("divide.before-seal");
        let divided = self.bus.divide(&topic.name, topic.incarnation, leader.epoch(), &generations).await?;
        barrier::reach("divide.after-seal");
        tracing::info!(service = %topic.name, "the topic is divided on the bus: {}", divided.generations);
        lanes.follow(divided);
        let look = Signal { reply_to: None, payload: Bytes::new() };
        // Who does not hear it looks now and then.
        self.bus.signal(directory::SUBJECT, look).await.ok();
        Ok(())
    }

    /// Carries out what operators asked of the topic.
    pub(super) async fn carry_out(&self, leader: &mut dyn Leader) -> Result<()> {
        for request in self.requests.open_requests(&of_topic(&self.publisher.service)).await? {
            // What this version does not know is left to one that does.
            let Ok(Action::Divide { partitions }) = serde_json::from_value(request.detail.clone()) else {
                continue;
            };
            self.divide(leader, &request, partitions).await?;
        }
        Ok(())
    }

    async fn divide(&self, leader: &mut dyn Leader, request: &Request, partitions: u32) -> Result<()> {
        let service = &self.publisher.service;
        let present = leader.generations().clone();
        let next = if present.present() == partitions {
            Err(format!("topic {service} has {partitions} partitions already; nothing was changed"))
        } else {
            present.and(partitions).map_err(|error| error.to_string())
        };
        let next = match next {
            Ok(next) => next,
            Err(why) => {
                tracing::warn!(%service, request = %request.id, "refuses: {why}");
                return Ok(self.requests.finish(request.id, &Outcome::refused(why)).await?);
            }
        };
        let text = format!(
            "topic {service} has {partitions} partitions from here on ({next}); what was numbered before goes out first, and readers enter the new ones behind it. Say {partitions} where the service is built, and deploy it when it suits"
        );
        leader.divide(&next, Some((request.id, &Outcome::done(text)))).await?;
        tracing::warn!(%service, by = request.asked_by, "its topic is divided anew: {next}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tombolo_db::port::recovery::Counted;
    use tombolo_event::{Incarnation, ServiceName};

    use super::*;

    fn these(each: &[u32]) -> Generations {
        Generations::try_from(each.to_vec()).unwrap()
    }

    #[test]
    fn the_bus_follows_one_generation_at_a_time() {
        let next = |database: &[u32], bus: &[u32]| next(&these(database), &these(bus));
        assert_eq!(next(&[8], &[8]), None);
        assert_eq!(next(&[8, 16], &[8]), Some(these(&[8, 16])));
        assert_eq!(next(&[8, 16, 4], &[8]), Some(these(&[8, 16])));
        assert_eq!(next(&[8], &[8, 16]), None);
    }

    #[test]
    fn nothing_is_sealed_before_its_last_number_is_acknowledged() {
        let counted = |partition, removed, numbered| Counted {
            removed: Mark { partition, sequence: removed, id: None },
            numbered,
        };
        let standing = Standing {
            epoch: 1,
            is_free: true,
            lease: String::new(),
            incarnation: None,
            halt: None,
            generations: these(&[2, 1]),
            partitions: vec![counted(0, 3, 3), counted(1, 3, 5), counted(2, 0, 9)],
        };
        let name = ServiceName::new("orders").unwrap();
        let topic = Topic { name, generations: these(&[2]), incarnation: Incarnation::new(), epoch: 1 };
        let done = |sequence| [Mark { partition: 1, sequence, id: None }];
        assert!(!is_acknowledged(&standing, &topic, &[]) && !is_acknowledged(&standing, &topic, &done(4)));
        assert!(is_acknowledged(&standing, &topic, &done(5)), "what is of the new one does not count");
    }
}
