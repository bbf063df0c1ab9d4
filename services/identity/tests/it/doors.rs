//! Tokens that let nobody in, at a service under each check and at identity itself: the corpus of RFC 8725 and RFC 9068.

use std::time::Duration;

use jsonwebtoken::Algorithm;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tombolo::Clock;

use crate::stage::{ISSUER, Stage};
use crate::stub::{Own, Stub, base64, message};

/// A kind of token: what a right one says, and what wrong ones say.
pub(crate) struct Manner {
    typ: &'static str,
    says: Value,
    wrong: Vec<(String, Value)>,
}

impl Manner {
    /// An access token.
    fn access(clock: &Clock) -> Self {
        let says = claims(clock);
        let wrong = wrong_claims(clock, &says);
        Self { typ: "at+jwt", says, wrong }
    }

    /// An internal token of `service` for `callee`.
    pub(crate) fn internal(clock: &Clock, service: &str, callee: &str) -> Self {
        let now = clock.now().as_second();
        let says = json!({ "iss": service, "aud": callee, "iat": now, "exp": now + 30, "sub": "ada", "client_id": "c" });
        let mut wrong: Vec<_> = ["iss", "aud", "exp", "iat"]
            .map(|member| (format!("no {member}"), with(&says, member, Value::Null)))
            .into();
        for (member, value) in [
            ("iss", json!("nobody")),
            ("iss", json!("products")),
            ("iss", json!("")),
            ("iss", json!([service])),
            ("iss", json!(format!("../{service}"))),
            ("iss", json!(callee)),
            ("aud", json!("products")),
            ("aud", json!("tombolo")),
            ("aud", json!([callee])),
            ("aud", json!([callee, "products"])),
            ("aud", json!(callee.to_uppercase())),
            ("sub", json!("")),
            ("sub", json!(7)),
            ("exp", json!(now + 61)),
            ("exp", json!(i64::MAX)),
            ("exp", json!(now - 6)),
            ("exp", json!(i64::MIN)),
            ("exp", json!("9999999999")),
            ("exp", json!(1e300)),
            ("iat", json!(now + 60)),
            ("iat", json!(i64::MIN)),
            ("ver", json!(-1)),
            ("roles", json!("admin")),
        ] {
            wrong.push((format!("{member} {value}"), with(&says, member, value)));
        }
        Self { typ: "tombolo-internal+jwt", says, wrong }
    }

    fn header(&self, key: &Own) -> Value {
        json!({ "typ": self.typ, "alg": format!("{:?}", key.algorithm), "kid": key.kid })
    }

    /// A right one.
    pub(crate) fn sign(&self, key: &Own) -> String {
        key.sign(&self.header(key), &self.says)
    }
}

fn claims(clock: &Clock) -> Value {
    let now = clock.now().as_second();
    json!({ "iss": ISSUER, "sub": "ada", "aud": "tombolo", "exp": now + 600, "iat": now, "jti": "t1", "client_id": "c" })
}

/// `base` with one member changed; `Null` takes it away.
fn with(base: &Value, member: &str, value: Value) -> Value {
    let mut changed = base.clone();
    match value {
        Value::Null => drop(changed.as_object_mut().unwrap().remove(member)),
        value => changed[member] = value,
    }
    changed
}

/// Headers that a key may be signed right under, and that let nobody in all the same.
fn wrong_headers(right: &Value, attacker: &Own) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for typ in
        ["at+jwt", "tombolo-internal+jwt", "JWT", "id+jwt", "at+jwt+x", "at +jwt", "logout+jwt", "rt+jwt", ""]
    {
        all.push((format!("typ {typ:?}"), with(right, "typ", json!(typ))));
    }
    all.push(("no typ".into(), with(right, "typ", Value::Null)));
    all.push(("no kid".into(), with(right, "kid", Value::Null)));
    for kid in ["", "../../../../dev/null", "/etc/passwd", "k1' OR '1'='1", "k1\0", "http://evil/k1", "K1"] {
        all.push((format!("kid {kid:?}"), with(right, "kid", json!(kid))));
    }
    all.push(("a long kid".into(), with(right, "kid", json!("k".repeat(1_000)))));
    all.push(("kid is a number".into(), with(right, "kid", json!(1))));
    for (member, value) in [
        ("jku", json!("http://127.0.0.1:1/keys")),
        ("x5u", json!("http://127.0.0.1:1/chain")),
        ("jwk", attacker.jwk()),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
        ("crit", json!(["b64"])),
        ("zip", json!("DEF")),
        ("enc", json!("A256GCM")),
    ] {
        all.push((format!("{member} in the header"), with(right, member, value)));
    }
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256", "RS256", "ES384", "ES256K", "PS256", "EdDSA"] {
        all.push((format!("alg {alg:?}"), with(right, "alg", json!(alg))));
    }
    all.push(("no alg".into(), with(right, "alg", Value::Null)));
    all
}

