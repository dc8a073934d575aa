//! Tenants: made in one transaction and one message, and changed.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::error::{Error, Result};
use super::identity::{Password, Slot, TenantId};
use super::meters::counters;
use super::records::{read_live, read_one};
use super::roles::{LoginShape, MIGRATOR_CONNECTIONS, kilobytes, memberships, milliseconds};
use super::schema::tenants_role;
use super::server::{AdminFacts, Server};
use super::sql::{Script, ident, idents, literal, optional};
use super::types::{
    IssuedLogin, LoginRecord, LoginState, Overlap, TenantRecord, TenantSettings, TenantSpec, TenantState,
};

impl Server {
    /// Makes a tenant: roles, schema, privileges, settings, record and a first login, in one
    /// transaction. If the same Tenant's record is there already, its settings are applied
    /// and a login is issued. Anything of another owner's is a permanent error.
    pub async fn create_tenant(&self, database: &str, spec: &TenantSpec) -> Result<(TenantRecord, IssuedLogin)> {
        let facts = self.facts().await?;
        let mut connection = self.connect(database).await?;
        let password = Password::random();
        let script = creation(database, spec, &facts, &password);
        let doing = format!("can't make tenant {}", spec.id);
        match connection.run(&doing, &script).await {
            Ok(_) => {
                let login = IssuedLogin { slot: Slot::A, username: spec.id.login(Slot::A), password };
                Ok((fresh_record(spec, &login), login))
            }
            Err(error) if is_there_already(&error) => {
                resumable(&mut connection, spec, error).await?;
                drop(connection);
                self.apply_settings(database, &spec.id, &spec.settings).await?;
                let login = self.issue_login(database, &spec.id, Overlap::Respect).await?;
                let record = read_live(&mut self.connect(database).await?, &spec.id).await?;
                Ok((record, login))
            }
            Err(error) => Err(error),
        }
    }

    /// Brings a live tenant's settings to what is given, but for anchor and zone of its usage
    /// periods, which stay as it was made with: what was counted belongs to these periods, here and
    /// in the ledger. A change of plan holds for its next `record_usage`. Returns whether there was
    /// anything to do.
    pub async fn apply_settings(&self, database: &str, id: &TenantId, settings: &TenantSettings) -> Result<bool> {
        let facts = self.facts().await?;
        let mut connection = self.connect(database).await?;
        let record = read_live(&mut connection, id).await?;
        let TenantSettings { period_anchor, time_zone, .. } = record.settings.clone();
        let wanted = TenantSettings { period_anchor, time_zone, ..normal(settings) };
        if record.settings == wanted {
            return Ok(false);
        }
        let mut script = Script::new();
        script.add(expect_one(
            &format!(
                "UPDATE tenantry.tenant SET plan_since = CASE WHEN plan = {plan} THEN plan_since ELSE clock_timestamp() END, \
                 (plan, plan_revision, suspended, connection_limit, temp_file_limit_kb, statement_timeout_ms, \
                  max_transaction_ms, period_anchor, time_zone) = ROW ({columns}) WHERE id = {id} AND state = 'Live'",
                plan = literal(&wanted.plan),
                columns = columns(&wanted),
                id = literal(id.as_str()),
            ),
            "the tenant has just been taken out of use",
        ));
        let before = LoginShape::of(id, &record.settings, &facts);
        for (before, shape) in before.iter().zip(LoginShape::of(id, &wanted, &facts)) {
            let login = ident(&shape.name);
            if before.connection_limit != shape.connection_limit {
                script.add(format!("ALTER ROLE {login} CONNECTION LIMIT {}", shape.connection_limit));
            }
            if before.settings != shape.settings {
                for statement in shape.set(database) {
                    script.add(statement);
                }
            }
            if before.comment != shape.comment {
                script.add(format!("COMMENT ON ROLE {login} IS {}", literal(&shape.comment)));
            }
        }
        if record.settings.suspended != wanted.suspended {
            let can = if wanted.suspended { "NOLOGIN" } else { "LOGIN" };
            for login in &record.logins {
                script.add(format!("ALTER ROLE {} {can}", ident(&login.username)));
            }
            script.add(format!("ALTER ROLE {} NOLOGIN", ident(&id.migrator())));
        }
        connection.run(&format!("can't apply the settings of tenant {id}"), &script).await?;
        if wanted.suspended {
            end_sessions(&mut connection, &logins_of(id)).await?;
        }
        Ok(true)
    }
}

