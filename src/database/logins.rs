//! Rotation: two logins in turn, so that at every moment one works for whoever has a password.
//!
//! A login is `Pending` from the moment its verifier is set until the caller says that the Secret
//! holds it. A crash in between is no matter: the digest in the record tells whether the Secret has
//! the password, and if not, the same login gets another one. Only then does the one before begin
//! to close.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::error::{Error, Result};
use super::identity::{Password, Slot, TenantId};
use super::records::read_live;
use super::server::Server;
use super::sql::{Script, ident, literal, texts};
use super::tenants::{end_sessions, expect_one};
use super::types::{CloseOutcome, IssuedLogin, LoginState, Overlap, OverlapTimes, TenantRecord};

impl Server {
    /// Sets a fresh password on the login that is not current, or on a pending one again.
    /// `Waiting` while the other login is closing, unless it is [cut](Overlap::Cut).
    pub async fn issue_login(&self, database: &str, id: &TenantId, overlap: Overlap) -> Result<IssuedLogin> {
        let mut connection = self.connect(database).await?;
        let record = read_live(&mut connection, id).await?;
        let (slot, state) = free_slot(&record);
        if state == Some(LoginState::Closing) && overlap == Overlap::Respect {
            return Err(Error::waiting(format!(
                "login {} is still closing; a new one is issued when nobody uses it any more",
                id.login(slot)
            )));
        }
        let password = Password::random();
        let name = id.login(slot);
        let found = state.map_or("Closed", LoginState::as_str);
        let mut script = Script::new();
        script.add(expect_one(
            &format!(
                "UPDATE tenantry.login SET state = 'Pending', digest = '\\x{}', since = clock_timestamp(), last_used = NULL
                  WHERE name = {} AND state = '{found}'",
                data_encoding::HEXLOWER.encode(&password.digest().0),
                literal(&name),
            ),
            "the login has just been changed by somebody else",
        ));
        let can_login = if record.settings.suspended { "NOLOGIN" } else { "LOGIN" };
        script.add(format!("ALTER ROLE {} {can_login} PASSWORD {}", ident(&name), literal(&password.verifier())));
        connection.run(&format!("can't issue login {name}"), &script).await?;
        if state == Some(LoginState::Closing) {
            // Nobody knows the new password yet: these came in with the old one.
            end_sessions(&mut connection, std::slice::from_ref(&name)).await?;
        }
        Ok(IssuedLogin { slot, username: name, password })
    }

