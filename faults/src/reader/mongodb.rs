//! The same of MongoDB. Invariant: nothing is written.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tombolo::mongodb::driver::bson::{Document, doc};
use tombolo::mongodb::driver::options::ClientOptions;
use tombolo::mongodb::driver::{Client, Collection, Database};

use super::{Count, Rows};
use crate::process::Outcome;

/// Which build of the one view is read.
#[derive(Deserialize)]
struct Live {
    version: i64,
    number: i64,
}

#[derive(Deserialize)]
struct Build {
    namespace: String,
}

/// Where a subscription stands in a partition.
#[derive(Deserialize)]
struct Stands {
    subscription: String,
    cursor: At,
}

#[derive(Deserialize)]
struct At {
    sequence: i64,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    key: String,
    n: i64,
}

/// A database of documents.
pub(crate) struct Documents {
    client: Client,
    database: Database,
}

impl Documents {
    pub(super) async fn open(url: &str) -> Outcome<Self> {
        let client = Client::with_options(ClientOptions::parse(url).await?)?;
        let database = client.default_database().ok_or("the address names a database")?;
        Ok(Self { client, database })
    }

    pub(super) async fn close(self) {
        self.client.shutdown().await;
    }

    pub(super) async fn count(&self, what: Count) -> Outcome<i64> {
        match what {
            Count::Orders => self.size("orders").await,
            Count::Waiting => self.size("tombolo_outbox").await,
            Count::Parked => self.size("tombolo_parked").await,
            Count::Applied => self.applied().await,
        }
    }

    pub(super) async fn size(&self, collection: &str) -> Outcome<i64> {
        let documents: Collection<Document> = self.database.collection(collection);
        Ok(i64::try_from(documents.count_documents(doc! {}).await?)?)
    }

    async fn applied(&self) -> Outcome<i64> {
        let mut behind: BTreeMap<String, i64> = BTreeMap::new();
        for stands in self.all::<Stands>("tombolo_cursor", doc! { "topic": "orders" }, doc! {}).await? {
            *behind.entry(stands.subscription).or_default() += stands.cursor.sequence;
        }
        Ok(behind.into_values().min().unwrap_or_default())
    }

    /// The namespace of the build that is read.
    pub(super) async fn live(&self) -> Outcome<String> {
        let views: Collection<Live> = self.database.collection("tombolo_view");
        let live = views.find_one(doc! {}).await?.ok_or("no view is read yet")?;
        let builds: Collection<Build> = self.database.collection("tombolo_build");
        let of = doc! { "version": live.version, "number": live.number };
        Ok(builds.find_one(of).await?.ok_or("the view's build is not there")?.namespace)
    }

    pub(super) async fn rows(&self, collection: &str) -> Outcome<Rows> {
        let rows: Vec<Row> = self.all(collection, doc! {}, doc! { "place": 1 }).await?;
        Ok(rows.into_iter().map(|row| (row.id, row.key, row.n)).collect())
    }

    async fn all<T>(&self, collection: &str, these: Document, order: Document) -> Outcome<Vec<T>>
    where
        T: DeserializeOwned + Send + Sync + Unpin,
    {
        let documents: Collection<T> = self.database.collection(collection);
        let mut found = documents.find(these).sort(order).await?;
        let mut all = Vec::new();
        while found.advance().await? {
            all.push(found.deserialize_current()?);
        }
        Ok(all)
    }
}

/// Removes a database.
pub(crate) async fn drop_database(url: &str) -> Outcome<()> {
    let documents = Documents::open(url).await?;
    documents.database.drop().await?;
    documents.close().await;
    Ok(())
}
