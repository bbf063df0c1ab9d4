//! What the service tells the others.
//!
//! Invariant: no event holds a secret: no password, no token, and nothing made from one.

use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tombolo::{Event, Question};
use tombolo_event::propagation::{STANDING, Standing};

use crate::names::{Joined, Names};

/// What happened to a user.
pub(crate) trait Fact: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The last words of its type.
    const WORD: &'static str;
    /// The user, which is the event's key.
    fn user(&self) -> &str;
}

/// A fact under the names of a service.
pub(crate) struct Named<N, F> {
    pub(crate) fact: F,
    names: PhantomData<fn() -> N>,
}

impl<N, F> Named<N, F> {
    pub(crate) fn new(fact: F) -> Self {
        Self { fact, names: PhantomData }
    }
}

impl<N, F: Serialize> Serialize for Named<N, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.fact.serialize(serializer)
    }
}

impl<'de, N, F: Deserialize<'de>> Deserialize<'de> for Named<N, F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        F::deserialize(deserializer).map(Self::new)
    }
}

impl<N, F: JsonSchema> JsonSchema for Named<N, F> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        F::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        F::json_schema(generator)
    }
}

struct TypeOf<N, F>(PhantomData<fn() -> (N, F)>);

impl<N: Names, F: Fact> TypeOf<N, F> {
    const JOINED: Joined = Joined::new(N::TYPES, F::WORD);
}

impl<N: Names, F: Fact> Event for Named<N, F> {
    const TYPE: &'static str = TypeOf::<N, F>::JOINED.as_str();

    fn key(&self) -> String {
        self.fact.user().to_owned()
    }

    fn topic() -> &'static str {
        N::SERVICE
    }
}

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident $word:literal { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Serialize, Deserialize, JsonSchema)]
            pub(crate) struct $name {
                pub(crate) user_id: String,
                $($(#[$field_doc])* pub(crate) $field: $kind,)*
            }

            impl Fact for $name {
                const WORD: &'static str = $word;
                fn user(&self) -> &str {
                    &self.user_id
                }
            }
        )*
    };
}

facts! {
    /// Somebody registered.
    Registered "registered.v1" { name: String, email: String, }
    /// Somebody goes by another name.
    Renamed "renamed.v1" { name: String, }
    /// A user was blocked: every session has ended.
    Blocked "blocked.v1" { version: u64, at_ms: i64, }
    /// A user may sign in again.
    Unblocked "unblocked.v1" { version: u64, at_ms: i64, }
    /// A session has ended; all of the user's if none is named.
    SignedOut "signed_out.v1" {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_id: Option<String>,
        version: u64,
        at_ms: i64,
    }
    /// A user was given these roles.
    RolesChanged "roles_changed.v1" { roles: Vec<String>, version: u64, at_ms: i64, }
}

/// How a user stands? Asked by operators, to compare with what the services have heard.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(bound = "")]
pub(crate) struct HowStands<N> {
    pub(crate) user_id: String,
    #[serde(skip)]
    #[schemars(skip)]
    names: PhantomData<fn() -> N>,
}

impl<N: Names> HowStands<N> {
    const JOINED: Joined = Joined::new(N::TYPES, STANDING);
}

impl<N: Names> Question for HowStands<N> {
    const NAME: &'static str = Self::JOINED.as_str();
    type Answer = Option<Standing>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::DefaultNames;

    struct Shop;

    impl Names for Shop {
        const SERVICE: &'static str = "users";
        const TYPES: &'static str = "users";
    }

    #[test]
    fn the_names_are_those_that_were_chosen() {
        assert_eq!(Named::<DefaultNames, Blocked>::TYPE, "identity.blocked.v1");
        assert_eq!(Named::<Shop, Registered>::TYPE, "users.registered.v1");
        assert_eq!(Named::<Shop, Registered>::topic(), "users");
    }

    #[test]
    fn what_the_shop_stored_before_stays_readable() {
        let stored = r#"{"user_id":"u1","name":"Ada","email":"ada@example.org"}"#;
        let read: Named<Shop, Registered> = serde_json::from_str(stored).unwrap();
        assert_eq!(read.fact.email, "ada@example.org");
        assert_eq!(serde_json::to_string(&read).unwrap(), stored);
    }
}