/// Claims that are signed rightly, and let nobody in all the same.
fn wrong_claims(clock: &Clock, right: &Value) -> Vec<(String, Value)> {
    let now = clock.now().as_second();
    let mut all = Vec::new();
    for member in ["iss", "sub", "aud", "exp", "iat", "jti", "client_id"] {
        all.push((format!("no {member}"), with(right, member, Value::Null)));
    }
    for (member, value) in [
        ("iss", json!("http://evil.test")),
        ("iss", json!(format!("{ISSUER}/"))),
        ("iss", json!([ISSUER])),
        ("aud", json!("other")),
        ("aud", json!([])),
        ("aud", json!(["other", "another"])),
        ("aud", json!("Tombolo")),
        ("sub", json!("")),
        ("sub", json!(7)),
        ("exp", json!(now - 6)),
        ("exp", json!(0)),
        ("exp", json!(-1)),
        ("exp", json!(i64::MIN)),
        ("exp", json!("9999999999")),
        ("exp", json!(1e300)),
        ("nbf", json!(now + 60)),
        ("nbf", json!(i64::MAX)),
        ("iat", json!(now + 60)),
        ("ver", json!(-1)),
        ("roles", json!("admin")),
    ] {
        all.push((format!("{member} {value}"), with(right, member, value)));
    }
    all
}

/// Texts that are no token, or one that was tampered with.
fn tampered(key: &Own, attacker: &Own, manner: &Manner) -> Vec<(String, String)> {
    let (right, says) = (manner.header(key), manner.says.clone());
    let good = manner.sign(key);
    let [first, second, third] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let admin = base64(with(&says, "roles", json!(["admin"])).to_string().as_bytes());
    let twice = format!("{{\"sub\":\"eve\",{}", &says.to_string()[1..]);
    let twice = message(&right.to_string(), &twice);
    let mut all = vec![
        ("an empty signature", format!("{first}.{second}.")),
        ("no signature", format!("{first}.{second}")),
        ("other claims under the signature", format!("{first}.{admin}.{third}")),
        ("a signature of zeros", format!("{first}.{second}.{}", base64(&[0; 64]))),
        ("a short signature", format!("{first}.{second}.{}", &third[..third.len() - 4])),
        ("a longer signature", format!("{first}.{second}.{third}AAAA")),
        ("a padded signature", format!("{good}==")),
        ("a fourth part", format!("{good}.{third}")),
        ("a part before", format!("{first}.{good}")),
        ("dots alone", "..".into()),
        ("nothing of a token", "refresh-token-or-anything".into()),
        ("the attacker's key under the name", attacker.sign(&right, &says)),
        ("a claim twice", format!("{twice}.{}", key.signature(&twice))),
        (
            "JSON serialization",
            format!("{{\"payload\":\"{second}\",\"protected\":\"{first}\",\"signature\":\"{third}\"}}"),
        ),
    ];
    for alg in ["none", "None", "NONE"] {
        let none = message(&json!({ "typ": manner.typ, "alg": alg }).to_string(), &says.to_string());
        all.push(("alg none without a signature", format!("{none}.")));
        let none = message(&with(&right, "alg", json!(alg)).to_string(), &says.to_string());
        all.push(("alg none with a kid", format!("{none}.")));
    }
    all.extend(confused(key, &right, &says));
    all.into_iter().map(|(what, token)| (what.to_owned(), token)).collect()
}

