//! The sweep: what tenants or strangers changed in roles and privileges, found for all tenants of a
//! database at once and put right.
//!
//! Four statements look, one transaction repairs. What they saw may have changed by then, so a
//! repair of a role takes hold only if the rows that it was judged by are still the same.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::Deserialize;
use tokio_postgres::Row;

use super::connection::Connection;
use super::error::Result;
use super::identity::TenantId;
use super::logins::close_where;
use super::roles::{LoginShape, Membership, memberships};
use super::schema::{privileges, tenants_role};
use super::server::{AdminFacts, Server};
use super::sql::{Script, ident, literal};
use super::tenants::logins_of;
use super::types::{Finding, SweepReport, TenantSettings};

const ROLES: &str = include_str!("sql/sweep_roles.sql");

const MEMBERSHIPS: &str = include_str!("sql/sweep_memberships.sql");

const GRANTS: &str = include_str!("sql/sweep_grants.sql");

const MISSING: &str = include_str!("sql/sweep_missing.sql");

impl Server {
    /// Compares roles, their settings and memberships, and privileges with the records, for all
    /// tenants of a database in a constant number of statements, and repairs what differs.
    ///
    /// A password that a tenant changed itself can't be read by anybody but a superuser:
    /// [`prove`](Self::prove) finds that, and a login issued anew repairs it.
    pub async fn sweep(&self, database: &str) -> Result<SweepReport> {
        self.sweep_sparing(database, &HashSet::new()).await
    }

    /// The same, but nothing is changed of these tenants, nor said of them.
    pub async fn sweep_sparing(&self, database: &str, spared: &HashSet<TenantId>) -> Result<SweepReport> {
        let facts = self.facts().await?;
        let mut connection = self.connect(database).await?;
        let mut sweep =
            Sweep { database, spared, facts: &facts, script: Script::new(), report: SweepReport::default() };
        let roles = sweep.roles(self, &mut connection).await?;
        sweep.memberships(&mut connection, &roles).await?;
        sweep.grants(&mut connection).await?;
        sweep.missing(&mut connection).await?;
        if !sweep.script.is_empty() {
            connection.run("can't repair what the sweep found", &sweep.script).await?;
        }
        Ok(sweep.report)
    }
}

struct Sweep<'a> {
    database: &'a str,
    spared: &'a HashSet<TenantId>,
    facts: &'a AdminFacts,
    script: Script,
    report: SweepReport,
}

#[derive(Deserialize)]
struct Stored {
    /// `None` for settings that hold in every database.
    database: Option<String>,
    settings: Vec<String>,
}

