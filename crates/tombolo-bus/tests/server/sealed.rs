//! TLS between server and clients: whom a client trusts, whom a certificate makes, and a certificate that is replaced.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_util::sync::CancellationToken;
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::server::{Certificate, Client, Credential, Credentials, Listen, Seal, Server, Trust};
use tombolo_bus::{Bus, Identity, Kind, TopicSpec};
use tombolo_event::{Generations, ServiceName};

use crate::PATIENCE;

/// An authority, and the folder in which its certificates are.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Gives out a certificate for `name`, under that name or under another.
    fn give(&self, name: &str, file: &str) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let given = params.signed_by(&key, &self.issuer).unwrap();
        let certificate =
            Certificate { chain: self.path(&format!("{file}.pem")), key: self.path(&format!("{file}.key")) };
        std::fs::write(&certificate.key, key.serialize_pem()).unwrap();
        std::fs::write(&certificate.chain, given.pem()).unwrap();
        certificate
    }

    fn trust(&self, own: Option<Certificate>) -> Trust {
        Trust { authorities: Some(self.path("ca.pem")), own }
    }
}

/// A server that seals, until it is dropped.
struct Sealed {
    address: Listen,
    _shutdown: tokio_util::sync::DropGuard,
}

impl Sealed {
    async fn start(own: Certificate, clients: Option<&Path>, credentials: Credentials) -> Self {
        let seal = Seal::open(own, clients.map(Path::to_owned)).unwrap();
        let bus = Log::in_memory(Options::default()).unwrap();
        let server = Server::bind(&["tombolo://127.0.0.1:0".parse().unwrap()], bus).await.unwrap();
        let server = server.with_credentials(credentials).sealed_by(Some(seal.clone()));
        let Listen::Tls { port, .. } = server.addresses().remove(0) else { panic!("it says that it seals") };
        let shutdown = CancellationToken::new();
        tokio::spawn(server.serve(shutdown.clone()));
        let following = shutdown.clone();
        tokio::spawn(async move { following.run_until_cancelled(seal.follow()).await });
        let address = Listen::Tls { host: "localhost".into(), port };
        Self { address, _shutdown: shutdown.drop_guard() }
    }

    fn client(&self, name: &str, trust: &Trust) -> Client {
        Client::with_trust(&self.address, &service(name), None, trust).unwrap()
    }
}

fn service(name: &str) -> Identity {
    Identity::Service(ServiceName::new(name).unwrap())
}

fn spec(name: &str) -> TopicSpec {
    TopicSpec::new(ServiceName::new(name).unwrap(), Generations::first(1).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_trusts_the_authority_of_a_sealed_server_talks_to_it() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = Sealed::start(authority.give("localhost", "bus"), None, Credentials::default()).await;
    let trusting = server.client("orders", &authority.trust(None));
    trusting.ensure_topic(&spec("orders")).await.unwrap();

    let wrong = server.client("orders", &other.trust(None)).topics().await.unwrap_err();
    assert_eq!(wrong.kind(), Kind::Unavailable);
    assert!(wrong.to_string().contains("certificate"), "{wrong}");

    let Listen::Tls { port, .. } = server.address else { unreachable!() };
    let plain = Client::new(&Listen::Tcp { host: "127.0.0.1".into(), port }, &Identity::Operator).unwrap();
    assert_eq!(plain.topics().await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_certificate_is_for_another_name_is_not_talked_to() {
    let authority = Authority::new();
    let server = Sealed::start(authority.give("elsewhere", "bus"), None, Credentials::default()).await;
    let error = server.client("orders", &authority.trust(None)).topics().await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_mutual_tls_a_service_is_who_its_certificate_was_given_to() {
    let (authority, other) = (Authority::new(), Authority::new());
    let credentials = Credentials::default();
    let by_certificate = |identity: Identity, name: &str| Credential {
        identity,
        tokens: Vec::new(),
        certificates: vec![name.to_owned()],
        reads: None,
    };
    credentials.replace(vec![
        by_certificate(service("orders"), "orders.internal"),
        by_certificate(service("users"), "users.internal"),
    ]);
    let clients = authority.path("ca.pem");
    let server = Sealed::start(authority.give("localhost", "bus"), Some(&clients), credentials).await;

    let own = authority.trust(Some(authority.give("orders.internal", "orders")));
    server.client("orders", &own).ensure_topic(&spec("orders")).await.unwrap();
    // What it says of itself does not count.
    let stranger = server.client("users", &own).ensure_topic(&spec("users")).await.unwrap_err();
    assert_eq!(stranger.kind(), Kind::NotOwner, "{stranger}");

    let unknown = authority.trust(Some(authority.give("guest.internal", "guest")));
    for trust in [authority.trust(None), unknown] {
        let refused = server.client("orders", &trust).topics().await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Unauthenticated, "{refused}");
    }
    let forged = authority.trust(Some(other.give("orders.internal", "forged")));
    let refused = server.client("orders", &forged).topics().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_replaced_is_shown_from_then_on_and_one_that_is_broken_never() {
    let (authority, next) = (Authority::new(), Authority::new());
    let own = authority.give("localhost", "bus");
    let server = Sealed::start(own.clone(), None, Credentials::default()).await;
    let before = server.client("orders", &authority.trust(None));
    before.topics().await.unwrap();

    std::fs::write(&own.chain, "no certificate").unwrap();
    let given = next.give("localhost", "bus");
    std::fs::copy(&given.key, &own.key).unwrap();
    std::fs::copy(&given.chain, &own.chain).unwrap();
    let replaced = async {
        while server.client("orders", &next.trust(None)).topics().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced).await.unwrap();
    before.topics().await.unwrap();
}

#[test]
fn a_file_that_is_no_certificate_is_named() {
    let authority = Authority::new();
    let own = authority.give("localhost", "bus");
    let missing = Certificate { chain: authority.path("none.pem"), key: own.key.clone() };
    let swapped = Certificate { chain: own.key.clone(), key: own.chain.clone() };
    for (certificate, named) in [(missing, "none.pem"), (swapped, "bus.key")] {
        let error = Seal::open(certificate, None).unwrap_err();
        assert_eq!(error.kind(), Kind::Configuration);
        assert!(error.to_string().contains(named), "{error}");
    }
    let error = Seal::open(own.clone(), Some(own.key.clone())).unwrap_err();
    assert!(error.to_string().contains("bus.key"), "{error}");
}
