//! One bus made of many clients: whatever changes a topic goes through a client of the topic's owner, everything
//! else through an operator's. So the suite, which owns many topics, can be run against a server that asks who calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tombolo_bus::server::{Client, Listen};
use tombolo_bus::{
    Append, Appended, Bus, Guarantee, Identity, Reach, Read, RecordStream, Registration, Result, Signal,
    SignalStream, Tail, Topic, TopicSpec,
};
use tombolo_event::{Generations, Incarnation, ServiceName};

pub(crate) struct Owners {
    address: Listen,
    operator: Client,
    owners: Mutex<HashMap<ServiceName, Arc<Client>>>,
}

impl Owners {
    pub(crate) async fn new(address: &Listen) -> Self {
        let operator = Client::new(address, &Identity::Operator).unwrap();
        operator.ping().await.unwrap();
        Self { address: address.clone(), operator, owners: Mutex::default() }
    }

    fn of(&self, topic: &ServiceName) -> Arc<Client> {
        let mut owners = self.owners.lock().unwrap();
        let new = || Arc::new(Client::new(&self.address, &Identity::Service(topic.clone())).unwrap());
        Arc::clone(owners.entry(topic.clone()).or_insert_with(new))
    }
}

#[async_trait]
impl Bus for Owners {
    fn guarantee(&self) -> Guarantee {
        self.operator.guarantee()
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        self.of(&spec.name).ensure_topic(spec).await
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        self.operator.topic(name).await
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.operator.topics().await
    }

    async fn raise_epoch(&self, topic: &ServiceName, life: Incarnation, epoch: u64) -> Result<Vec<Tail>> {
        self.of(topic).raise_epoch(topic, life, epoch).await
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        life: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        self.of(topic).divide(topic, life, epoch, generations).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        self.of(&append.topic).append(append).await
    }

    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        self.operator.tails(topic).await
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        self.operator.read(read).await
    }

    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        self.operator.signal(subject, signal).await
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        self.operator.listen(subject, group).await
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        self.of(&registration.service).register(registration).await
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        self.operator.registrations().await
    }

    async fn close(&self) {
        let owners: Vec<_> = self.owners.lock().unwrap().values().cloned().collect();
        for owner in owners {
            owner.close().await;
        }
        self.operator.close().await;
    }
}
