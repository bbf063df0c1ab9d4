//! Whose turn it is: a partition of a later generation is not read before this subscription has handled every partition of
//! the topic's earlier ones, whichever replica holds those.
//!
//! ```text
//!  generation 1     0 ─────────┤ sealed      handled to its end by replica a
//!                   1 ─────────┤ sealed      replica b is still here: nobody reads 2, 3 and 4
//!  generation 2                2 ──────      of each key all that is in 0 or 1 comes before what is in 2, 3 or 4
//! ```
//!
//! takes: the ends of sealed partitions, which are final; the cursors, in the database · writes: nothing · if we crash here:
//! the next holder looks again · if it repeats: looking has no effect.
//!
//! Invariant: what is parked in earlier generations is looked for after their cursors were found at the ends, so everything of
//! it that will ever be there is seen.

use std::collections::BTreeMap;
use std::fmt;

use tokio::time::Instant;
use tombolo_bus::{Tail, Topic};
use tombolo_db::{Database, Goal};
use tombolo_event::ServiceName;

use super::lane::Lane;
use super::{LOOK_AGAIN, Session, Worker};
use crate::Result;

/// What a lane waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wait {
    topic: ServiceName,
    /// The earlier partitions that are not handled to their ends.
    partitions: Vec<u32>,
    /// Where the lane's own partition ends.
    pub(super) tail: u64,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.partitions.iter().map(u32::to_string).collect();
        let (topic, each) = (&self.topic, each.join(", "));
        write!(
            f,
            "waits for its turn: topic {topic} was divided anew, and of its earlier partitions {each} are not handled to their ends yet; goes on by itself"
        )
    }
}

/// The ends of the partitions of earlier generations.
fn goals(topic: &Topic, tails: &[Tail], earlier: impl Fn(u32) -> bool) -> Vec<Goal> {
    let goal = |tail: &Tail| Goal {
        topic: topic.name.clone(),
        partition: tail.partition,
        incarnation: topic.incarnation,
        sequence: tail.sequence,
    };
    tails.iter().filter(|tail| earlier(tail.partition)).map(goal).collect()
}

/// What a lane waits for; none if it is its turn.
fn wait(lane: &Lane, tails: &[Tail], not_reached: &[Goal]) -> Option<Wait> {
    let open = not_reached.iter().map(|goal| goal.partition);
    let partitions: Vec<u32> = open.filter(|partition| lane.is_earlier(*partition)).collect();
    let tail = tails.iter().find(|tail| tail.partition == lane.claim.partition);
    let tail = tail.map_or(0, |tail| tail.sequence);
    let topic = lane.claim.topic.clone();
    (!partitions.is_empty()).then_some(Wait { topic, partitions, tail })
}

/// When it is looked next whether what is parked ahead has left.
pub(super) struct LookAhead {
    looks: u32,
    at: Instant,
}

impl LookAhead {
    pub(super) fn new() -> Self {
        Self { looks: 0, at: Instant::now() + LOOK_AGAIN.delay(0, 1.0) }
    }

    fn again(&mut self) {
        self.looks += 1;
        self.at = Instant::now() + LOOK_AGAIN.delay(self.looks, 1.0);
    }
}

impl Session {
    /// When it is looked next whether what is parked ahead of something here has left.
    pub(super) fn follow_at(&self) -> Option<Instant> {
        let is_behind = |lane: &Lane| lane.parked.has_ahead() && !lane.rests();
        self.lanes.iter().any(is_behind).then_some(self.look_ahead.at)
    }

    /// Whether a lane is to be looked at again for another reason than that it may be its turn by now.
    pub(super) fn has_other_retries(&self, now: Instant) -> bool {
        let mut due = self.lanes.iter().filter(|lane| lane.retry_at().is_some_and(|at| at <= now));
        due.any(|lane| !lane.is_waiting())
    }

    /// What this or another replica held up may go on.
    pub(super) fn look_at_once(&mut self) {
        self.lanes.iter_mut().for_each(Lane::look_at_once);
        self.look_ahead = LookAhead { looks: 0, at: Instant::now() };
    }

    /// How many keys are parked of which something may wait in later generations.
    pub(super) fn keys_ahead(&self) -> usize {
        self.lanes.iter().map(Lane::keys_ahead).sum()
    }
}

impl<D: Database> Worker<D> {
    /// Those of the lanes whose turn it is; the others wait.
    pub(super) async fn turns(&self, session: &mut Session, lanes: &[usize]) -> Result<Vec<usize>> {
        let mut later: BTreeMap<ServiceName, Vec<usize>> = BTreeMap::new();
        let mut turns = Vec::new();
        for &index in lanes {
            let lane = &mut session.lanes[index];
            match lane.earlier() {
                Some(earlier) if earlier.is_empty() => turns.push(index),
                Some(_) => later.entry(lane.claim.topic.clone()).or_default().push(index),
                None => self.is_missing(session, index),
            }
        }
        for (topic, indices) in &later {
            turns.extend(self.turns_in(session, topic, indices).await?);
        }
        Ok(turns)
    }

    async fn turns_in(
        &self,
        session: &mut Session,
        name: &ServiceName,
        lanes: &[usize],
    ) -> Result<Vec<usize>> {
        let Some(topic) = session.topics.get(name) else { return Ok(Vec::new()) };
        let tails = self.bus.tails(name).await?;
        let goals = goals(topic, &tails, |partition| {
            lanes.iter().any(|&lane| session.lanes[lane].is_earlier(partition))
        });
        let not_reached = self.database.not_reached(&self.subscription.name, &goals).await?;
        let mut turns = Vec::new();
        for &index in lanes {
            match wait(&session.lanes[index], &tails, &not_reached) {
                None => turns.push(index),
                Some(wait) => {
                    session.streams.remove(&index);
                    session.lanes[index].wait_for_turn(&wait);
                }
            }
        }
        if !turns.is_empty() {
            let heads = self.database.parked_heads(&self.subscription.name).await?;
            turns.iter().for_each(|&index| session.lanes[index].load_parked(&heads));
        }
        Ok(turns)
    }

    /// The bus does not have a partition that was read before.
    fn is_missing(&self, session: &mut Session, index: usize) {
        let lane = &mut session.lanes[index];
        let (topic, partition) = (lane.claim.topic.clone(), lane.claim.partition);
        let why = format!(
            "the bus has no partition {partition} of topic {topic}, though this subscription has begun to read it; the bus was restored from an older copy, or is another one: see `tombolo recover {topic}`"
        );
        tracing::error!(subscription = self.subscription.name, %topic, partition, "stops: {why}");
        lane.stop(why);
        session.streams.remove(&index);
    }

    /// Has whoever waits for something here go on, in this replica and in the others, if it has come to its end: a sealed
    /// partition, or one of the `keys` that were parked in sealed ones.
    pub(super) async fn pass_on(&self, session: &mut Session, keys: usize) {
        let mut ended = session.keys_ahead() < keys;
        session.lanes.iter_mut().for_each(|lane| ended |= lane.take_ended());
        if ended {
            session.look_at_once();
            self.app.desk().wake().await;
        }
    }

    /// What waits behind parked events of earlier generations follows once those have left.
    pub(super) async fn follow_on(&self, session: &mut Session) -> Result<()> {
        let heads = self.database.parked_heads(&self.subscription.name).await?;
        let behind = session.lanes.iter_mut().filter(|lane| lane.parked.has_ahead());
        behind.for_each(|lane| lane.follow_on(&heads));
        session.look_ahead.again();
        Ok(())
    }
}
