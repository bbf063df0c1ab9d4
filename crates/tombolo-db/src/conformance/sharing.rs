//! Cases about leases: who holds which partitions, and how they move from one replica to another.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::stage::{LONG, Ready, SHORT, Wait, noted, once};
use super::{Case, Fixture, Stage};
use crate::{Claim, Cursors, Holder, Kind, Leases, Share, Standing, Transaction};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(members_share_and_nobody_takes_what_another_holds),
        Case::new(five_members_of_eight_partitions_all_have_some),
        Case::new(members_have_some_of_each_generation),
        Case::new(a_member_gives_up_what_is_beyond_its_share),
        Case::new(a_leaving_members_share_is_free_at_once),
        Case::new(all_of_a_view_goes_to_one_member),
        Case::new(a_lease_ends_by_itself_and_is_kept_by_renewing),
        Case::new(one_renewal_keeps_all_subscriptions),
        Case::new(a_later_life_takes_over_at_once_and_an_earlier_one_never),
        Case::new(claims_at_once_give_each_partition_to_one),
        Case::new(a_holder_that_was_replaced_commits_nothing),
    ]
}

const NAME: &str = "titles";

fn partitions(claims: &[Claim]) -> Vec<u32> {
    claims.iter().map(|claim| claim.partition).collect()
}

/// Holders in the order in which shares are rounded up.
fn holders<const COUNT: usize>() -> [Holder; COUNT] {
    let mut replicas: Vec<Uuid> = (0..COUNT).map(|_| Uuid::now_v7()).collect();
    replicas.sort_unstable();
    std::array::from_fn(|index| once(replicas[index]))
}

async fn opened<F: Fixture>(stage: &Stage<F>, partitions: u32) -> Ready<F> {
    let ready = stage.prepared(partitions).await;
    ready.open(NAME).await;
    ready
}

async fn claim<F: Fixture>(ready: &Ready<F>, holder: Holder) -> Vec<Claim> {
    ready.share(NAME, holder, Share::Split, LONG).await.claims
}

async fn standing<F: Fixture>(ready: &Ready<F>, holder: Holder) -> Option<(usize, usize)> {
    let all = ready.database.renew(holder, LONG).await.expect("renewing works");
    let found = all.into_iter().find(|standing| standing.subscription == NAME);
    found.map(|Standing { held, due, .. }| (held, due))
}

async fn members_share_and_nobody_takes_what_another_holds<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 8).await;
    let other = ready.reopened().await;
    let [a, b, c] = holders();
    let alone = ready.share(NAME, a, Share::Split, LONG).await;
    assert_eq!((alone.partitions, alone.claims.len(), alone.concerns_others), (8, 8, true));
    let joining = other.share(NAME, b, Share::Split, LONG).await;
    assert_eq!((joining.claims.len(), joining.concerns_others), (0, true), "everything is held");
    assert_eq!(standing(&ready, a).await, Some((8, 4)));
    assert_eq!(standing(&other, b).await, Some((0, 0)), "nothing is free yet");
    let kept = ready.share(NAME, a, Share::Split, LONG).await;
    assert_eq!((partitions(&kept.claims), kept.concerns_others), (vec![0, 2, 4, 6], true));
    assert!(kept.claims[0].lease_epoch > alone.claims[0].lease_epoch);
    assert_eq!(standing(&other, b).await, Some((0, 4)));
    assert_eq!(partitions(&claim(&other, b).await), [1, 3, 5, 7]);
    assert!(claim(&ready, c).await.is_empty(), "each partition has one worker");
    assert_eq!((claim(&ready, a).await.len(), claim(&other, b).await.len()), (3, 3));
    let third = ready.share(NAME, c, Share::Split, LONG).await;
    assert_eq!((third.claims.len(), third.concerns_others), (2, false));
    for holder in [a, b, c] {
        let (held, due) = standing(&ready, holder).await.expect("it is a member");
        assert_eq!(held, due, "all is shared");
    }
}

async fn five_members_of_eight_partitions_all_have_some<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 8).await;
    let members: [Holder; 5] = holders();
    for _ in 0..2 {
        for member in members {
            claim(&ready, member).await;
        }
    }
    let mut shares = Vec::new();
    for member in members {
        shares.push(standing(&ready, member).await.expect("it is a member"));
    }
    assert_eq!(shares, [(2, 2), (2, 2), (2, 2), (1, 1), (1, 1)]);
}

async fn members_have_some_of_each_generation<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 8 + 16).await;
    let members: [Holder; 4] = holders();
    for _ in 0..2 {
        for member in members {
            claim(&ready, member).await;
        }
    }
    for member in members {
        let held = partitions(&claim(&ready, member).await);
        let of_first = held.iter().filter(|partition| **partition < 8).count();
        assert_eq!((held.len(), of_first), (6, 2), "{held:?}");
    }
}

async fn a_member_gives_up_what_is_beyond_its_share<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 4).await;
    let [a, b] = holders();
    let old = claim(&ready, a).await;
    claim(&ready, b).await;
    claim(&ready, a).await;
    let taken = claim(&ready, b).await;
    assert_eq!(partitions(&taken), [1, 3]);
    assert!(taken[0].lease_epoch > old[1].lease_epoch, "what was given up is fenced");
    let held: Vec<bool> = ready.database.cursors().await.expect("readable").iter().map(|c| c.held).collect();
    assert_eq!(held, [true; 4]);
}

