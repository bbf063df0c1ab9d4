//! The suite on real PostgreSQL servers: the one that `TOMBOLO_TEST_POSTGRES` names, and one of our own that is killed with
//! SIGKILL, all its processes at once, whenever a case reopens the bus. And what this engine alone can get wrong.
//! Invariant: only servers that this test started are killed, and each of them is.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tombolo_bus::conformance::{self, Abilities, Ability, Factory};
use tombolo_bus::postgres::{self, Postgres};
use tombolo_bus::signal::SIGNAL_BYTES_MAX;
use tombolo_bus::{Append, Bus, Kind, Reach, Read, Signal};
use tombolo_event::Cursor;

use crate::load::{self, Killable, acknowledged_before_a_kill_is_there_after, orders, record};

/// The server that the environment names; says so if there is none.
fn shared(what: &str) -> Option<String> {
    let url = std::env::var("TOMBOLO_TEST_POSTGRES").ok();
    if url.is_none() {
        eprintln!("skipped: {what}: TOMBOLO_TEST_POSTGRES is not set; run cargo xtask test --install");
    }
    url
}

fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

async fn connect(url: &str) -> Postgres {
    postgres::connect(url).await.unwrap_or_else(|error| panic!("failed to connect: {error}"))
}

/// What is wrong with `url`.
async fn refusal(url: &str) -> tombolo_bus::Error {
    postgres::connect(url).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn postgres_passes_the_suite() {
    let Some(server) = shared("the suite on PostgreSQL") else { return };
    let url = format!("{server}?namespace={}", unique("suite"));
    let reopens = Ability::Cannot("the server is shared with other tests; the private one is killed instead");
    let abilities = Abilities { reopens, ..Abilities::all() };
    conformance::run("postgres", abilities, Arc::new(Shared { url })).await;
}

#[tokio::test]
async fn postgres_passes_the_suite_while_its_server_is_killed() {
    if shared("the suite on a PostgreSQL server that is killed").is_none() {
        return;
    }
    let server = Arc::new(Private::start(&[]).await);
    conformance::run("postgres, killed", Abilities::all(), server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_acknowledged_before_a_kill_is_there_once_and_in_order() {
    if shared("a PostgreSQL server that is killed under load").is_none() {
        return;
    }
    acknowledged_before_a_kill_is_there_after(&Private::start(&[]).await).await;
}

#[tokio::test]
async fn a_schema_that_is_not_ours_is_not_touched() {
    let Some(server) = shared("foreign schemas on PostgreSQL") else { return };
    let (ours, theirs) = (unique("foreign"), unique("empty"));
    let mut admin = PgConnection::connect(&server).await.unwrap();
    for (namespace, table) in [(&ours, "CREATE TABLE topic (x integer)"), (&theirs, "SELECT 1")] {
        let schema = format!("CREATE SCHEMA \"tombolo_bus_{namespace}\"");
        let path = format!("SET search_path = \"tombolo_bus_{namespace}\"");
        for statement in [schema.as_str(), path.as_str(), table] {
            admin.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
        }
    }
    let error = refusal(&format!("{server}?namespace={ours}")).await;
    assert_eq!(error.kind(), Kind::TopicDiffers, "{error}");
    let found = "SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE nspname = $1";
    let found = sqlx::query(found).bind(format!("tombolo_bus_{ours}")).fetch_one(&mut admin).await.unwrap();
    assert_eq!(found.get::<i64, _>(0), 1, "there is the one table of others");
    // A schema without anything in it is one that somebody made for us.
    connect(&format!("{server}?namespace={theirs}")).await.ensure_topic(&orders()).await.unwrap();
}

#[tokio::test]
async fn tables_of_a_newer_program_are_refused() {
    let Some(server) = shared("newer tables on PostgreSQL") else { return };
    let namespace = unique("newer");
    let url = format!("{server}?namespace={namespace}");
    connect(&url).await.ensure_topic(&orders()).await.unwrap();
    let mut admin = PgConnection::connect(&server).await.unwrap();
    let mark = format!(
        "COMMENT ON SCHEMA \"tombolo_bus_{namespace}\" IS 'Tombolo bus of namespace {namespace}, layout 2'"
    );
    admin.execute(AssertSqlSafe(mark)).await.unwrap();
    let error = refusal(&url).await;
    assert!(error.kind() == Kind::TopicDiffers && error.to_string().contains("layout 2"), "{error}");
}

#[tokio::test]
async fn tables_of_an_older_program_are_read_and_trimmed() {
    let Some(server) = shared("older tables on PostgreSQL") else { return };
    let namespace = unique("older");
    let bus = connect(&format!("{server}?namespace={namespace}")).await;
    let topic = bus.ensure_topic(&orders()).await.unwrap();
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
    let mut admin = PgConnection::connect(&server).await.unwrap();
    let older = format!("ALTER TABLE \"tombolo_bus_{namespace}\".partition DROP COLUMN begins");
    admin.execute(AssertSqlSafe(older)).await.unwrap();
    let records: Vec<_> = (1..=5).map(record).collect();
    let first = Cursor::at(topic.incarnation, 4, records[3].id);
    let append =
        Append { topic: topic.name.clone(), incarnation: topic.incarnation, epoch: 1, partition: 0, records };
    bus.append(append.clone()).await.unwrap();
    bus.append(append.clone()).await.unwrap();
    let start = || Read::to_tail(&topic.name, 0, Cursor::start(topic.incarnation));
    assert!(bus.read(start()).await.is_ok());
    bus.trim(&topic.name, 0, first).await.unwrap();
    assert_eq!(bus.read(start()).await.err().unwrap().kind(), Kind::Trimmed);
    assert_eq!(bus.append(append).await.unwrap_err().kind(), Kind::Trimmed);
}

#[tokio::test]
async fn a_wrong_password_and_a_database_that_is_not_there_are_named_and_no_secret_told() {
    let Some(server) = shared("wrong addresses on PostgreSQL") else { return };
    let (credentials, place) = server.split_once("://").unwrap().1.split_once('@').unwrap();
    let user = credentials.split(':').next().unwrap();
    let host = place.split('/').next().unwrap();
    for url in [
        format!("postgres://{user}:wrong-secret@{place}"),
        format!("postgres://{credentials}@{host}/there-is-no-such-database"),
    ] {
        let error = refusal(&url).await;
        assert_eq!(error.kind(), Kind::Configuration, "{error}");
        let said = format!("{error} {error:?}");
        assert!(!said.contains("wrong-secret") && !said.contains(credentials), "{said}");
    }
}

#[tokio::test]
async fn settings_that_lose_events_are_refused_by_name() {
    if shared("unsafe settings of PostgreSQL").is_none() {
        return;
    }
    let server = Private::start(&["fsync=off"]).await;
    let error = refusal(&server.url()).await;
    assert_eq!(error.kind(), Kind::Unsafe);
    assert!(error.to_string().contains("fsync = off") && error.to_string().contains("accept=unsynced"));
    let bus = connect(&format!("{}&accept=unsynced", server.url())).await;
    assert!(!bus.guarantee().survives_power_cut);
    bus.ensure_topic(&orders()).await.unwrap();
    let mut admin = PgConnection::connect(&server.plain_url()).await.unwrap();
    admin.execute("ALTER TABLE tombolo_bus_private.record SET UNLOGGED").await.unwrap();
    let error = refusal(&format!("{}&accept=unsynced", server.url())).await;
    assert!(error.kind() == Kind::Unsafe && error.to_string().contains("unlogged"), "{error}");
}

/// The writer of the server's log is put to sleep, so nobody but a commit that waits for the disk moves what is flushed.
#[tokio::test]
async fn an_append_is_on_disk_whatever_the_servers_default() {
    if shared("synchronous_commit of PostgreSQL").is_none() {
        return;
    }
    let server = Private::start(&["synchronous_commit=off", "wal_writer_delay=10s", "autovacuum=off"]).await;
    let bus = connect(&server.url()).await;
    assert!(bus.guarantee().survives_power_cut, "{:?}", bus.guarantee());
    let topic = bus.ensure_topic(&orders()).await.unwrap();
    bus.raise_epoch(&topic.name, topic.incarnation, 1).await.unwrap();
    let mut admin = PgConnection::connect(&server.plain_url()).await.unwrap();
    for sequence in 1..=3 {
        let before = "SELECT pg_current_wal_insert_lsn()::text";
        let before: String = sqlx::query(before).fetch_one(&mut admin).await.unwrap().get(0);
        let records = vec![record(sequence)];
        let append = Append {
            topic: topic.name.clone(),
            incarnation: topic.incarnation,
            epoch: 1,
            partition: 0,
            records,
        };
        bus.append(append).await.unwrap();
        let flushed = sqlx::query("SELECT pg_current_wal_flush_lsn() > $1::pg_lsn").bind(before);
        let flushed: bool = flushed.fetch_one(&mut admin).await.unwrap().get(0);
        assert!(flushed, "append {sequence} was acknowledged before it was on disk");
    }
}

#[tokio::test]
async fn the_largest_signal_arrives_whole() {
    let Some(server) = shared("large signals on PostgreSQL") else { return };
    let url = format!("{server}?namespace={}", unique("large"));
    let (sender, hearer) = (connect(&url).await, connect(&url).await);
    let mut heard = hearer.listen("large", Some("g")).await.unwrap();
    let payload: Bytes = (0..SIGNAL_BYTES_MAX).map(|at| at as u8).collect::<Vec<u8>>().into();
    let sent = Signal { reply_to: Some("answer".into()), payload };
    assert_eq!(sender.signal("large", sent.clone()).await.unwrap(), Reach::Somebody);
    let heard = tokio::time::timeout(Duration::from_secs(20), heard.next()).await.unwrap();
    assert!(heard == Some(sent));
}

/// A listening process that is killed says nothing to the server, which sees its connection end.
#[tokio::test]
async fn who_is_gone_hears_nothing_and_is_not_counted() {
    let Some(server) = shared("listeners of PostgreSQL that are gone") else { return };
    let url = format!("{server}?namespace={}", unique("gone"));
    let (sender, hearer) = (connect(&url).await, connect(&url).await);
    let heard = hearer.listen("subject", Some("g")).await.unwrap();
    let signal = Signal { reply_to: None, payload: Bytes::new() };
    assert_eq!(sender.signal("subject", signal.clone()).await.unwrap(), Reach::Somebody);
    drop((hearer, heard));
    let gone = async { while sender.signal("subject", signal.clone()).await.unwrap() == Reach::Somebody {} };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("nobody listens any more");
}

#[tokio::test]
async fn a_postgres_that_is_away_is_said_at_once_and_found_again() {
    if shared("a PostgreSQL server that goes away").is_none() {
        return;
    }
    let server = Private::start(&[]).await;
    let bus = connect(&server.url()).await;
    bus.ensure_topic(&orders()).await.unwrap();
    let mut heard = bus.listen("subject", None).await.unwrap();
    server.kill().await;
    load::away(&bus).await;
    let late = connect(&server.url()).await;
    assert_eq!(late.topics().await.unwrap_err().kind(), Kind::Unavailable);
    server.run().await;
    for bus in [&bus, &late] {
        load::eventually(bus).await;
        assert!(bus.topic(&orders().name).await.is_ok());
    }
    // A listener is known again to the server by itself.
    let signal = Signal { reply_to: None, payload: Bytes::from_static(b"again") };
    let again = async { while late.signal("subject", signal.clone()).await.unwrap() == Reach::Nobody {} };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("the listener is known again");
    assert_eq!(heard.next().await, Some(signal));
}

#[tokio::test]
#[ignore = "slow: waits until a server that has stopped answering is given up"]
async fn a_server_that_stops_answering_is_given_up() {
    if shared("a PostgreSQL server that stops answering").is_none() {
        return;
    }
    let server = Private::start(&[]).await;
    let bus = connect(&server.url()).await;
    bus.ensure_topic(&orders()).await.unwrap();
    server.signal("STOP").await;
    let asked = tokio::time::timeout(Duration::from_secs(30), bus.topics()).await;
    server.signal("CONT").await;
    assert_eq!(asked.expect("a silent server is given up").unwrap_err().kind(), Kind::Unavailable);
    load::eventually(&bus).await;
}

/// A server that other tests use too; each handle is a connection.
struct Shared {
    url: String,
}

#[async_trait]
impl Factory for Shared {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::new(connect(&self.url).await)
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.handle().await
    }
}

/// A server of our own, on a free port, in a scratch folder; as root it runs as the user `postgres`, since it refuses root.
struct Private {
    folder: TempDir,
    programs: PathBuf,
    user: Option<u32>,
    port: u16,
    settings: Vec<String>,
    process: Mutex<Option<Child>>,
}

impl Private {
    async fn start(settings: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("tombolo-suite-").tempdir_in("/tmp").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let number = |arguments: &[&str]| {
            let printed = Command::new("id").args(arguments).output().unwrap().stdout;
            String::from_utf8(printed).unwrap().trim().parse::<u32>().ok()
        };
        let user = if number(&["-u"]) == Some(0) { number(&["-u", "postgres"]) } else { None };
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let server = Self { folder, programs: programs(), user, port, settings, process: Mutex::default() };
        if let Some(user) = user {
            std::os::unix::fs::chown(server.folder.path(), Some(user), None).unwrap();
        }
        let made =
            server.command("initdb").args(["--username=tombolo", "--auth=trust", "--no-sync"]).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.run().await;
        server
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.folder.path()).arg("-D").arg(self.folder.path().join("data"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user);
        }
        command
    }

    async fn run(&self) {
        let mut command = self.command("postgres");
        command.args(["-p", &self.port.to_string()]);
        let settings = ["listen_addresses=127.0.0.1", "unix_socket_directories="].map(str::to_owned);
        command.args(settings.iter().chain(&self.settings).flat_map(|setting| ["-c", setting]));
        let url = self.plain_url();
        let mut process = self.process.lock().await;
        let starting = async {
            while PgConnection::connect(&url).await.is_err() {
                // It ends by itself as long as a process of the one before it is there.
                if process.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some()) {
                    *process = Some(command.spawn().unwrap());
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), starting).await.expect("the server starts within 60 s");
    }

    /// Signals all processes of the server.
    async fn signal(&self, signal: &str) {
        if let Some(process) = &*self.process.lock().await {
            signal_all(process.id(), signal);
        }
    }

    async fn kill(&self) {
        if let Some(mut process) = self.process.lock().await.take() {
            signal_all(process.id(), "KILL");
            process.wait().unwrap();
        }
    }

    fn plain_url(&self) -> String {
        format!("postgres://tombolo@127.0.0.1:{}/postgres", self.port)
    }

    fn url(&self) -> String {
        format!("{}?namespace=private", self.plain_url())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.get_mut().take() {
            signal_all(process.id(), "KILL");
            process.wait().ok();
        }
    }
}

/// Signals a server's first process and all that it started.
fn signal_all(first: u32, signal: &str) {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // The number of the parent is the second word behind the name, which stands in parentheses.
    let parent = |process: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let mut all: Vec<String> = vec![first.to_string()];
    all.extend(numbers.filter(|process| parent(*process) == Some(first)).map(|process| process.to_string()));
    Command::new("kill").arg(format!("-{signal}")).args(all).stderr(Stdio::null()).status().unwrap();
}

/// The newest PostgreSQL of this machine.
fn programs() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = folders.map(|folder| folder.path().join("bin")).collect();
    let named = Command::new("pg_config").arg("--bindir").output();
    found.extend(named.map(|named| PathBuf::from(String::from_utf8_lossy(&named.stdout).trim())));
    found.retain(|folder| folder.join("initdb").exists());
    found.sort();
    found.pop().expect("PostgreSQL is installed where TOMBOLO_TEST_POSTGRES is set")
}