/// Everything that a new tenant is, as one script.
fn creation(database: &str, spec: &TenantSpec, facts: &AdminFacts, password: &Password) -> Script {
    let id = &spec.id;
    let settings = normal(&spec.settings);
    let (owner, runtime, schema) = (ident(&id.owner()), ident(&id.runtime()), ident(id.schema()));
    let can_login = if settings.suspended { "NOLOGIN" } else { "LOGIN" };
    let limit = settings.connection_limit;
    let mut script = Script::new();
    script
        // First, since it finds out whether anybody was here before.
        .add(format!(
            "INSERT INTO tenantry.tenant (id, name, uid, cluster_id, application, state, plan, plan_revision, suspended, \
             connection_limit, temp_file_limit_kb, statement_timeout_ms, max_transaction_ms, period_anchor, time_zone) \
             VALUES ({}, {}, {}, {}, {}, 'Live', {})",
            literal(id.as_str()),
            literal(&spec.name),
            literal(&spec.uid),
            literal(&spec.cluster_id),
            literal(&spec.application),
            columns(&settings),
        ))
        .add(format!(
            "INSERT INTO tenantry.login (name, tenant, slot, state, digest) VALUES \
             ({a}, {id}, 'a', 'Pending', '\\x{digest}'), ({b}, {id}, 'b', 'Closed', NULL), ({m}, {id}, 'm', 'Closed', NULL)",
            a = literal(&id.login(Slot::A)),
            b = literal(&id.login(Slot::B)),
            m = literal(&id.migrator()),
            id = literal(id.as_str()),
            digest = data_encoding::HEXLOWER.encode(&password.digest().0),
        ))
        .add(counters(&format!("t.id = {}", literal(id.as_str()))))
        .add(format!("CREATE ROLE {owner} NOLOGIN"))
        .add(format!("CREATE ROLE {runtime} NOLOGIN"))
        .add(format!(
            "CREATE ROLE {} {can_login} CONNECTION LIMIT {limit} PASSWORD {}",
            ident(&id.login(Slot::A)),
            literal(&password.verifier())
        ))
        .add(format!("CREATE ROLE {} NOLOGIN CONNECTION LIMIT {limit}", ident(&id.login(Slot::B))))
        .add(format!("CREATE ROLE {} NOLOGIN CONNECTION LIMIT {MIGRATOR_CONNECTIONS}", ident(&id.migrator())))
        .add_some(facts.keep(&idents(id.roles())))
        .add_some(facts.oversee(&idents(logins_of(id))));
    for membership in memberships(id, &tenants_role(database)) {
        script.add(membership.grant(facts));
    }
    script
        .add(facts.borrow(&owner))
        // Never IF NOT EXISTS: a schema that is there already is somebody's.
        .add(format!("CREATE SCHEMA {schema} AUTHORIZATION {owner}"))
        .add(format!("GRANT USAGE ON SCHEMA {schema} TO {runtime}"));
    let defaults = format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner}");
    script
        .add(format!("{defaults} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"))
        .add(format!("{defaults} REVOKE USAGE ON TYPES FROM PUBLIC"))
        .add(format!("{defaults} IN SCHEMA {schema} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {runtime}"))
        .add(format!("{defaults} IN SCHEMA {schema} GRANT USAGE, SELECT ON SEQUENCES TO {runtime}"))
        .add(format!("{defaults} IN SCHEMA {schema} GRANT EXECUTE ON FUNCTIONS TO {runtime}"))
        .add(format!("{defaults} IN SCHEMA {schema} GRANT USAGE ON TYPES TO {runtime}"));
    script.add(facts.give_back(&owner));
    for shape in LoginShape::of(id, &settings, facts) {
        for statement in shape.set_first(database) {
            script.add(statement);
        }
    }
    script
}

/// The columns that [`TenantSettings`] are kept in, from `plan` on.
fn columns(settings: &TenantSettings) -> String {
    format!(
        "{}, {}, {}, {}, {}::bigint, {}::bigint, {}::bigint, {}::timestamptz, {}",
        literal(&settings.plan),
        literal(&settings.plan_revision),
        settings.suspended,
        settings.connection_limit,
        optional(kilobytes(settings.temp_file_limit)),
        optional(milliseconds(settings.statement_timeout)),
        optional(milliseconds(settings.max_transaction)),
        literal(&settings.period_anchor.to_string()),
        literal(&settings.time_zone),
    )
}