impl Sweep<'_> {
    fn repaired(&mut self, id: Option<&TenantId>, what: String) {
        self.report.repaired.push(Finding { id: id.cloned(), what });
    }

    fn unrepaired(&mut self, id: &TenantId, what: String) {
        self.report.unrepaired.push(Finding { id: Some(id.clone()), what });
    }

    /// Attributes, settings and marks of all roles. Returns the tenants whose roles are all there.
    async fn roles(&mut self, server: &Server, connection: &mut Connection) -> Result<Vec<TenantId>> {
        let rows = connection.query("can't look at the tenants' roles", ROLES, &[]).await?;
        let mut whole: HashMap<TenantId, bool> = HashMap::new();
        for row in &rows {
            let id: TenantId = row.get::<_, &str>(0).parse()?;
            let role: String = row.get(1);
            let there: bool = row.get(10);
            *whole.entry(id.clone()).or_insert(true) &= there;
            if self.spared.contains(&id) {
                continue;
            }
            if there {
                self.role(server, &id, &role, row);
            } else {
                self.unrepaired(&id, format!("role {role} is gone"));
            }
            if role == id.owner() && !row.get::<_, bool>(17) {
                self.unrepaired(&id, "its schema is gone, or belongs to somebody else".to_owned());
            }
        }
        let mut whole: Vec<TenantId> = whole.into_iter().filter_map(|(id, whole)| whole.then_some(id)).collect();
        whole.sort();
        Ok(whole)
    }

    fn role(&mut self, server: &Server, id: &TenantId, role: &str, row: &Row) {
        let name = ident(role);
        let live = row.get::<_, &str>(2) == "Live";
        let shapes = LoginShape::of(id, &settings(row), self.facts);
        let shape = shapes.iter().find(|shape| shape.name == role);
        let login_state: Option<&str> = row.get(8);
        let mut fixes = Vec::new();

        if row.get(13) {
            self.unrepaired(
                id,
                format!("role {role} has an attribute such as CREATEROLE; as a superuser take it away"),
            );
        }
        if !row.get::<_, bool>(14) {
            self.repaired(Some(id), format!("role {role} was NOINHERIT"));
            fixes.push(format!("ALTER ROLE {name} INHERIT"));
        }
        // A migration that this process does not run was cut off: its login is closed.
        if role == id.migrator() && login_state == Some("Pending") && !server.is_migrating(id) {
            self.repaired(Some(id), format!("login {role} was open although no migration runs"));
            let version = row.get::<_, &str>(9).split_once('/').map_or("", |(_, login)| login);
            self.script.add(close_where(&format!("name = {} AND xmin::text = {}", literal(role), literal(version))));
            return;
        }
        let suspended = row.get::<_, bool>(3) && role != id.migrator();
        let should = live && !suspended && login_state.is_some_and(|state| state != "Closed");
        let can: bool = row.get(11);
        if can != should {
            self.repaired(Some(id), format!("role {role} {} log in", if can { "could" } else { "could not" }));
            fixes.push(format!("ALTER ROLE {name} {}", if should { "LOGIN" } else { "NOLOGIN" }));
        }
        if let Some(shape) = shape {
            let limit: i32 = row.get(12);
            if i64::from(limit) != i64::from(shape.connection_limit) {
                self.repaired(Some(id), format!("role {role} had a connection limit of {limit}"));
                fixes.push(format!("ALTER ROLE {name} CONNECTION LIMIT {}", shape.connection_limit));
            }
            if row.get::<_, Option<&str>>(15) != Some(shape.comment.as_str()) {
                self.repaired(Some(id), format!("role {role} had another comment"));
                fixes.push(format!("COMMENT ON ROLE {name} IS {}", literal(&shape.comment)));
            }
        }
        fixes.extend(self.settings(id, role, shape, row));
        for fix in fixes {
            self.script.add(if_unchanged(id, row.get(9), role, &fix));
        }
    }

    /// Statements that bring a role's settings to what they should be, in this database and in all.
    fn settings(&mut self, id: &TenantId, role: &str, shape: Option<&LoginShape>, row: &Row) -> Vec<String> {
        let name = ident(role);
        let stored: Vec<Stored> = row
            .get::<_, Option<serde_json::Value>>(16)
            .and_then(|value| serde_json::from_value(value).ok())
            .unwrap_or_default();
        let wanted: BTreeSet<String> = shape.map(LoginShape::stored_settings).unwrap_or_default().into_iter().collect();
        let mut fixes = Vec::new();
        let mut here = BTreeSet::new();
        for stored in stored {
            match stored.database {
                Some(database) if database == self.database => here.extend(stored.settings),
                Some(database) => {
                    self.repaired(
                        Some(id),
                        format!("role {role} had settings in database {database:?}: {}", stored.settings.join(", ")),
                    );
                    fixes.push(format!("ALTER ROLE {name} IN DATABASE {} RESET ALL", ident(&database)));
                }
                None => {
                    self.repaired(
                        Some(id),
                        format!("role {role} had settings of its own: {}", stored.settings.join(", ")),
                    );
                    fixes.push(format!("ALTER ROLE {name} RESET ALL"));
                }
            }
        }
        if here != wanted {
            let list = |items: Vec<&String>| items.iter().map(|item| item.as_str()).collect::<Vec<_>>().join(", ");
            self.repaired(
                Some(id),
                format!(
                    "role {role} had settings {{{}}} instead of {{{}}}",
                    list(here.difference(&wanted).collect()),
                    list(wanted.difference(&here).collect())
                ),
            );
            match shape {
                Some(shape) => fixes.extend(shape.set(self.database)),
                None => fixes.push(format!("ALTER ROLE {name} IN DATABASE {} RESET ALL", ident(self.database))),
            }
        }
        fixes
    }

    async fn memberships(&mut self, connection: &mut Connection, tenants: &[TenantId]) -> Result<()> {
        let rows = connection.query("can't look at memberships", MEMBERSHIPS, &[]).await?;
        let group = tenants_role(self.database);
        let mut missing: HashMap<(String, String), (TenantId, Membership)> = HashMap::new();
        for id in tenants {
            for membership in memberships(id, &group) {
                missing.insert((membership.role.clone(), membership.member.clone()), (id.clone(), membership));
            }
        }
        let expected: HashSet<(String, String)> = missing.keys().cloned().collect();
        let ids: HashSet<&TenantId> = tenants.iter().collect();
        for row in &rows {
            let (role, member, grantor): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            let (key, admin) = ((role, member), row.get::<_, bool>(3));
            if missing.get(&key).is_some_and(|(_, wanted)| wanted.is_met_by(row.get(6), row.get(7))) {
                missing.remove(&key);
            }
            let (role, member) = key;
            let known = expected.contains(&(role.clone(), member.clone()));
            let of_role = tenant_of(&role).filter(|_| row.get(4));
            let of_member = tenant_of(&member).filter(|_| row.get(5));
            // Of a tenant that is just being made or dropped nothing is judged here.
            let changing = [&of_role, &of_member].into_iter().flatten().any(|id| !ids.contains(id));
            if known && !admin || changing {
                continue;
            }
            let id = of_role.or(of_member);
            // A spared one that got into another tenant's role is put out: that is the other's.
            if id.as_ref().is_some_and(|id| self.spared.contains(id)) {
                continue;
            }
            let by = if self.facts.splits_memberships() && !grantor.is_empty() {
                format!(" GRANTED BY {}", ident(&grantor))
            } else {
                String::new()
            };
            let option = if known { "ADMIN OPTION FOR " } else { "" };
            let with = if known { " with ADMIN OPTION" } else { "" };
            // What the member granted on goes with it.
            let revoke = format!("REVOKE {option}{} FROM {}{by} CASCADE", ident(&role), ident(&member));
            if row.get(8) {
                self.repaired(id.as_ref(), format!("{member} was a member of {role}{with}"));
                self.script.add(revoke);
            } else {
                // Tried, it would only undo all other repairs.
                let what = format!("{member} is a member of {role}{with}, by {grantor}; as a superuser run: {revoke}");
                self.report.unrepaired.push(Finding { id, what });
            }
        }
        let mut missing: Vec<_> = missing.into_iter().collect();
        missing.sort_by(|one, other| one.0.cmp(&other.0));
        for ((role, member), (id, wanted)) in missing.into_iter().filter(|(_, (id, _))| !self.spared.contains(id)) {
            self.repaired(Some(&id), format!("{member} was no member of {role}"));
            self.script.add(wanted.grant(self.facts));
        }
        Ok(())
    }

    async fn grants(&mut self, connection: &mut Connection) -> Result<()> {
        let rows = connection.query("can't look at privileges", GRANTS, &[]).await?;
        for row in &rows {
            let id: Option<TenantId> = row.get::<_, Option<&str>>(0).map(str::parse).transpose()?;
            if id.as_ref().is_some_and(|id| self.spared.contains(id)) {
                continue;
            }
            let (kind, object, privilege): (String, String, String) = (row.get(1), row.get(2), row.get(3));
            let grantee: Option<String> = row.get(4);
            let who = grantee.as_deref().unwrap_or("PUBLIC");
            self.repaired(id.as_ref(), format!("{who} had {privilege} on {} {object}", kind.to_lowercase()));
            let object = match kind.as_str() {
                "SCHEMA" | "DATABASE" => ident(&object),
                _ => object,
            };
            let to = grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), ident);
            let revoke = format!("REVOKE {privilege} ON {kind} {object} FROM {to} CASCADE");
            self.as_owner(row.get::<_, Option<&str>>(5), revoke);
        }
        Ok(())
    }

    /// A statement for which the admin has to be a member of what owns the object.
    fn as_owner(&mut self, owner: Option<&str>, statement: String) {
        let Some(owner) = owner else {
            self.script.add(statement);
            return;
        };
        let name = ident(owner);
        self.script.add(self.facts.borrow(&name)).add(statement).add(self.facts.give_back(&name));
        // On 16 this took away the membership that lets the admin end a login's sessions.
        if tenant_of(owner).is_some_and(|id| logins_of(&id).iter().any(|login| login == owner)) {
            self.script.add_some(self.facts.oversee(&name));
        }
    }

    async fn missing(&mut self, connection: &mut Connection) -> Result<()> {
        let rows = connection.query("can't look for missing privileges", MISSING, &[]).await?;
        let (mut usage, mut own) = (Vec::new(), Vec::new());
        for row in &rows {
            match row.get::<_, Option<&str>>(0) {
                Some(id) => usage.push(id.parse::<TenantId>()?),
                None => own.push(row.get::<_, String>(1)),
            }
        }
        for id in usage.into_iter().filter(|id| !self.spared.contains(id)) {
            self.repaired(Some(&id), format!("{} had no USAGE on its schema", id.runtime()));
            let grant = format!("GRANT USAGE ON SCHEMA {} TO {}", ident(id.schema()), ident(&id.runtime()));
            self.as_owner(Some(&id.owner()), grant);
        }
        if !own.is_empty() {
            self.repaired(None, format!("tenants lacked privileges: {}", own.join(", ")));
            let tenants = tenants_role(self.database);
            self.script.add(format!("GRANT CONNECT ON DATABASE {} TO {}", ident(self.database), ident(&tenants)));
            self.script.add(privileges(&tenants));
        }
        Ok(())
    }
}

