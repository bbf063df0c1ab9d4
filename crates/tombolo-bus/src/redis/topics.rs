//! Topics: made, found, listed, fenced, divided; and the ends of their partitions.
//!
//! Invariant: what a topic is stands in one hash, which only scripts change; whatever else has its name is not touched.

use redis::{Value, cmd};
use tombolo_event::{Generations, Incarnation, ServiceName};

use super::link::{Link, SERVER};
use super::scripts::Script;
use super::values::{End, incarnation, list, number, odd, pairs, text};
use crate::adapter::refusal::{check_incarnation, foreign, older, unknown_topic};
use crate::{Error, Kind, Result, Tail, Topic, TopicSpec};

/// How often a division is tried again after somebody else changed the topic.
const TRIES_MAX: u32 = 16;

/// Reads the answer of a script on a topic, and what follows it.
fn read(name: &ServiceName, answer: Value) -> Result<(Topic, Option<Value>)> {
    let mut words = list(answer).into_iter();
    let kind = words.next().as_ref().and_then(text);
    let mut next = || words.next().as_ref().and_then(text);
    match kind.as_deref() {
        Some("topic") => {}
        Some("foreign") => return Err(foreign(name, &next().unwrap_or_default())),
        _ => return Err(unknown_topic(name, SERVER)),
    }
    let topic = topic_of(name, next(), next(), next())?;
    Ok((topic, words.next()))
}

fn topic_of(
    name: &ServiceName,
    found: Option<String>,
    generations: Option<String>,
    epoch: Option<String>,
) -> Result<Topic> {
    let wrong = || odd("the hash of a topic");
    Ok(Topic {
        name: name.clone(),
        generations: generations.and_then(|each| serde_json::from_str(&each).ok()).ok_or_else(wrong)?,
        incarnation: found.as_deref().and_then(incarnation).ok_or_else(wrong)?,
        epoch: epoch.and_then(|epoch| epoch.parse().ok()).ok_or_else(wrong)?,
    })
}

/// Generations as the hash keeps them, which partitions there are, and which are sealed: those below.
fn divided(generations: &Generations) -> Result<(String, u32, u32)> {
    let each = serde_json::to_string(generations).map_err(|_| odd("the generations of a topic"))?;
    Ok((each, generations.partitions(), generations.partitions() - generations.present()))
}

fn tails(topic: &Topic, ends: Value) -> Result<Vec<Tail>> {
    let ends = pairs(ends);
    let tail = |partition: u32| {
        let end = End::read(ends.get(&partition.to_string()).map(String::as_str))?;
        Ok(Tail { partition, sequence: end.last, id: end.id })
    };
    (0..topic.partitions()).map(tail).collect()
}

impl Link {
    /// Makes the topic unless it is there.
    pub(super) async fn ensure(&self, spec: &TopicSpec) -> Result<Topic> {
        let (each, partitions, sealed) = divided(&spec.generations)?;
        let (name, keys) = (&spec.name, &self.keys);
        let mut named = vec![keys.topic(name), keys.ends(name), keys.topics()];
        named.extend((0..partitions).map(|partition| keys.partition(name, partition)));
        let mut line = self.line().await?;
        let mut call = line.scripts.call(Script::Ensure, &named);
        call.arg(keys.mark(name)).arg(spec.incarnation.unwrap_or_default().to_string());
        call.arg(each).arg(partitions).arg(sealed).arg(name.as_str());
        let (found, _) = read(name, line.ask(&call).await?)?;
        found.matching(spec)
    }