#[async_trait]
impl Killable for Private {
    async fn kill_and_run(&self) {
        self.kill().await;
        self.run().await;
    }

    async fn connected(&self) -> Arc<dyn Bus> {
        Arc::new(connect(&self.url()).await)
    }
}

#[async_trait]
impl Factory for Private {
    async fn handle(&self) -> Arc<dyn Bus> {
        self.connected().await
    }

    async fn reopen(&self) -> Arc<dyn Bus> {
        self.kill_and_run().await;
        self.connected().await
    }
}

#[cfg(feature = "mutants")]
mod broken {
    //! Connections that are broken on purpose. Invariant: each fault fails a case that passes without it.

    use tombolo_bus::conformance::Outcome;
    use tombolo_bus::postgres::Mutant;

    use super::*;

    #[tokio::test]
    async fn the_suite_catches_every_mutant_of_postgres() {
        let Some(server) = shared("the mutants of PostgreSQL") else { return };
        let caught_by = [
            (Mutant::IgnoreTheEpoch, "an_append_that_was_prepared_before_a_raise_is_refused"),
            (Mutant::DivideWithoutSeals, "a_division_seals_every_earlier_partition"),
            (Mutant::AcknowledgeAnyRepeat, "another_id_under_a_stored_number_is_refused"),
            (Mutant::BelieveTheCursor, "a_cursor_whose_record_has_another_id_is_refused"),
            (Mutant::TellAllOfAGroup, "a_signal_is_heard_by_one_of_each_group"),
        ];
        for (mutant, case) in caught_by {
            let url = format!("{server}?namespace={}", unique("mutant"));
            let whole = play(case, Arc::new(Shared { url: url.clone() })).await;
            assert_eq!(whole, Outcome::Ok, "{case} without {mutant:?}");
            let broken = play(case, Arc::new(Broken { url, mutant })).await;
            assert!(matches!(broken, Outcome::Failed(_)), "{mutant:?} is not caught by {case}");
        }
    }

    async fn play(case: &str, factory: Arc<dyn Factory>) -> Outcome {
        let mut report =
            conformance::report("postgres, broken?", Abilities::all(), factory, &|name| name == case).await;
        report.remove(0).1
    }

    struct Broken {
        url: String,
        mutant: Mutant,
    }

    #[async_trait]
    impl Factory for Broken {
        async fn handle(&self) -> Arc<dyn Bus> {
            Arc::new(Postgres::connect_broken(&self.url, self.mutant).await.unwrap())
        }

        async fn reopen(&self) -> Arc<dyn Bus> {
            self.handle().await
        }
    }
}
