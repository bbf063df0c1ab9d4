//! Cases about registrations. Invariant: of each replica of each service, the last word counts.

use futures_util::future::join_all;

use super::Case;
use super::stage::{Stage, ok, refused};
use crate::port::DESCRIPTOR_BYTES_MAX;
use crate::{Bus, Kind, Registration};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(what_a_replica_says_is_listed),
        Case::new(the_last_word_of_a_replica_counts),
        Case::new(replicas_and_services_stand_beside_each_other),
        Case::new(a_descriptor_over_its_bound_is_refused),
    ]
}

pub(super) fn saying(stage: &Stage, suffix: &str, replica: u32, descriptor: &str) -> Registration {
    let url = format!("http://127.0.0.1:{}", 8000 + replica);
    Registration { service: stage.name(suffix), replica, url, descriptor: descriptor.to_owned() }
}

/// What is registered of this case's services, in order.
pub(super) async fn said(stage: &Stage, bus: &dyn Bus) -> Vec<Registration> {
    let all = ok("list the registrations", bus.registrations().await);
    let prefix = stage.name("");
    let mut found: Vec<_> =
        all.into_iter().filter(|found| found.service.as_str().starts_with(prefix.as_str())).collect();
    found.sort_by(|a, b| (&a.service, a.replica).cmp(&(&b.service, b.replica)));
    found
}

async fn what_a_replica_says_is_listed(stage: Stage) {
    let bus = stage.handle().await;
    let one = saying(&stage, "", 1, r#"{"service":"ü"}"#);
    ok("register", bus.register(&one).await);
    assert_eq!(said(&stage, &*bus).await, std::slice::from_ref(&one));
    assert_eq!(said(&stage, &*stage.handle().await).await, [one]);
}

async fn the_last_word_of_a_replica_counts(stage: Stage) {
    let (bus, other) = (stage.handle().await, stage.handle().await);
    for n in 0..6 {
        let word = Registration {
            url: format!("http://host-{n}"),
            ..saying(&stage, "", 1, &format!("{{\"n\":{n}}}"))
        };
        let speaker = if n % 2 == 0 { &bus } else { &other };
        ok("register", speaker.register(&word).await);
        assert_eq!(said(&stage, &*bus).await, [word]);
    }
}

async fn replicas_and_services_stand_beside_each_other(stage: Stage) {
    let bus = stage.handle().await;
    let all = [saying(&stage, "-a", 1, "1"), saying(&stage, "-a", 2, "2"), saying(&stage, "-b", 1, "3")];
    for registered in join_all(all.iter().map(|one| bus.register(one))).await {
        ok("register", registered);
    }
    assert_eq!(said(&stage, &*bus).await, all);
}

async fn a_descriptor_over_its_bound_is_refused(stage: Stage) {
    let bus = stage.handle().await;
    let large = "x".repeat(DESCRIPTOR_BYTES_MAX + 1);
    refused(Kind::TooLarge, bus.register(&saying(&stage, "", 1, &large)).await);
    assert_eq!(said(&stage, &*bus).await, []);
}
