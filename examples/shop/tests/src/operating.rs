//! The operator's commands on a shop that runs: what each does, and what it refuses.
//!
//! Invariant: what cannot be undone is only shown before it is told with `--yes`.

use serde_json::Value;

use crate::running::{Shop, text};
use crate::wait::until;

impl Shop {
    /// A list of the operator's, as JSON.
    async fn list(&self, arguments: &[&str]) -> Vec<Value> {
        let said = self.tombolo(&[arguments, &["--format", "json"]].concat()).await;
        let listed: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        listed.as_array().unwrap_or_else(|| panic!("{listed} is no list")).clone()
    }

    /// The subscriptions of a service, as `tombolo subscriptions list` has them.
    async fn subscriptions(&self, service: &str) -> Vec<Value> {
        let replicas = self.list(&["subscriptions", "list"]).await;
        let of = replicas.iter().filter(|replica| replica["service"] == service);
        of.flat_map(|replica| replica["status"]["subscriptions"].as_array().unwrap().clone()).collect()
    }

    /// The builds of a view, as `tombolo views list` has them.
    async fn builds(&self, view: &str) -> Vec<Value> {
        let said = self.tombolo(&["views", "list", "--format", "json"]).await;
        let listed: Value = serde_json::from_str(&said).unwrap();
        let services = listed["services"].as_array().unwrap().iter();
        let views = services.filter_map(|service| service["views"].as_array()).flatten();
        let of = views.filter(|found| found["view"] == view);
        of.flat_map(|found| found["builds"].as_array().unwrap().clone()).collect()
    }

    /// What a command that must fail says.
    async fn refused(&self, arguments: &[&str]) -> String {
        let output = self.try_tombolo(arguments).await;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(!output.status.success(), "tombolo {arguments:?} went through: {said}");
        said
    }
}

#[tokio::test]
async fn what_is_paused_waits_until_it_is_resumed() {
    let shop = Shop::start().await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    shop.order(&ada, &kite, 1).await;
    shop.replica_of(&ada, 1).await;
    let view = text(&shop.subscriptions("order-history").await[0]["name"]);
    shop.tombolo(&["subscriptions", "pause", &view]).await;
    shop.order(&ada, &kite, 2).await;
    let paused = shop.subscriptions("order-history").await;
    assert_eq!((paused.len(), &paused[0]["state"]), (1, &Value::from("paused")), "{paused:?}");
    // A paused view answers what it had, over restarts too.
    shop.kill("order-history").await;
    assert_eq!(shop.history(&ada, "replica").await.body["orders"].as_array().unwrap().len(), 1);
    shop.tombolo(&["subscriptions", "resume", &view]).await;
    shop.replica_of(&ada, 2).await;
    let preview = shop.refused(&["subscriptions", "reset", "confirmations", "--to-start"]).await;
    assert!(preview.contains("--yes"), "{preview}");
    let unknown = shop.refused(&["subscriptions", "pause", "nobody"]).await;
    assert!(unknown.contains("nobody") && unknown.contains("confirmations"), "{unknown}");
    shop.end().await;
}

#[tokio::test]
async fn a_mail_that_cannot_be_sent_is_parked_shown_and_sent_when_it_is_told() {
    let shop = Shop::start().await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    shop.tombolo(&["stop", "mail"]).await;
    let order = text(&shop.order(&ada, &kite, 1).await["id"]);
    let parked = until("the confirmation to be parked", async || {
        match shop.list(&["parked", "list", "confirmations"]).await {
            parked if parked.len() == 1 => Ok(parked),
            other => Err(other),
        }
    })
    .await;
    assert_eq!((&parked[0]["key"], parked[0]["attempts"].as_u64()), (&Value::from(&*order), Some(3)));
    let shown = shop.tombolo(&["parked", "show", "confirmations", &text(&parked[0]["id"])]).await;
    assert!(shown.contains(&order) && shown.contains("error"), "{shown}");
    let kept = shop.refused(&["parked", "discard", "confirmations", "--all"]).await;
    assert!(kept.contains("--yes"), "{kept}");
    shop.tombolo(&["start", "mail"]).await;
    shop.tombolo(&["parked", "redrive", "confirmations", "--key", &order]).await;
    assert!(shop.list(&["parked", "list", "confirmations"]).await.is_empty());
    assert_eq!(shop.until_mails(1).await.len(), 1);
    shop.end().await;
}

#[tokio::test]
async fn a_view_is_built_compared_switched_to_and_dropped_while_it_is_read() {
    let shop = Shop::start().await;
    let (ada, kite) = (shop.user("ada").await, shop.product("Kite", 2_490).await);
    shop.order(&ada, &kite, 1).await;
    let before = shop.replica_of(&ada, 1).await;
    shop.tombolo(&["views", "rebuild", "order-history"]).await;
    let build = until("the new build to be ready", async || {
        let builds = shop.builds("order-history").await;
        let ready = builds.iter().find(|build| build["stage"] == "ready");
        ready.map(|build| text(&build["build"])).ok_or(builds)
    })
    .await;
    let compared = shop.tombolo(&["views", "compare", "order-history"]).await;
    assert!(compared.contains("same") && !compared.contains("differs"), "{compared}");
    shop.tombolo(&["views", "switch", "order-history", "--to", &build]).await;
    assert_eq!(shop.history(&ada, "replica").await.body, before);
    let live = shop.refused(&["views", "drop", "order-history", &build]).await;
    assert!(live.contains("live"), "{live}");
    shop.order(&ada, &kite, 2).await;
    shop.replica_of(&ada, 2).await;
    shop.end().await;
}