    /// A topic by name.
    pub(super) async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        let mut line = self.line().await?;
        let answer = line.ask(&self.asked(name)).await?;
        self.found_topic(name, answer)?.ok_or_else(|| unknown_topic(name, SERVER))
    }

    fn asked(&self, name: &ServiceName) -> redis::Cmd {
        let mut ask = cmd("HMGET");
        ask.arg(self.keys.topic(name)).arg(&["mark", "incarnation", "generations", "epoch"]);
        ask
    }

    /// Reads what [`Link::asked`] asked for.
    fn found_topic(&self, name: &ServiceName, answer: Value) -> Result<Option<Topic>> {
        let mut words = list(answer).into_iter();
        let mut next = || words.next().as_ref().and_then(text);
        match next() {
            Some(mark) if mark == self.keys.mark(name) => topic_of(name, next(), next(), next()).map(Some),
            Some(mark) => Err(foreign(name, &mark)),
            None => Ok(None),
        }
    }

    /// All topics, by name.
    pub(super) async fn topics(&self) -> Result<Vec<Topic>> {
        let mut line = self.line().await?;
        let named = line.ask(cmd("SMEMBERS").arg(self.keys.topics())).await?;
        let mut names: Vec<ServiceName> =
            list(named).iter().filter_map(text).filter_map(|name| ServiceName::new(name).ok()).collect();
        names.sort();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut asks = redis::pipe();
        for name in &names {
            asks.add_command(self.asked(name));
        }
        let answers = line.ask_all(&asks).await?;
        let mut topics = Vec::new();
        for (name, answer) in names.iter().zip(answers) {
            topics.extend(self.found_topic(name, answer)?);
        }
        Ok(topics)
    }

    pub(super) async fn tails(&self, name: &ServiceName) -> Result<Vec<Tail>> {
        let mut line = self.line().await?;
        let named = [self.keys.topic(name), self.keys.ends(name)];
        let ends = line.scripts.call(Script::Ends, &named);
        let mut answers = list(line.ask(&ends).await?).into_iter();
        let found = self.found_topic(name, answers.next().unwrap_or_default())?;
        let topic = found.ok_or_else(|| unknown_topic(name, SERVER))?;
        tails(&topic, answers.next().unwrap_or_default())
    }

    pub(super) async fn raise(
        &self,
        name: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        let mut line = self.line().await?;
        let mut call = line.scripts.call(Script::Raise, &[self.keys.topic(name), self.keys.ends(name)]);
        call.arg(self.keys.mark(name)).arg(incarnation.to_string()).arg(epoch);
        let (before, ends) = read(name, line.ask(&call).await?)?;
        check_incarnation(name, before.incarnation, incarnation)?;
        if epoch < before.epoch {
            return Err(older(name, epoch, before.epoch));
        }
        tails(&before, ends.unwrap_or_default())
    }

    /// Seals every partition of the present generation and begins the next one.
    pub(super) async fn divide(
        &self,
        name: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        let (after, partitions, sealed) = divided(generations)?;
        let mut found = self.topic(name).await?;
        for _ in 0..TRIES_MAX {
            check_incarnation(name, found.incarnation, incarnation)?;
            if epoch != found.epoch {
                return Err(older(name, epoch, found.epoch));
            }
            if !found.is_to_be_divided(generations)? {
                return Ok(found);
            }
            let (before, _, _) = divided(&found.generations)?;
            let mut line = self.line().await?;
            let mut call = line.scripts.call(Script::Divide, &[self.keys.topic(name), self.keys.ends(name)]);
            call.arg(self.keys.mark(name)).arg(incarnation.to_string()).arg(epoch);
            call.arg(before).arg(&after).arg(partitions).arg(sealed);
            let (met, _) = read(name, line.ask(&call).await?)?;
            if met == found {
                return Ok(Topic { generations: generations.clone(), ..found });
            }
            found = met;
        }
        let message = format!("others changed topic {name} {TRIES_MAX} times in a row while this was tried");
        Err(Error::new(Kind::Unavailable, message))
    }

    /// The ends of a topic's partitions that are not empty.
    pub(super) async fn ends(&self, topics: &[String]) -> Result<Vec<(String, u32, u64)>> {
        let mut asks = redis::pipe();
        for topic in topics {
            let Ok(name) = ServiceName::new(topic.as_str()) else { continue };
            asks.cmd("HGETALL").arg(self.keys.ends(&name));
        }
        let answers = self.line().await?.ask_all(&asks).await?;
        let mut ends = Vec::new();
        for (topic, answer) in topics.iter().zip(answers) {
            for pair in list(answer).chunks(2) {
                let (Some(partition), Some(field)) = (number(pair.first()), pair.get(1).and_then(text))
                else {
                    return Err(odd("the end of a partition"));
                };
                let partition = u32::try_from(partition).map_err(|_| odd("the end of a partition"))?;
                ends.push((topic.clone(), partition, End::read(Some(&field))?.last));
            }
        }
        Ok(ends)
    }
}
