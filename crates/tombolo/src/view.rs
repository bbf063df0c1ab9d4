//! Views: read models, which are nothing but the fold of events, and so can be built anew beside the one that is read.
//!
//! Invariant: readers see one build as a whole. Which one is a row of the service's database, and that row moves only to a
//! build that has everything which the one before it had.

mod builds;
mod keeper;
mod live;
mod progress;
mod switching;
mod compare;

use tombolo_db::{Database, Tables, Wanted};
use tombolo_event::descriptor::Subscribed;

use crate::handler::{FromDelivery, Handler};
use crate::subscription::{Role, Start, Subscription};
use crate::{Error, Kind, Result};

pub(crate) use builds::Builds;
pub use compare::Comparison;
pub(crate) use compare::compare;
pub(crate) use keeper::Keeper;
pub use live::Live;
pub use progress::{BuildStatus, Stage, ViewStatus, ViewsStatus};

/// A read model: tables that are nothing but the fold of events, and so can be rebuilt.
///
/// It always starts from the first event, and may not publish.
pub struct View<D: Database> {
    /// The view itself, then the versions that it replaces.
    versions: Vec<Version<D>>,
}

/// One version of a view, as the program has it.
pub(crate) struct Version<D: Database> {
    view: String,
    number: u32,
    tables: Option<&'static str>,
    fold: Subscription<D>,
}

impl<D: Database> View<D> {
    /// A view with its durable name (lowercase letters, digits, `-`) and version. Another version is another read
    /// model, built from the first event.
    #[must_use]
    pub fn new(name: &str, version: u32) -> Self {
        let fold = Subscription::new(format!("{name}-v{version}"), Role::View, Start::FromStart);
        Self { versions: vec![Version { view: name.to_owned(), number: version, tables: None, fold }] }
    }

    /// The SQL that makes the view's own tables, with their names in braces:
    /// `CREATE TABLE {orders} (…); CREATE INDEX {orders_by_user} ON {orders} (user_id);`
    ///
    /// Each build of the view gets tables of its own, so that one can be made beside the other. Handlers name them by
    /// `tx.sql("INSERT INTO {orders} …")?`, readers by [`crate::App::view`]. Other tables need another version.
    ///
    /// On documents, which have no SQL, these are the names of the view's collections: `{orders} {orders_by_user}`.
    #[must_use]
    pub fn tables(mut self, sql: &'static str) -> Self {
        self.own().tables = Some(sql);
        self
    }

    /// Folds one type of event. `fold` is an `async fn(Event, &mut Tx) -> Handled`.
    #[must_use]
    pub fn on<E, M, H>(mut self, fold: H) -> Self
    where
        E: FromDelivery,
        H: for<'a> Handler<'a, E, D::Tx, M>,
    {
        self.own().fold.add(fold);
        self
    }

    /// Says that events of different keys may be folded at once, so that the replicas of the service share the view's
    /// partitions. Without it one of them folds the whole view.
    #[must_use]
    pub fn split_by_key(mut self) -> Self {
        self.own().fold.split_by_key = true;
        self
    }

    /// Keeps an older version current, which is read until this one is ready; then this one is switched to by itself.
    ///
    /// The older one goes on being kept, for switching back, until its builds are dropped.
    #[must_use]
    pub fn replaces(mut self, older: Self) -> Self {
        self.versions.extend(older.versions);
        self
    }

    fn own(&mut self) -> &mut Version<D> {
        self.versions.first_mut().expect("a view is made with a version of its own")
    }

    pub(crate) fn name(&self) -> &str {
        &self.newest().view
    }

    /// The version that the program is about.
    pub(crate) fn newest(&self) -> &Version<D> {
        self.versions.first().expect("a view is made with a version of its own")
    }

    /// A version that the program can keep and read.
    pub(crate) fn version(&self, number: u32) -> Option<&Version<D>> {
        self.versions.iter().find(|version| version.number == number)
    }

    /// The names of the subscriptions of all its versions.
    pub(crate) fn subscriptions(&self) -> impl Iterator<Item = &String> {
        self.versions.iter().map(|version| &version.fold.name)
    }

    pub(crate) fn describe(&self) -> Result<Vec<Subscribed>> {
        self.versions.iter().map(|version| version.fold.describe()).collect()
    }

    /// Checks what the compiler cannot.
    pub(crate) fn check(&self, states: impl Fn(std::any::TypeId) -> bool + Copy) -> Result<()> {
        let newest = self.newest();
        for older in &self.versions[1..] {
            if older.view != newest.view || older.number >= newest.number {
                let message = format!(
                    "view {:?} version {} replaces {:?} version {}; expected an older version of the same view",
                    newest.view, newest.number, older.view, older.number
                );
                return Err(Error::new(Kind::Wiring, message));
            }
        }
        self.versions.iter().try_for_each(|version| version.fold.check(states))
    }
}

impl<D: Database> Version<D> {
    /// The build of it that is to be there.
    fn wanted(&self) -> Wanted {
        Wanted {
            view: self.view.clone(),
            version: self.number,
            tables: self.tables.map(str::to_owned),
            request: None,
            switches: false,
        }
    }

    /// The subscription that keeps one build of it.
    fn kept_as(&self, subscription: &str, tables: Option<Tables>) -> Subscription<D> {
        self.fold.of_build(subscription, tables)
    }
}
