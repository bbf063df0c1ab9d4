//! Cases about signals. Invariant: whoever listens when a signal is sent hears it once; nobody else ever does.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use super::Case;
use super::stage::{Stage, ok, refused, within};
use crate::signal::SIGNAL_BYTES_MAX;
use crate::{Bus, Kind, Reach, Signal, SignalStream};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_signal_is_heard_by_every_listener),
        Case::new(a_signal_is_heard_by_one_of_each_group),
        Case::new(a_group_shares_its_signals),
        Case::new(a_signal_keeps_its_content_and_where_to_reply),
        Case::new(an_answer_comes_back_on_the_reply_subject),
        Case::new(a_signal_that_nobody_heard_is_gone),
        Case::new(a_signal_is_not_heard_on_another_subject),
        Case::new(signals_of_one_sender_come_in_order),
        Case::new(a_signal_over_its_bound_is_refused),
        Case::new(a_subject_that_is_not_dotted_words_is_refused),
        Case::new(the_reach_is_never_a_lie),
        Case::new(the_reach_tells_whether_anybody_listens).needing(|abilities| abilities.reach),
    ]
}

fn signal(text: &str) -> Signal {
    Signal { reply_to: None, payload: Bytes::copy_from_slice(text.as_bytes()) }
}

async fn send(bus: &dyn Bus, subject: &str, text: &str) -> Reach {
    ok("signal", bus.signal(subject, signal(text)).await)
}

async fn listen(bus: &dyn Bus, subject: &str, group: Option<&str>) -> SignalStream {
    ok("listen", bus.listen(subject, group).await)
}

async fn hear(stream: &mut SignalStream) -> String {
    let heard = within("a signal", stream.next()).await.expect("an open bus's signals do not end");
    String::from_utf8_lossy(&heard.payload).into_owned()
}

/// Everything heard before `end`, which is sent last and to all.
async fn hear_until(stream: &mut SignalStream, end: &str) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        let next = hear(stream).await;
        if next == end {
            return heard;
        }
        heard.push(next);
    }
}

async fn a_signal_is_heard_by_every_listener(stage: Stage) {
    let (bus, other) = (stage.handle().await, stage.handle().await);
    let subject = stage.subject("all");
    let mut listeners = Vec::new();
    for bus in [&bus, &other, &other] {
        listeners.push(listen(&**bus, &subject, None).await);
    }
    send(&*bus, &subject, "one").await;
    send(&*bus, &subject, "end").await;
    for listener in &mut listeners {
        assert_eq!(hear_until(listener, "end").await, ["one"]);
    }
}

async fn a_signal_is_heard_by_one_of_each_group(stage: Stage) {
    let (bus, other) = (stage.handle().await, stage.handle().await);
    let subject = stage.subject("groups");
    let groups = [(&bus, "a"), (&other, "a"), (&other, "a"), (&bus, "b"), (&other, "b")];
    let mut members = Vec::new();
    for (bus, group) in groups {
        members.push(listen(&**bus, &subject, Some(group)).await);
    }
    let mut everybody = listen(&*bus, &subject, None).await;
    for n in 0..30 {
        send(&*bus, &subject, &format!("{n}")).await;
    }
    let mut heard: Vec<(&str, String)> = Vec::new();
    while heard.len() < 60 {
        let (signal, member) = within("a member to hear", next_of(&mut members)).await;
        heard.push((groups[member].1, signal));
    }
    let more = tokio::time::timeout(Duration::from_millis(100), next_of(&mut members)).await;
    assert!(more.is_err(), "a signal is heard more than once in a group: {more:?}");
    for n in 0..30 {
        let n = n.to_string();
        for group in ["a", "b"] {
            let times = heard.iter().filter(|heard| **heard == (group, n.clone())).count();
            assert_eq!(times, 1, "how often signal {n} is heard in group {group}");
        }
        assert_eq!(hear(&mut everybody).await, n, "who is in no group hears all");
    }
}

/// What is heard next, and by which of the listeners.
async fn next_of(members: &mut [SignalStream]) -> (String, usize) {
    let next = members.iter_mut().map(|member| member.next());
    let (heard, member, _) = futures_util::future::select_all(next).await;
    let heard = heard.expect("an open bus's signals do not end");
    (String::from_utf8_lossy(&heard.payload).into_owned(), member)
}

async fn a_group_shares_its_signals(stage: Stage) {
    let bus = stage.handle().await;
    let subject = stage.subject("shared");
    let gone = listen(&*bus, &subject, Some("g")).await;
    let mut stays = listen(&*stage.handle().await, &subject, Some("g")).await;
    drop(gone);
    // Whether the member that left is known to be gone is the engine's matter; from some signal on, all reach the other.
    let mut sent = 0;
    let heard = loop {
        send(&*bus, &subject, &format!("{sent}")).await;
        sent += 1;
        assert!(sent < 500, "no signal reached the member that stays");
        if let Ok(heard) = tokio::time::timeout(Duration::from_millis(50), hear(&mut stays)).await {
            break heard;
        }
    };
    assert!(heard.parse::<u32>().is_ok_and(|n| n < sent), "{heard} was sent");
}