/// Settings as they come back from the record: in the units that the server keeps.
fn normal(settings: &TenantSettings) -> TenantSettings {
    let microsecond = i64::try_from(settings.period_anchor.as_nanosecond().div_euclid(1_000)).unwrap_or(0);
    TenantSettings {
        connection_limit: settings.connection_limit.min(100_000),
        temp_file_limit: kilobytes(settings.temp_file_limit).map(|kilobytes| kilobytes * 1024),
        statement_timeout: milliseconds(settings.statement_timeout).map(std::time::Duration::from_millis),
        max_transaction: milliseconds(settings.max_transaction).map(std::time::Duration::from_millis),
        period_anchor: jiff::Timestamp::from_microsecond(microsecond).unwrap_or(settings.period_anchor),
        ..settings.clone()
    }
}

fn fresh_record(spec: &TenantSpec, login: &IssuedLogin) -> TenantRecord {
    TenantRecord {
        id: spec.id.clone(),
        name: spec.name.clone(),
        uid: spec.uid.clone(),
        cluster_id: spec.cluster_id.clone(),
        application: spec.application.clone(),
        state: TenantState::Live,
        schema: spec.id.schema().to_owned(),
        settings: normal(&spec.settings),
        logins: vec![LoginRecord {
            slot: login.slot,
            username: login.username.clone(),
            state: LoginState::Pending,
            digest: login.password.digest(),
            since: jiff::Timestamp::now(),
        }],
        migrations: [].into(),
    }
}

fn is_there_already(error: &Error) -> bool {
    [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_OBJECT, SqlState::DUPLICATE_SCHEMA]
        .iter()
        .any(|state| error.is(state))
}

/// Whether what stood in the way is this very Tenant's own record; else an error that says whose.
async fn resumable(connection: &mut Connection, spec: &TenantSpec, error: Error) -> Result<()> {
    if let Some(record) = read_one(connection, &spec.id).await? {
        let same = record.uid == spec.uid && record.cluster_id == spec.cluster_id;
        return match record.state {
            TenantState::Live if same => Ok(()),
            state if same => Err(Error::permanent(format!(
                "tenant {} of this Tenant is {}: restore it, or wait until it is dropped",
                spec.id,
                state.as_str()
            ))),
            _ => Err(Error::permanent(format!(
                "{} belongs to Tenant {:?} with uid {} of cluster {}; restore or abandon that one",
                spec.id, record.name, record.uid, record.cluster_id
            ))),
        };
    }
    let rows = connection
        .query(
            "can't see who has the name",
            "SELECT uid, id FROM tenantry.tenant WHERE cluster_id = $1 AND name = $2 AND state = 'Live'",
            &[(&spec.cluster_id, Type::TEXT), (&spec.name, Type::TEXT)],
        )
        .await?;
    if let Some(row) = rows.first() {
        return Err(Error::permanent(format!(
            "a live record of the name {:?} belongs to a Tenant with uid {} ({}); restore or abandon that one",
            spec.name,
            row.get::<_, &str>(0),
            row.get::<_, &str>(1)
        )));
    }
    let text = error.to_string();
    Err(error
        .explained(format!("{text}; it has no record here, so it is somebody else's and stays: rename or remove it")))
}

/// The three logins of a tenant.
pub(super) fn logins_of(id: &TenantId) -> [String; 3] {
    [id.login(Slot::A), id.login(Slot::B), id.migrator()]
}

/// An UPDATE that has to hit a row, or the whole transaction is given up, to be tried again.
pub(super) fn expect_one(update: &str, or: &str) -> String {
    let body = format!(
        "BEGIN {update}; IF NOT FOUND THEN RAISE EXCEPTION USING MESSAGE = {}, ERRCODE = '40001'; END IF; END",
        literal(or)
    );
    format!("DO {}", literal(&body))
}

/// Ends all sessions of some logins, in any database, and waits until they are gone.
pub(super) async fn end_sessions(connection: &mut Connection, logins: &[String]) -> Result<usize> {
    let mut ended = 0;
    // A session that was just logging in shows only in the second look.
    for _ in 0..5 {
        let rows = connection
            .query(
                "can't end sessions",
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename::text = ANY ($1)",
                &[(&logins, Type::TEXT_ARRAY)],
            )
            .await?;
        if rows.is_empty() {
            return Ok(ended);
        }
        ended += rows.len();
    }
    Err(Error::transient(format!("sessions of {} do not end", logins.join(", "))))
}