/// The public key taken for a secret.
fn confused(key: &Own, right: &Value, says: &Value) -> Vec<(&'static str, String)> {
    let jwk = key.jwk();
    let x = jwk["x"].as_str().unwrap();
    let point = format!("{x}{}", jwk["y"].as_str().unwrap_or_default());
    let secrets = [jwk.to_string().into_bytes(), x.as_bytes().to_vec(), point.into_bytes(), Vec::new()];
    let message = message(&with(right, "alg", json!("HS256")).to_string(), &says.to_string());
    let sign = |secret: &[u8]| {
        let secret = jsonwebtoken::EncodingKey::from_secret(secret);
        jsonwebtoken::crypto::sign(message.as_bytes(), &secret, Algorithm::HS256).unwrap()
    };
    let token =
        |secret: Vec<u8>| ("the public key as an HMAC secret", format!("{message}.{}", sign(&secret)));
    secrets.into_iter().map(token).collect()
}

pub(crate) fn corpus(key: &Own, manner: &Manner) -> Vec<(String, String)> {
    let attacker = Own::new(&key.kid, key.algorithm);
    let mut all = tampered(key, &attacker, manner);
    let right = manner.header(key);
    let foreign = |(what, header): (String, Value)| {
        // An own algorithm under an own name is right.
        let is_right = header == right;
        (!is_right).then(|| (what, key.sign(&header, &manner.says)))
    };
    all.extend(wrong_headers(&right, &attacker).into_iter().filter_map(foreign));
    all.extend(manner.wrong.iter().map(|(what, says)| (what.clone(), key.sign(&right, says))));
    all
}

#[tokio::test]
async fn no_token_of_the_corpus_lets_anybody_in_at_a_service() {
    let stage = Stage::new();
    let wide = Own::new("wide", Algorithm::ES384);
    let manner = Manner::access(&stage.clock);
    for key in [Own::new("k1", Algorithm::ES256), Own::new("k2", Algorithm::EdDSA)] {
        let mut sealing = key.jwk();
        (sealing["kid"], sealing["use"]) = (json!("enc"), json!("enc"));
        let stub = Stub::new(vec![key.jwk(), wide.jwk(), sealing]).await;
        let service = stage.behind(&format!("of-{}", key.kid), stub.auth().without_blocks()).await;
        for typ in ["at+jwt", "AT+JWT", "application/at+jwt"] {
            let token = key.sign(&with(&manner.header(&key), "typ", json!(typ)), &claims(&stage.clock));
            assert_eq!(stage.status(&service, &token).await, StatusCode::OK, "typ {typ} is right");
        }
        let several = with(&claims(&stage.clock), "aud", json!(["other", "tombolo"]));
        assert_eq!(stage.status(&service, &key.sign(&manner.header(&key), &several)).await, StatusCode::OK);
        let mut corpus = corpus(&key, &manner);
        corpus
            .push(("a key of another curve".into(), wide.sign(&manner.header(&wide), &claims(&stage.clock))));
        let disguised = with(&manner.header(&wide), "alg", json!(format!("{:?}", key.algorithm)));
        corpus.push(("another curve, disguised".into(), wide.sign(&disguised, &claims(&stage.clock))));
        let for_sealing = with(&manner.header(&key), "kid", json!("enc"));
        corpus.push(("a key that is for sealing".into(), key.sign(&for_sealing, &claims(&stage.clock))));
        assert!(corpus.len() > 75, "{}", corpus.len());
        for (what, token) in corpus {
            let answer = stage.ask(&service, "/who", &token).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}: {token}");
            assert_eq!(answer.body["type"], "urn:tombolo:auth:token-refused", "{what}");
        }
    }
}

#[tokio::test]
async fn no_token_of_the_corpus_lets_anybody_in_at_identity_or_through_it() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let service = stage.behind("products", identity.central()).await;
    // Named as the key that really signs, so that only the signature is another's.
    let named = jsonwebtoken::decode_header(&tokens.access).unwrap().kid.unwrap();
    let mut corpus = corpus(&Own::new(&named, Algorithm::ES256), &Manner::access(&stage.clock));
    corpus.push(("a refresh token".into(), tokens.refresh.clone()));
    for (what, token) in corpus {
        assert_eq!(stage.status(&service, &token).await, StatusCode::UNAUTHORIZED, "central, {what}");
        let me = identity.as_user(Method::GET, "/me", &token).await;
        assert_eq!(me.status, StatusCode::UNAUTHORIZED, "identity, {what}");
        let introspected = identity.form("/introspect", &[("token", &token)], true).await;
        assert_eq!(introspected.text, r#"{"active":false}"#, "{what}");
    }
}

