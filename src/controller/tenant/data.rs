//! A tenant's data, whatever its tier: the login in its Secret, and the application's tables.

use super::{Case, credentials, place::Place, provision::Provisioned, status::Report};
use crate::{
    api::ConditionType,
    controller::{
        conditions::Concerns,
        failure::Failure,
        migrations::{self, Tables, Target},
        queue::Next,
    },
};

/// How far a tenant's data is.
pub(super) enum Data {
    /// The database, or the Secret, is not there yet.
    Failed(ConditionType, Failure),
    /// There, proven, and in the Secret; the tables stand so.
    Published(Result<(), Failure>),
}

impl Data {
    /// Why it is not there.
    pub(super) fn failed(concern: ConditionType, failure: Failure) -> Self {
        Self::Failed(concern, failure)
    }

    /// Whether a pod finds all that it needs.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self, Self::Published(Ok(())))
    }

    /// Whether there is a login in the Secret.
    pub(super) fn is_published(&self) -> bool {
        matches!(self, Self::Published(_))
    }

    /// Says so in conditions.
    pub(super) fn judge(self, concerns: &mut Concerns) {
        let tables = match self {
            Self::Failed(concern, failure) => return concerns.fails(concern, failure),
            Self::Published(tables) => tables,
        };
        concerns.holds(ConditionType::DatabaseReady, "Proven", "only this tenant's login reaches this tenant's data");
        concerns.holds(ConditionType::CredentialsReady, "Published", "the Secret has the login in use");
        match tables {
            Ok(()) => concerns.holds(ConditionType::Migrated, "Current", "every migration has run"),
            Err(failure) => concerns.fails(ConditionType::Migrated, failure),
        }
    }
}

/// Credentials, then tables: in this order, since each needs the one before. Says in `next`
/// when to look again.
pub(super) async fn publish(
    case: &Case<'_>,
    place: &Place,
    mut provisioned: Provisioned,
    report: &mut Report<'_>,
    next: &mut Next,
) -> Data {
    match credentials::publish(case, place, &mut provisioned, report).await {
        Ok(wait) => *next = wait,
        Err((concern, failure)) => return Data::Failed(concern, failure),
    }
    Data::Published(tables(case, place, &provisioned).await)
}

async fn tables(case: &Case<'_>, place: &Place, provisioned: &Provisioned) -> Result<(), Failure> {
    let files = migrations::files(case.world, case.application)?;
    if super::super::is_paused(case.application) && !migrations::is_current(&provisioned.record, &files) {
        // One that runs goes on with the tables that it has; a new one has none yet.
        return match provisioned.record.migrations.is_empty() {
            false => Ok(()),
            true => Err(Failure::waiting("ApplicationPaused", "the Application is paused, and so are its migrations")),
        };
    }
    let target = Target {
        tenant: case.name.to_owned(),
        application: case.effective.application.clone(),
        server: place.server.clone(),
        database: place.database.clone(),
        id: place.id.clone(),
    };
    match migrations::migrate(case.world, &target, &provisioned.record, files).await {
        Tables::Current => Ok(()),
        Tables::Running => Err(Failure::waiting("Running", "migrations are running")),
        Tables::Failed(failure) => Err(failure),
    }
}
