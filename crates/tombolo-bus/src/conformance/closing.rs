//! Cases about the end. Invariant: a closed bus leaves nobody waiting.

use futures_util::StreamExt;

use super::Case;
use super::stage::{Stage, ok, records, within};

pub(super) fn cases() -> Vec<Case> {
    vec![Case::new(closing_ends_every_stream), Case::new(a_closed_bus_takes_nothing)]
}

async fn closing_ends_every_stream(stage: Stage) {
    let bus = stage.handle().await;
    let line = stage.topic(&bus, 1).await;
    line.stored(&records(1, 1)).await;
    let mut live = line.read(line.following(line.start())).await;
    ok("read a batch", within("the first batch", live.next()).await.expect("there is one"));
    let mut signals = ok("listen", bus.listen(&stage.subject("a"), None).await);
    within("the bus to close", bus.close()).await;
    while let Some(item) = within("the stream to end", live.next()).await {
        assert!(item.is_err(), "nothing is read from a closed bus");
    }
    assert_eq!(within("the signals to end", signals.next()).await, None);
    // The bus may be one for all handles; the next case needs it open.
    drop((live, signals, line, bus));
    stage.factory.reopen().await;
}

async fn a_closed_bus_takes_nothing(stage: Stage) {
    let bus = stage.handle().await;
    let line = stage.topic(&bus, 1).await;
    within("the bus to close", bus.close()).await;
    within("the bus to close again", bus.close()).await;
    let append = within("the refusal of an append", line.append(&records(1, 1))).await;
    assert!(append.is_err(), "a closed bus took an append");
    let read =
        within("the refusal of a read", async { line.bus.read(line.following(line.start())).await.is_err() });
    assert!(read.await, "a closed bus began to read");
    drop((line, bus));
    stage.factory.reopen().await;
}
