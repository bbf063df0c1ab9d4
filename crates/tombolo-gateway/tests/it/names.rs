//! Replicas found by a name, and followed as what it stands for changes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

use crate::stage::{Service, gateway, get, until};

/// What a name stands for: the port of a service, and addresses.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<Vec<(Ipv4Addr, u16)>>>);

impl Names {
    /// Serves the names, each answer with a life of no time.
    async fn serve(&self) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, names) = (socket.local_addr().unwrap(), self.clone());
        tokio::spawn(async move {
            let mut bytes = [0; 1024];
            loop {
                let (count, peer) = socket.recv_from(&mut bytes).await.unwrap();
                let answer = names.answer(&Message::from_vec(&bytes[..count]).unwrap());
                socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
            }
        });
        address
    }

    fn answer(&self, asked: &Message) -> Message {
        let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.response_code = ResponseCode::NoError;
        answer.metadata.recursion_available = true;
        let query = asked.queries[0].clone();
        let known = self.0.lock().unwrap().clone();
        for (ip, port) in known {
            let name = query.name().clone();
            let host = Name::from_ascii(format!("h{}.test.", ip.octets()[3])).unwrap();
            let is_host = name.to_ascii().starts_with('h');
            match query.query_type() {
                RecordType::SRV => {
                    answer.add_answer(Record::from_rdata(name, 0, RData::SRV(SRV::new(1, 1, port, host))));
                }
                RecordType::A if !is_host || name == host => {
                    answer.add_answer(Record::from_rdata(name, 0, RData::A(A(ip))));
                }
                _ => {}
            }
        }
        answer.add_query(query);
        answer
    }
}

#[tokio::test]
async fn a_name_is_followed_as_its_addresses_change() {
    let one = Service::at("one", "127.0.0.1:0".parse().unwrap()).await;
    let port = one.address.port();
    let two = Service::at("two", SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), port)).await;
    let names = Names::default();
    *names.0.lock().unwrap() = vec![(Ipv4Addr::new(127, 0, 0, 1), port)];
    let server = names.serve().await;
    let gateway = gateway(&format!(
        "resolvers = [\"{server}\"]\n[[gateway.route]]\nname = \"all\"\ndns = \"http://shop.test:{port}\"\n"
    ))
    .await;
    until("the first address is used", async || get(&gateway, "/", "").await.ends_with("one")).await;
    names.0.lock().unwrap()[0].0 = Ipv4Addr::new(127, 0, 0, 2);
    until("the second is used", async || get(&gateway, "/", "").await.ends_with("two")).await;
    let before = one.requests();
    for _ in 0..10 {
        assert!(get(&gateway, "/", "").await.ends_with("two"));
    }
    assert_eq!(one.requests(), before);
    assert!(two.requests() >= 10);
    gateway.stop().await;
}

#[tokio::test]
async fn services_under_a_name_bring_their_ports() {
    let (one, two) = (Service::start("one").await, Service::start("two").await);
    let names = Names::default();
    let both = vec![
        (Ipv4Addr::new(127, 0, 0, 1), one.address.port()),
        (Ipv4Addr::new(127, 0, 0, 1), two.address.port()),
    ];
    *names.0.lock().unwrap() = both;
    let server = names.serve().await;
    let gateway = gateway(&format!(
        "resolvers = [\"{server}\"]\n[[gateway.route]]\nname = \"all\"\ndns = \"srv+http://_http._tcp.shop.test\"\nbalance = \"round-robin\"\n"
    ))
    .await;
    until("both are used", async || {
        get(&gateway, "/", "").await;
        one.requests() > 0 && two.requests() > 0
    })
    .await;
    gateway.stop().await;
}
