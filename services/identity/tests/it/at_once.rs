//! What happens at the same time, at two replicas: it ends as if one had come after the other, and nobody is told of a lock.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::stage::{Answer, Identity, PASSWORD, Stage, Tokens};

const EMAIL: &str = "ada@example.org";

async fn sign_in(at: &Identity<'_>) -> Answer {
    at.post("/sign-in", json!({ "email": EMAIL, "password": PASSWORD })).await
}

fn none_is_a_failure<'a>(answers: impl IntoIterator<Item = &'a Answer>) {
    for answer in answers {
        assert!(!answer.status.is_server_error(), "{answer:?}");
    }
}

/// Blocks and unblocks beside sign-ins of the same user.
#[tokio::test]
async fn blocks_beside_sign_ins_end_in_one_order() {
    let stage = Stage::new();
    let (first, second) = (stage.identity().await, stage.identity().await);
    let (ada, _) = first.user(EMAIL).await;
    for round in 0..5 {
        let signing =
            futures_util::future::join_all([&first, &second, &first, &second].map(|at| sign_in(at)));
        let blocking = async {
            first.block(&ada).await;
            second.unblock(&ada).await;
        };
        let (signed, ()) = futures_util::future::join(signing, blocking).await;
        let said = [StatusCode::OK, StatusCode::FORBIDDEN];
        assert!(signed.iter().all(|answer| said.contains(&answer.status)), "round {round}: {signed:?}");
    }
    let user = first.as_operator(Method::GET, &format!("/users/{ada}"), None).await;
    assert_eq!(user.body["blocked"], false, "{user:?}");
}

/// Whoever ends all sessions of a user changes what every refresh of that user is about to change.
#[tokio::test]
async fn refreshes_beside_the_end_of_all_sessions_are_given_or_refused() {
    let stage = Stage::new();
    let (first, second) = (stage.identity().await, stage.identity().await);
    first.register(EMAIL).await;
    for _ in 0..5 {
        let sessions: Vec<Tokens> =
            futures_util::future::join_all((0..6).map(|_| first.sign_in(EMAIL))).await;
        let everywhere = first.as_user(Method::POST, "/sign-out/everywhere", &sessions[0].access);
        let refreshing = sessions.iter().zip([&first, &second].into_iter().cycle());
        let refreshing =
            futures_util::future::join_all(refreshing.map(|(tokens, at)| at.refresh(&tokens.refresh)));
        let (ended, refreshed) = futures_util::future::join(everywhere, refreshing).await;
        assert_eq!(ended.status, StatusCode::NO_CONTENT, "{ended:?}");
        none_is_a_failure(&refreshed);
        let given = refreshed.iter().filter(|answer| answer.status == StatusCode::OK);
        for tokens in given.map(|answer| Tokens::in_body(&answer.body)) {
            let after = first.refresh(&tokens.refresh).await;
            assert_eq!(
                after.status,
                StatusCode::BAD_REQUEST,
                "no session outlives the end of all: {after:?}"
            );
        }
    }
}

/// Sessions of many users that ended long ago are cleared away by sign-ins of others. InnoDB locks the gaps beside what goes by a foreign
/// key, and may end one of two such transactions: that must not be the sign-in.
#[tokio::test]
async fn sign_ins_that_clear_the_same_old_sessions_go_on_beside_each_other() {
    let stage = Stage::new();
    let (first, second) = (stage.identity().await, stage.identity().await);
    let emails: Vec<String> = (0..6).map(|number| format!("user{number}@example.org")).collect();
    for email in &emails {
        first.register(email).await;
    }
    for _ in 0..3 {
        for email in &emails {
            first.sign_in(email).await;
        }
        stage.clock.advance(stage.config().session_life * 2);
        let body = |email| json!({ "email": email, "password": PASSWORD });
        let signing = emails.iter().zip([&first, &second].into_iter().cycle());
        let signing = signing.map(|(email, at)| at.post("/sign-in", body(email)));
        let signed = futures_util::future::join_all(signing).await;
        assert!(signed.iter().all(|answer| answer.status == StatusCode::OK), "{signed:?}");
    }
    first.sign_in(&emails[0]).await;
    let left = stage.ground().await.count("SELECT count(*) FROM sessions").await;
    assert!((7..=13).contains(&left), "{left} sessions are left; expected those of the last round, at most");
}

/// The keys of a service that two replicas rotate at the same time.
#[tokio::test]
async fn of_two_rotations_at_once_one_is_done_and_the_other_is_told_why_not() {
    let stage = Stage::new();
    let (first, second) = (stage.identity().await, stage.identity().await);
    first.user(EMAIL).await;
    for _ in 0..5 {
        stage.clock.advance(std::time::Duration::from_secs(3600));
        let rotate = |at: &'_ Identity<'_>| {
            let request = stage.http.post(at.url("/keys/rotate"));
            stage.send(request.basic_auth(crate::stage::OPERATOR.0, Some(crate::stage::OPERATOR.1)))
        };
        let (one, other) = futures_util::future::join(rotate(&first), rotate(&second)).await;
        let mut said = [one.status, other.status];
        said.sort();
        assert_eq!(said, [StatusCode::NO_CONTENT, StatusCode::CONFLICT], "{one:?} {other:?}");
        let signed = second.sign_in(EMAIL).await;
        assert_eq!(first.as_user(Method::GET, "/me", &signed.access).await.status, StatusCode::OK);
    }
}
