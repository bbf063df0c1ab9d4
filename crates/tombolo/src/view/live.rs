//! What readers hold: the build of a view that is read now.
//!
//! Invariant: one [`Live`] is one build, so everything that is read through it belongs together.

use sqlx::SqlStr;
use tombolo_db::{Build, BuildId, Tables};

use crate::Result;

/// The build of a view that is read now. Take a new one for each request: [`crate::App::view`] is cheap, and notices a switch
/// within a second.
#[derive(Debug, Clone)]
pub struct Live {
    build: BuildId,
    subscription: String,
    tables: Tables,
}

impl Live {
    pub(super) fn new(build: &Build, tables: Tables) -> Self {
        Self { build: build.id, subscription: build.subscription.clone(), tables }
    }

    /// `text` with the build's tables in the places of their names in braces, for `sqlx::query`:
    /// `sqlx::query(view.sql("SELECT … FROM {orders} WHERE user_id = ?")?)`. A brace that is meant as such is written twice: `{{`.
    ///
    /// # Errors
    /// `Database` for a name that the view's tables do not have; the message lists those that it has.
    pub fn sql(&self, text: &'static str) -> Result<SqlStr> {
        Ok(self.tables.sql(text)?)
    }

    /// The build's tables themselves, for a database without SQL: `database.read().await?.of_view(live.tables())`.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The version that is read: while a new one is built beside it, that is still the older one.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.build.version
    }

    /// The build, like `v2-b1`.
    #[must_use]
    pub fn build(&self) -> BuildId {
        self.build
    }

    /// The subscription that keeps it, as status and positions name it.
    #[must_use]
    pub fn subscription(&self) -> &str {
        &self.subscription
    }
}
