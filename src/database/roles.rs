//! A tenant's roles: what they are made with, and what has to be true of them ever after.
//! Making, changing and sweeping all take it from here.

use super::identity::{Slot, TenantId};
use super::server::AdminFacts;
use super::sql::{ident, literal};
use super::types::TenantSettings;

/// One migration at a time per tenant: the server itself sees to it.
pub(super) const MIGRATOR_CONNECTIONS: u32 = 1;

/// What one of a tenant's logins has to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoginShape {
    pub(super) name: String,
    pub(super) connection_limit: u32,
    /// `name=value` in order, as `pg_db_role_setting` has them.
    pub(super) settings: Vec<(&'static str, String)>,
    /// For the watchdog, which reads all databases' tenants in one statement.
    pub(super) comment: String,
}

impl LoginShape {
    /// Logins a and b, then the migration login.
    pub(super) fn of(id: &TenantId, settings: &TenantSettings, facts: &AdminFacts) -> [Self; 3] {
        let path = format!("{}, tenantry", id.schema());
        let mut runtime = vec![("search_path", path.clone())];
        if let Some(time) = milliseconds(settings.statement_timeout) {
            runtime.push(("statement_timeout", time.to_string()));
        }
        if let Some(time) = milliseconds(settings.max_transaction) {
            runtime.push(("idle_in_transaction_session_timeout", time.to_string()));
        }
        if let (Some(kilobytes), true) = (kilobytes(settings.temp_file_limit), facts.sets_temp_file_limit) {
            runtime.push(("temp_file_limit", kilobytes.to_string()));
        }
        runtime.sort();
        let mut migrator = vec![("role", id.owner()), ("search_path", path)];
        migrator.sort();
        let login = |slot| Self {
            name: id.login(slot),
            connection_limit: settings.connection_limit,
            settings: runtime.clone(),
            comment: comment(id, milliseconds(settings.max_transaction)),
        };
        [
            login(Slot::A),
            login(Slot::B),
            Self {
                name: id.migrator(),
                connection_limit: MIGRATOR_CONNECTIONS,
                settings: migrator,
                comment: comment(id, None),
            },
        ]
    }

    /// The settings as the server keeps them.
    pub(super) fn stored_settings(&self) -> Vec<String> {
        self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Statements that give the login its settings in a database, and none besides.
    pub(super) fn set(&self, database: &str) -> Vec<String> {
        let (login, database) = (ident(&self.name), ident(database));
        let mut statements = vec![format!("ALTER ROLE {login} IN DATABASE {database} RESET ALL")];
        statements.extend(self.give(&login, &database));
        statements
    }

    /// The same for a login that was just made.
    pub(super) fn set_first(&self, database: &str) -> Vec<String> {
        let mut statements = self.give(&ident(&self.name), &ident(database));
        statements.push(format!("COMMENT ON ROLE {} IS {}", ident(&self.name), literal(&self.comment)));
        statements
    }

    fn give(&self, login: &str, database: &str) -> Vec<String> {
        self.settings
            .iter()
            .map(|(name, value)| {
                // A list of names is given as one; quoted, it would be a single name.
                let value = if *name == "search_path" { value.clone() } else { literal(value) };
                format!("ALTER ROLE {login} IN DATABASE {database} SET {name} = {value}")
            })
            .collect()
    }
}

fn comment(id: &TenantId, max_transaction: Option<u64>) -> String {
    let mark = serde_json::json!({ "tenant": id.as_str(), "max_transaction_ms": max_transaction });
    format!("tenantry {mark}")
}

/// Who is a member of what, as (role, member): `tenants` is the database's role of all tenants.
pub(super) fn memberships(id: &TenantId, tenants: &str) -> Vec<Membership> {
    let member =
        |role: &str, member: &str, options| Membership { role: role.to_owned(), member: member.to_owned(), options };
    vec![
        member(&id.runtime(), &id.login(Slot::A), INHERITS),
        member(&id.runtime(), &id.login(Slot::B), INHERITS),
        member(&id.owner(), &id.migrator(), BECOMES),
        member(tenants, &id.runtime(), INHERITS),
        member(tenants, &id.owner(), INHERITS),
        member(tenants, &id.migrator(), INHERITS),
    ]
}

/// The member has what the role has.
const INHERITS: &str = "INHERIT TRUE, SET FALSE";
/// The member can act as the role.
const BECOMES: &str = "INHERIT FALSE, SET TRUE";

/// A role and one of its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) role: String,
    pub(super) member: String,
    options: &'static str,
}

impl Membership {
    pub(super) fn grant(&self, facts: &AdminFacts) -> String {
        facts.grant(&ident(&self.role), &ident(&self.member), self.options)
    }

    /// Whether a membership with these options does what this one is for.
    pub(super) fn is_met_by(&self, inherits: bool, sets: bool) -> bool {
        if self.options == INHERITS { inherits } else { sets }
    }
}

/// Milliseconds of a limit, at least one.
pub(super) fn milliseconds(time: Option<std::time::Duration>) -> Option<u64> {
    // The server's settings are 32 bits wide.
    time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, i32::MAX as u64))
}

/// Kilobytes of a limit, which is how the server counts, rounded up.
pub(super) fn kilobytes(bytes: Option<u64>) -> Option<u64> {
    bytes.map(|bytes| bytes.div_ceil(1024).min(i32::MAX as u64))
}