async fn a_signal_keeps_its_content_and_where_to_reply(stage: Stage) {
    let (bus, other) = (stage.handle().await, stage.handle().await);
    let subject = stage.subject("content");
    let mut listener = listen(&*other, &subject, None).await;
    let every_byte = Bytes::from_iter(0..=255_u8);
    for reply_to in [None, Some(stage.subject("reply"))] {
        for payload in [Bytes::new(), every_byte.clone()] {
            let sent = Signal { reply_to: reply_to.clone(), payload };
            ok("signal", bus.signal(&subject, sent.clone()).await);
            assert_eq!(within("the signal", listener.next()).await, Some(sent));
        }
    }
}

async fn an_answer_comes_back_on_the_reply_subject(stage: Stage) {
    let (asking, answering) = (stage.handle().await, stage.handle().await);
    let (subject, reply) = (stage.subject("ask"), stage.subject("answer.1"));
    let mut questions = listen(&*answering, &subject, Some("g")).await;
    let mut answers = listen(&*asking, &reply, None).await;
    let question = Signal { reply_to: Some(reply), payload: Bytes::from_static(b"?") };
    ok("ask", asking.signal(&subject, question).await);
    let asked = within("the question", questions.next()).await.expect("the question is heard");
    send(&*answering, &asked.reply_to.expect("it says where to reply"), "!").await;
    assert_eq!(hear(&mut answers).await, "!");
}

async fn a_signal_that_nobody_heard_is_gone(stage: Stage) {
    let bus = stage.handle().await;
    let subject = stage.subject("late");
    send(&*bus, &subject, "before").await;
    let mut listener = listen(&*bus, &subject, None).await;
    send(&*bus, &subject, "after").await;
    assert_eq!(hear(&mut listener).await, "after");
}

async fn a_signal_is_not_heard_on_another_subject(stage: Stage) {
    let bus = stage.handle().await;
    let mut listener = listen(&*bus, &stage.subject("a.b"), None).await;
    for other in ["a", "a.b.c", "a.bc", "b", "b.a", "A.B"] {
        send(&*bus, &stage.subject(other), other).await;
    }
    send(&*bus, &stage.subject("a.b"), "end").await;
    assert_eq!(hear_until(&mut listener, "end").await, Vec::<String>::new());
}

async fn signals_of_one_sender_come_in_order(stage: Stage) {
    let bus = stage.handle().await;
    let subject = stage.subject("order");
    let mut listener = listen(&*stage.handle().await, &subject, None).await;
    for n in 0..200 {
        send(&*bus, &subject, &n.to_string()).await;
    }
    for n in 0..200 {
        assert_eq!(hear(&mut listener).await, n.to_string());
    }
}

async fn a_signal_over_its_bound_is_refused(stage: Stage) {
    let bus = stage.handle().await;
    let subject = stage.subject("large");
    let mut listener = listen(&*bus, &subject, None).await;
    let large = Signal { reply_to: None, payload: vec![7; SIGNAL_BYTES_MAX + 1].into() };
    refused(Kind::TooLarge, bus.signal(&subject, large).await);
    send(&*bus, &subject, "end").await;
    assert_eq!(hear_until(&mut listener, "end").await, Vec::<String>::new());
}

async fn a_subject_that_is_not_dotted_words_is_refused(stage: Stage) {
    let bus = stage.handle().await;
    for odd in ["", ".", "a.", ".a", "a..b", "a b", "a.*", ">", "a.>", "a\r\nb"] {
        refused(Kind::InvalidName, bus.signal(odd, signal("x")).await);
        refused(Kind::InvalidName, bus.listen(odd, None).await.map(drop));
    }
}

async fn the_reach_is_never_a_lie(stage: Stage) {
    let bus = stage.handle().await;
    let subject = stage.subject("reach");
    assert_ne!(send(&*bus, &subject, "x").await, Reach::Somebody, "nobody listens");
    let mut listener = listen(&*bus, &subject, Some("g")).await;
    assert_ne!(send(&*bus, &subject, "y").await, Reach::Nobody, "somebody listens");
    assert_eq!(hear(&mut listener).await, "y");
}

async fn the_reach_tells_whether_anybody_listens(stage: Stage) {
    let bus = stage.handle().await;
    let subject = stage.subject("reach");
    assert_eq!(send(&*bus, &subject, "x").await, Reach::Nobody);
    let listener = listen(&*stage.handle().await, &subject, None).await;
    assert_eq!(send(&*bus, &subject, "y").await, Reach::Somebody);
    drop(listener);
}
