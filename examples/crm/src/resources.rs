//! What a CRM keeps: users, accounts and opportunities.
//!
//! SQL names no schema. Each tenant's login finds its own tables, and only those, by its search path. The tables' own
//! constraints say what is valid; see `migrations/`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_postgres::types::{ToSql, Type};

/// A value for a statement's parameter.
pub(crate) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// A kind of thing that can be created, listed and deleted, and is counted. What is deserialized is the body of a POST.
pub(crate) trait Resource: DeserializeOwned + Send + Sync + 'static {
    /// Its path, and the meter that counts it.
    const NAME: &str;
    /// Inserts one and returns it as JSON.
    const INSERT: &str;
    /// Lists those with an id greater than `$1`, at most `$2`, as JSON.
    const LIST: &str;
    /// Returns the one with id `$1` as JSON.
    const READ: &str;
    /// Deletes the one with id `$1`.
    const DELETE: &str;
    /// The parameters of [`Resource::INSERT`].
    fn values(&self) -> Vec<Parameter<'_>>;
}

/// Somebody who works with the CRM.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    email: String,
    name: String,
}

impl Resource for User {
    const NAME: &str = "users";
    const INSERT: &str = "INSERT INTO users (email, name) VALUES ($1, $2) RETURNING to_jsonb(users)";
    const LIST: &str = "SELECT to_jsonb(users) FROM users WHERE id > $1 ORDER BY id LIMIT $2";
    const READ: &str = "SELECT to_jsonb(users) FROM users WHERE id = $1";
    const DELETE: &str = "DELETE FROM users WHERE id = $1";

    fn values(&self) -> Vec<Parameter<'_>> {
        vec![(&self.email, Type::TEXT), (&self.name, Type::TEXT)]
    }
}

/// A company that something may be sold to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Account {
    name: String,
    website: Option<String>,
}

impl Resource for Account {
    const NAME: &str = "accounts";
    const INSERT: &str = "INSERT INTO accounts (name, website) VALUES ($1, $2) RETURNING to_jsonb(accounts)";
    const LIST: &str = "SELECT to_jsonb(accounts) FROM accounts WHERE id > $1 ORDER BY id LIMIT $2";
    const READ: &str = "SELECT to_jsonb(accounts) FROM accounts WHERE id = $1";
    const DELETE: &str = "DELETE FROM accounts WHERE id = $1";

    fn values(&self) -> Vec<Parameter<'_>> {
        vec![(&self.name, Type::TEXT), (&self.website, Type::TEXT)]
    }
}

/// A sale that may come about with an account.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Opportunity {
    account_id: i64,
    title: String,
    /// A decimal number in a string: money is never binary floating point.
    #[serde(default = "zero")]
    amount: String,
    #[serde(default = "won")]
    currency: String,
    #[serde(default = "open")]
    stage: String,
}

fn zero() -> String {
    "0".into()
}

fn won() -> String {
    "KRW".into()
}

fn open() -> String {
    "open".into()
}

/// An opportunity as JSON, its amount as a string.
macro_rules! opportunity {
    () => {
        "to_jsonb(opportunities) || jsonb_build_object('amount', amount::text)"
    };
}

impl Resource for Opportunity {
    const NAME: &str = "opportunities";
    const INSERT: &str = concat!(
        "INSERT INTO opportunities (account_id, title, amount, currency, stage) VALUES ($1, $2, $3::numeric, $4, $5) RETURNING ",
        opportunity!()
    );
    const LIST: &str = concat!("SELECT ", opportunity!(), " FROM opportunities WHERE id > $1 ORDER BY id LIMIT $2");
    const READ: &str = concat!("SELECT ", opportunity!(), " FROM opportunities WHERE id = $1");
    const DELETE: &str = "DELETE FROM opportunities WHERE id = $1";

    fn values(&self) -> Vec<Parameter<'_>> {
        vec![
            (&self.account_id, Type::INT8),
            (&self.title, Type::TEXT),
            (&self.amount, Type::TEXT),
            (&self.currency, Type::TEXT),
            (&self.stage, Type::TEXT),
        ]
    }
}