/// Tokens that identity itself signed, when it went by another name or for another audience.
#[tokio::test]
async fn a_token_for_others_is_refused_though_its_signature_is_right() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    identity.user("ada@example.org").await;
    identity.running.shutdown().await;
    let mut foreign = Vec::new();
    for (issuer, audience) in [("http://other.test", "tombolo"), (ISSUER, "others")] {
        let mut config = stage.config();
        (config.issuer, config.audience) = (issuer.into(), audience.into());
        let other = stage.identity_with(config).await;
        foreign.push(other.sign_in("ada@example.org").await.access);
        other.running.shutdown().await;
    }
    let identity = stage.identity().await;
    let local = stage.behind("orders", identity.local()).await;
    let central = stage.behind("products", identity.central()).await;
    let own = identity.sign_in("ada@example.org").await.access;
    for (token, expected) in [(own, StatusCode::OK)]
        .into_iter()
        .chain(foreign.into_iter().map(|token| (token, StatusCode::UNAUTHORIZED)))
    {
        assert_eq!(stage.status(&local, &token).await, expected);
        assert_eq!(stage.status(&central, &token).await, expected);
        assert_eq!(identity.as_user(Method::GET, "/me", &token).await.status, expected);
    }
}

#[tokio::test]
async fn what_a_client_says_of_itself_in_headers_lets_nobody_in() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (id, _) = identity.user("ada@example.org").await;
    let service = stage.behind("orders", identity.local()).await;
    for name in ["x-user-id", "X-User", "X_User_Id", "x-forwarded-user", "remote-user", "x-tombolo-user"] {
        let request = stage.http.get(format!("{}/who", service.url)).header(name, &id);
        assert_eq!(stage.send(request).await.status, StatusCode::UNAUTHORIZED, "{name}");
    }
}

#[tokio::test]
async fn introspection_and_revocation_are_for_clients_with_their_secret() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    for path in ["/introspect", "/revoke"] {
        let form = [("token", tokens.access.as_str())];
        assert_eq!(identity.form(path, &form, false).await.status, StatusCode::UNAUTHORIZED);
        for (name, secret) in [("orders", "wrong"), ("orders", ""), ("nobody", ""), ("", "")] {
            let request = stage.http.post(identity.url(path)).form(&form).basic_auth(name, Some(secret));
            let refused = stage.send(request).await;
            assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{name}:{secret}");
            assert_eq!(refused.headers["www-authenticate"], "Basic realm=\"clients\"");
        }
    }
    let introspected = identity.form("/introspect", &[("token", &tokens.access)], true).await;
    assert_eq!(introspected.body["active"], true, "{introspected:?}");
    assert_eq!(introspected.headers["cache-control"], "no-store");
    assert_eq!(identity.form("/revoke", &[("token", "unknown")], true).await.status, StatusCode::OK);
    assert_eq!(identity.form("/revoke", &[("token", &tokens.refresh)], true).await.status, StatusCode::OK);
    assert_eq!(identity.as_user(Method::GET, "/me", &tokens.access).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(identity.refresh(&tokens.refresh).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn while_identity_is_away_central_checks_let_nobody_in_and_local_ones_go_on() {
    let stage = Stage::new();
    let identity = stage.identity().await;
    let (_, tokens) = identity.user("ada@example.org").await;
    let local = stage
        .behind("orders", identity.local().client("orders", "s").introspect_at(&identity.url("/introspect")))
        .await;
    let central = stage.behind("products", identity.central()).await;
    assert_eq!(stage.status(&local, &tokens.access).await, StatusCode::OK);
    identity.running.shutdown().await;
    assert_eq!(stage.status(&local, &tokens.access).await, StatusCode::OK);
    // A route that asks identity, in a service that otherwise does not.
    assert_eq!(stage.ask(&local, "/central", &tokens.access).await.status, StatusCode::SERVICE_UNAVAILABLE);
    for _ in 0..20 {
        let away = stage.ask(&central, "/who", &tokens.access).await;
        assert_eq!(away.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(away.body["type"], "urn:tombolo:auth:away");
        assert!(away.headers.contains_key("retry-after"));
    }
    stage.clock.advance(Duration::from_secs(3600));
    assert_eq!(stage.status(&local, &tokens.access).await, StatusCode::UNAUTHORIZED, "the token has ended");
}