    /// The Secret has this login now: pending becomes current, and what was current closing.
    pub async fn login_published(&self, database: &str, id: &TenantId, slot: Slot) -> Result<()> {
        let mut connection = self.connect(database).await?;
        let tenant = literal(id.as_str());
        let mut script = Script::new();
        script
            .add(format!(
                "UPDATE tenantry.login SET state = 'Closing', since = clock_timestamp(), last_used = NULL
                  WHERE tenant = {tenant} AND slot = '{}' AND state = 'Current'",
                slot.other().letter()
            ))
            .add(expect_one(
                &format!(
                    "UPDATE tenantry.login SET state = 'Current', since = clock_timestamp()
                      WHERE tenant = {tenant} AND slot = '{}' AND state = 'Pending'",
                    slot.letter()
                ),
                "the login is not pending",
            ));
        match connection.run(&format!("can't make login {} current", id.login(slot)), &script).await {
            Ok(_) => Ok(()),
            Err(error) if error.sqlstate() == Some("40001") => {
                let record = read_live(&mut connection, id).await?;
                match record.logins.iter().find(|login| login.slot == slot).map(|login| login.state) {
                    Some(LoginState::Current) => Ok(()),
                    Some(LoginState::Pending) => Err(error),
                    _ => Err(Error::permanent(format!("login {} is not pending: issue it first", id.login(slot)))),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Closes the closing logins that are due: of one tenant, or of all. A constant number of
    /// statements. With [`Overlap::Cut`] they are closed at once and their sessions ended.
    pub async fn close_logins(
        &self,
        database: &str,
        id: Option<&TenantId>,
        times: OverlapTimes,
        overlap: Overlap,
    ) -> Result<CloseOutcome> {
        let mut connection = self.connect(database).await?;
        let tenant = id.map(TenantId::as_str);
        let rows = connection
            .query(
                "can't look at the closing logins",
                "SELECT l.name, used.name IS NOT NULL,
                        extract(epoch FROM clock_timestamp() - greatest(l.since, l.last_used))::float8,
                        extract(epoch FROM clock_timestamp() - l.since)::float8
                   FROM tenantry.login l
                   LEFT JOIN (SELECT DISTINCT usename::text AS name FROM pg_stat_activity) AS used USING (name)
                  WHERE l.state = 'Closing' AND ($1::text IS NULL OR l.tenant = $1) ORDER BY 1",
                &[(&tenant, Type::TEXT)],
            )
            .await?;
        let (mut in_use, mut due, mut outcome) = (Vec::new(), Vec::new(), CloseOutcome::default());
        for row in rows {
            let (name, used): (String, bool) = (row.get(0), row.get(1));
            let (quiet, age) = (seconds(row.get(2)), seconds(row.get(3)));
            if overlap == Overlap::Cut || age >= times.max || (!used && quiet >= times.quiet) {
                due.push(name);
                continue;
            }
            outcome.closing += 1;
            let mut next = times.max.saturating_sub(age);
            if used {
                // Often enough to notice it when its last session goes.
                next = next.min(times.quiet / 4);
                in_use.push(name);
            } else {
                next = next.min(times.quiet.saturating_sub(quiet)).min(times.quiet / 4);
            }
            let next = next.max(Duration::from_millis(100));
            outcome.next_check = Some(outcome.next_check.map_or(next, |earlier| earlier.min(next)));
        }
        if in_use.is_empty() && due.is_empty() {
            return Ok(outcome);
        }
        let mut script = Script::new();
        if !in_use.is_empty() {
            script.add(format!(
                "UPDATE tenantry.login SET last_used = clock_timestamp() WHERE state = 'Closing' AND name = ANY ({})",
                texts(&in_use)
            ));
        }
        if !due.is_empty() {
            script.add(close_where(&format!("state = 'Closing' AND name = ANY ({})", texts(&due))));
        }
        connection.run("can't close logins", &script).await?;
        if !due.is_empty() {
            end_sessions(&mut connection, &due).await?;
        }
        outcome.closed = due;
        Ok(outcome)
    }
}

/// Closes the logins whose rows meet a condition when they are locked, and no others.
pub(super) fn close_where(condition: &str) -> String {
    let body = format!(
        "DECLARE closed text; BEGIN
           FOR closed IN UPDATE tenantry.login
                 SET state = 'Closed', digest = NULL, since = clock_timestamp(), last_used = NULL
               WHERE {condition} RETURNING name LOOP
             EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', closed);
           END LOOP;
         END"
    );
    format!("DO {}", literal(&body))
}

/// Which login a new password goes to, and the state it is in, `None` for closed.
fn free_slot(record: &TenantRecord) -> (Slot, Option<LoginState>) {
    let find = |state| record.logins.iter().find(|login| login.state == state).map(|login| login.slot);
    if let Some(pending) = find(LoginState::Pending) {
        return (pending, Some(LoginState::Pending));
    }
    let slot = match (find(LoginState::Current), find(LoginState::Closing)) {
        (Some(current), _) => current.other(),
        (None, Some(closing)) => closing.other(),
        (None, None) => Slot::A,
    };
    (slot, record.logins.iter().find(|login| login.slot == slot).map(|login| login.state))
}

fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number.max(0.0)).unwrap_or_default()
}

impl LoginState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Current => "Current",
            Self::Closing => "Closing",
        }
    }
}