/// The tenant that a role is one of, by its name.
fn tenant_of(role: &str) -> Option<TenantId> {
    role.get(..14)?.parse().ok()
}

/// A statement that runs only if the rows by which it was found to be needed are as they were.
fn if_unchanged(id: &TenantId, version: &str, role: &str, statement: &str) -> String {
    let (tenant, login) = version.split_once('/').unwrap_or((version, ""));
    let mut condition = format!(
        "PERFORM FROM tenantry.tenant WHERE id = {} AND xmin::text = {} FOR NO KEY UPDATE",
        literal(id.as_str()),
        literal(tenant)
    );
    if !login.is_empty() {
        condition = format!(
            "{condition}; IF FOUND THEN PERFORM FROM tenantry.login WHERE name = {} AND xmin::text = {} FOR NO KEY UPDATE; END IF",
            literal(role),
            literal(login)
        );
    }
    format!("DO {}", literal(&format!("BEGIN {condition}; IF FOUND THEN {statement}; END IF; END")))
}

/// As much of the settings as decides what a role is like.
fn settings(row: &Row) -> TenantSettings {
    let natural = |at: usize| row.get::<_, Option<i64>>(at).and_then(|number| u64::try_from(number).ok());
    TenantSettings {
        plan: String::new(),
        plan_revision: String::new(),
        suspended: row.get(3),
        connection_limit: u32::try_from(row.get::<_, i32>(4)).unwrap_or(0),
        temp_file_limit: natural(5).map(|kilobytes| kilobytes * 1024),
        statement_timeout: natural(6).map(std::time::Duration::from_millis),
        max_transaction: natural(7).map(std::time::Duration::from_millis),
        period_anchor: jiff::Timestamp::UNIX_EPOCH,
        time_zone: String::new(),
    }
}
