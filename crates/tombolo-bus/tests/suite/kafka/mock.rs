//! The cluster that librdkafka brings for tests, on a thread of its own, because it must not be shared between threads.
//! Invariant: it ends with the last of its handles.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use rdkafka::mocking::MockCluster;
use tombolo_bus::kafka::StandIn;

/// Brokers are counted from 1; this names them all.
const ALL: i32 = -1;

enum Order {
    Make { topic: String, partitions: i32, replicas: i32, made: Sender<Result<(), String>> },
    Down(bool),
    End,
}

/// A cluster of tests.
pub(super) struct Mock {
    brokers: String,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Mock {
    pub(super) fn start(count: i32) -> Self {
        let (orders, given) = channel();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            let cluster = MockCluster::new(count).expect("librdkafka has a cluster of tests");
            tell.send(cluster.bootstrap_servers()).unwrap();
            while let Ok(order) = given.recv() {
                match order {
                    Order::Make { topic, partitions, replicas, made } => {
                        let result = cluster.create_topic(&topic, partitions, replicas);
                        // Who gave up waiting needs no answer.
                        drop(made.send(result.map_err(|error| error.to_string())));
                    }
                    Order::Down(true) => cluster.broker_down(ALL).unwrap(),
                    Order::Down(false) => cluster.broker_up(ALL).unwrap(),
                    Order::End => break,
                }
            }
        });
        Self { brokers: told.recv().unwrap(), orders, thread: Some(thread) }
    }

    pub(super) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Takes all brokers down, or up again; what they hold stays.
    pub(super) fn down(&self, down: bool) {
        self.orders.send(Order::Down(down)).unwrap();
    }

    pub(super) fn make(&self, topic: &str, partitions: i32, replicas: i32) {
        make(&self.orders, topic, partitions, replicas).unwrap();
    }

    /// Makes topics for a bus, which cannot make them here.
    pub(super) fn maker(&self) -> Arc<StandIn> {
        let orders = self.orders.clone();
        Arc::new(move |topic, replicas| make(&orders, topic, 1, i32::try_from(replicas).unwrap()))
    }
}

fn make(orders: &Sender<Order>, topic: &str, partitions: i32, replicas: i32) -> Result<(), String> {
    let (made, result) = channel();
    let topic = topic.to_owned();
    orders.send(Order::Make { topic, partitions, replicas, made }).map_err(|error| error.to_string())?;
    match result.recv().map_err(|error| error.to_string())? {
        Err(why) if why.contains("exists") => Ok(()),
        made => made,
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        // It may have ended already, by a panic that the test has seen.
        drop(self.orders.send(Order::End));
        drop(self.thread.take().map(JoinHandle::join));
    }
}