async fn a_leaving_members_share_is_free_at_once<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 4).await;
    let [a, b] = holders();
    claim(&ready, a).await;
    claim(&ready, b).await;
    claim(&ready, a).await;
    claim(&ready, b).await;
    ready.database.release(NAME, a).await.expect("it is released");
    assert_eq!(standing(&ready, a).await, None, "it is no member any more");
    assert_eq!(standing(&ready, b).await, Some((2, 4)));
    assert_eq!(claim(&ready, b).await.len(), 4);
}

async fn all_of_a_view_goes_to_one_member<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 4).await;
    let [a, b] = holders();
    let whole = async |holder| ready.share(NAME, holder, Share::Whole, LONG).await.claims.len();
    assert_eq!((whole(b).await, whole(a).await), (4, 0));
    assert_eq!((standing(&ready, b).await, standing(&ready, a).await), (Some((4, 4)), Some((0, 0))));
    assert_eq!(whole(b).await, 4, "it is not asked to give anything up");
    ready.database.release(NAME, b).await.expect("it is released");
    assert_eq!(standing(&ready, a).await, Some((0, 4)));
    assert_eq!(whole(a).await, 4);
}

async fn a_lease_ends_by_itself_and_is_kept_by_renewing<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 1).await;
    let [a, b] = holders();
    let renew = async |lease| ready.database.renew(a, lease).await.expect("renewing works").len();
    let old = ready.share(NAME, a, Share::Whole, SHORT).await.claims.remove(0);
    assert_eq!(renew(LONG).await, 1);
    assert!(ready.share(NAME, b, Share::Whole, LONG).await.claims.is_empty(), "a renewed lease was taken");
    assert_eq!(renew(SHORT).await, 1);
    let mut wait = Wait::until("the lease of a dead worker ends");
    let mut new = ready.share(NAME, b, Share::Whole, LONG).await.claims;
    while new.is_empty() {
        wait.again().await;
        new = ready.share(NAME, b, Share::Whole, LONG).await.claims;
    }
    assert!(new[0].lease_epoch > old.lease_epoch);
    assert_eq!(renew(LONG).await, 0, "what ended is not renewed");
}

async fn one_renewal_keeps_all_subscriptions<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 2).await;
    ready.open("others").await;
    let [a, b] = holders();
    for name in [NAME, "others"] {
        ready.share(name, a, Share::Split, SHORT).await;
    }
    let renewed = ready.database.renew(a, LONG).await.expect("renewing works");
    let names: BTreeSet<&str> = renewed.iter().map(|standing| standing.subscription.as_str()).collect();
    assert_eq!(names, BTreeSet::from([NAME, "others"]));
    for name in [NAME, "others"] {
        assert!(ready.share(name, b, Share::Split, LONG).await.claims.is_empty());
    }
}

async fn a_later_life_takes_over_at_once_and_an_earlier_one_never<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 2).await;
    let replica = Uuid::now_v7();
    let (old, new) = (Holder::new(replica), Holder::new(replica));
    let before = claim(&ready, old).await;
    let after = ready.reopened().await.share(NAME, new, Share::Split, LONG).await.claims;
    assert_eq!(after.len(), 2);
    assert!(after[0].lease_epoch > before[0].lease_epoch);
    assert_eq!(standing(&ready, old).await, None, "the earlier life keeps nothing");
    let refused = ready.database.claim(NAME, old, Share::Split, LONG).await.expect_err("it was outlived");
    assert_eq!(refused.kind(), Kind::Fenced, "{refused}");
    ready.database.release(NAME, old).await.expect("there is nothing to release");
    assert_eq!(standing(&ready, new).await, Some((2, 2)), "the later life keeps everything");
}

async fn claims_at_once_give_each_partition_to_one<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 12).await;
    let members: [Holder; 4] = holders();
    let mut tasks = tokio::task::JoinSet::new();
    for member in members {
        let own = ready.reopened().await;
        tasks.spawn(async move {
            for _ in 0..4 {
                claim(&own, member).await;
            }
        });
    }
    tasks.join_all().await;
    for _ in 0..2 {
        for member in members {
            claim(&ready, member).await;
        }
    }
    for member in members {
        assert_eq!(standing(&ready, member).await, Some((3, 3)));
    }
}

/// As a process that was stopped for longer than its lease, in the middle of a batch.
async fn a_holder_that_was_replaced_commits_nothing<F: Fixture>(stage: Stage<F>) {
    let ready = opened(&stage, 1).await;
    let [a, b] = holders();
    let old = ready.share(NAME, a, Share::Whole, SHORT).await.claims.remove(0);
    let other = ready.reopened().await;
    let mut wait = Wait::until("the lease of a stopped worker ends");
    while other.share(NAME, b, Share::Whole, LONG).await.claims.is_empty() {
        wait.again().await;
    }
    let to = tombolo_event::Cursor::at(old.cursor.incarnation, 1, tombolo_event::EventId::new());
    let mut tx = ready.publishing(&[noted("a", 1)]).await;
    ready.fixture().write(&mut tx, "effect", 1).await.expect("the row is written");
    assert_eq!(tx.advance(&old, &to).await.expect_err("it was replaced").kind(), Kind::Fenced);
    assert_eq!(tx.commit().await.expect_err("it was replaced").kind(), Kind::Poisoned);
    assert_eq!((ready.read("effect").await, ready.depth().await.rows), (None, 0), "nothing of it is there");
}
