//! A tenant's Secret: published, repaired, rotated.
//!
//! A login is proven before the Secret has it, and the old one lives on for a while after, so
//! that there is no moment in which a client that reads the Secret late can't log in.

use std::time::Duration;

use kube::ResourceExt as _;
use serde_json::Value;

use super::{Case, place::Place, provision::Provisioned, status::Report};
use crate::{
    api::{ANNOTATION_ROTATE, ConditionType, is_true},
    cluster::{Key, Observed, desired_hash},
    controller::{
        events::Note,
        failure::{Class, Failure},
        namespaces,
        queue::Next,
        state::{ChildState, credentials},
    },
    database::{Credentials, IssuedLogin, LoginState, Overlap, Password, PasswordDigest, TenantRecord},
    desired::{Kind, Object, SecretInput, naming, tenant_secret},
};

/// A rotation by age that is due within this time is waited for by its tenant itself. Longer
/// than the time between two rounds of a server's maintenance, which wakes the tenant before.
pub(in crate::controller) const ROTATION_SOON: Duration = Duration::from_secs(600);

/// A value of the annotation that begins so closes the old login at once.
const NOW: &str = "now-";

/// Which concern fails, and why.
type Blocked = (ConditionType, Failure);

fn credentials_failure(failure: impl Into<Failure>) -> Blocked {
    (ConditionType::CredentialsReady, failure.into())
}

fn database_failure(failure: impl Into<Failure>) -> Blocked {
    (ConditionType::DatabaseReady, failure.into())
}

/// Sees to it that the Secret has a login that works. Returns when to look again.
pub(super) async fn publish(
    case: &Case<'_>,
    place: &Place,
    provisioned: &mut Provisioned,
    report: &mut Report<'_>,
) -> Result<Next, Blocked> {
    case.world.shared.listed(&place.namespace, namespaces::LISTING).await;
    if !case.world.shared.is_listed(&place.namespace) {
        return Err(credentials_failure(namespaces::not_listed(&place.namespace)));
    }
    let requested = case.tenant.annotations().get(ANNOTATION_ROTATE).cloned();
    let asked = requested.filter(|value| report.rotated() != Some(value.as_str()));
    let cut = asked.as_deref().is_some_and(|value| value.starts_with(NOW));
    let suspended = case.effective.suspended;
    provisioned.rotated = report.rotated().map(str::to_owned);
    let mut wait = None;
    let mut resumed = false;
    // With the first credentials, also of data that was taken back, nothing is replaced.
    let first = provisioned.issued.is_some() || provisioned.record.logins.is_empty();
    let fresh = match provisioned.issued.take() {
        Some(issued) => Some(issued),
        None => match published_login(case, place, provisioned).await.map_err(credentials_failure)? {
            Login::Unusable => Some(issue(place, provisioned, Overlap::Cut).await.map_err(credentials_failure)?),
            // The operator ended between the Secret and the status: what was asked for is done.
            Login::InUse { rotated, .. } if asked.is_some() && rotated == asked => {
                resumed = true;
                None
            }
            Login::InUse { age, .. } if !suspended && (asked.is_some() || is_old(case, age)) => {
                match issue(place, provisioned, if cut { Overlap::Cut } else { Overlap::Respect }).await {
                    Ok(issued) => Some(issued),
                    // A rotation before this one is not over: this one waits for it.
                    Err(failure) if failure.class == Class::Waiting => {
                        wait = Some(case.world.args.rotation_overlap.min(Duration::from_secs(30)));
                        None
                    }
                    Err(failure) => return Err(credentials_failure(failure)),
                }
            }
            Login::InUse { .. } => None,
            Login::Resumed => {
                resumed = true;
                None
            }
        },
    };
    let renewed = fresh.is_some() || resumed;
    if renewed && asked.is_some() {
        provisioned.rotated.clone_from(&asked);
    }
    match fresh {
        Some(issued) => {
            // A suspended tenant's logins are locked: there is nothing to log in with.
            if !suspended {
                prove(place, provisioned, &issued.username, &issued.password).await.map_err(database_failure)?;
            }
            let hash = secret_hash(case, place, provisioned, &issued.username, &issued.password.digest());
            let secret = secret(case, place, provisioned, &issued.username, &issued.password);
            case.world.cluster.apply_as(&secret, hash).await.map_err(credentials_failure)?;
            confirm(place, provisioned, &issued).await.map_err(credentials_failure)?;
        }
        None => in_sync(case, place, provisioned, report).await?,
    }
    if renewed && cut {
        let (server, overlap) = (&provisioned.connected.server, case.world.args.overlap());
        let closed = server.close_logins(&place.database, Some(&place.id), overlap, Overlap::Cut).await;
        closed.map_err(credentials_failure)?;
        refresh(place, provisioned).await.map_err(credentials_failure)?;
    }
    if renewed && !first {
        let text = if cut {
            "new credentials; the old login is closed"
        } else {
            "new credentials; the old login closes when nobody uses it"
        };
        case.world.events.say(case.tenant, Note::normal("CredentialsRotated", "RotateCredentials", text));
    }
    if let Some(value) = asked.filter(|_| renewed) {
        report.set_rotated(&value);
    }
    Ok(wait.or_else(|| next_rotation(case, provisioned)))
}

/// What the Secret has.
enum Login {
    /// The login in use, issued so long ago, and which request to rotate it answers.
    InUse { age: Duration, rotated: Option<String> },
    /// A fresh login, from a rotation that the operator's end interrupted.
    Resumed,
    /// None, or one that the server doesn't know or soon won't.
    Unusable,
}

async fn published_login(case: &Case<'_>, place: &Place, provisioned: &mut Provisioned) -> Result<Login, Failure> {
    let Some(ChildState::Credentials { username, digest, rotated }) =
        case.world.cluster.children().state(&key(case, place))
    else {
        return Ok(Login::Unusable);
    };
    let Some(login) = provisioned.record.login_of(&username, &digest).cloned() else { return Ok(Login::Unusable) };
    let age = jiff::Timestamp::now().duration_since(login.since);
    let age = Duration::try_from(age).unwrap_or_default();
    match login.state {
        LoginState::Current => Ok(Login::InUse { age, rotated }),
        // The Secret was written, and the operator ended before it could say so.
        LoginState::Pending => {
            provisioned.connected.server.login_published(&place.database, &place.id, login.slot).await?;
            refresh(place, provisioned).await?;
            Ok(Login::Resumed)
        }
        LoginState::Closing => Ok(Login::Unusable),
    }
}

fn is_old(case: &Case<'_>, age: Duration) -> bool {
    let limit = case.world.args.rotate_after;
    !limit.is_zero() && age >= limit
}

/// When to look again for the rotation by age, if that is soon: for one that is months away the
/// maintenance of the server keeps the time, since ten thousand alarms take memory.
fn next_rotation(case: &Case<'_>, provisioned: &Provisioned) -> Next {
    rotation_due(&provisioned.record, case.world.args.rotate_after).filter(|due| *due <= ROTATION_SOON)
}

/// In how long the login in use is to be rotated by its age.
pub(in crate::controller) fn rotation_due(record: &TenantRecord, rotate_after: Duration) -> Option<Duration> {
    let current = record.logins.iter().find(|login| login.state == LoginState::Current)?;
    let age = Duration::try_from(jiff::Timestamp::now().duration_since(current.since)).unwrap_or_default();
    (!rotate_after.is_zero()).then(|| rotate_after.saturating_sub(age).max(Duration::from_secs(1)))
}

async fn issue(place: &Place, provisioned: &mut Provisioned, overlap: Overlap) -> Result<IssuedLogin, Failure> {
    let issued = provisioned.connected.server.issue_login(&place.database, &place.id, overlap).await?;
    refresh(place, provisioned).await?;
    Ok(issued)
}

/// The Secret is written: the login in it is the one in use from now on.
async fn confirm(place: &Place, provisioned: &mut Provisioned, issued: &IssuedLogin) -> Result<(), Failure> {
    provisioned.connected.server.login_published(&place.database, &place.id, issued.slot).await?;
    refresh(place, provisioned).await
}

async fn refresh(place: &Place, provisioned: &mut Provisioned) -> Result<(), Failure> {
    if let Some(record) = provisioned.connected.refresh(&place.database, &place.id).await? {
        provisioned.record = record;
    }
    Ok(())
}

/// The Secret has the right login; sees to the rest of it, and proves it once.
async fn in_sync(
    case: &Case<'_>,
    place: &Place,
    provisioned: &Provisioned,
    report: &Report<'_>,
) -> Result<(), Blocked> {
    let key = key(case, place);
    let Some(ChildState::Credentials { username, digest, .. }) = case.world.cluster.children().state(&key) else {
        return Err(credentials_failure(Failure::waiting("SecretGone", "the Secret went; it is made anew")));
    };
    let hash = secret_hash(case, place, provisioned, &username, &digest);
    let proven = case.effective.suspended || is_true(&report.old().conditions, ConditionType::DatabaseReady);
    if proven && matches!(case.world.cluster.children().observe(&key, hash), Observed::InSync) {
        return Ok(());
    }
    let password = password(case, &key, &digest).await.map_err(credentials_failure)?;
    if !proven {
        prove(place, provisioned, &username, &password).await.map_err(database_failure)?;
    }
    let secret = secret(case, place, provisioned, &username, &password);
    case.world.cluster.apply_as(&secret, hash).await.map_err(credentials_failure)?;
    Ok(())
}

/// The password in the Secret: the operator keeps none.
async fn password(case: &Case<'_>, key: &Key, digest: &PasswordDigest) -> Result<Password, Failure> {
    let matching = |secret: &Value| credentials(secret).map(|(_, password)| password).filter(|p| p.digest() == *digest);
    if let Some(password) = case.world.cluster.children().whole(key).as_ref().and_then(matching) {
        return Ok(password);
    }
    let live = case.world.cluster.read(key).await?;
    live.as_ref().and_then(matching).ok_or_else(|| Failure::waiting("SecretChanged", "the Secret is being changed"))
}

async fn prove(place: &Place, provisioned: &Provisioned, username: &str, password: &Password) -> Result<(), Failure> {
    let credentials = Credentials {
        database: place.database.clone(),
        schema: place.id.to_string(),
        username: username.to_owned(),
        password: password.clone(),
    };
    provisioned.connected.server.prove(&credentials).await?;
    Ok(())
}

fn key(case: &Case<'_>, place: &Place) -> Key {
    Key { kind: Kind::Secret, namespace: Some(place.namespace.clone()), name: naming::credentials_secret(case.name) }
}

fn secret(case: &Case<'_>, place: &Place, provisioned: &Provisioned, username: &str, password: &Password) -> Object {
    secret_with(case, place, provisioned, username, password.expose())
}

/// The hash of the Secret, by which it is known again without its password.
fn secret_hash(
    case: &Case<'_>,
    place: &Place,
    provisioned: &Provisioned,
    username: &str,
    digest: &PasswordDigest,
) -> u64 {
    desired_hash(&secret_with(case, place, provisioned, username, &format!("{digest:?}")).body)
}

fn secret_with(case: &Case<'_>, place: &Place, provisioned: &Provisioned, username: &str, password: &str) -> Object {
    let connected = &provisioned.connected;
    let endpoint = connected.server.endpoint();
    tenant_secret(&SecretInput {
        tenant: case.name,
        pool: place.pool.as_deref(),
        application: &case.effective.application,
        namespace: &place.namespace,
        hosts: &case.hosts,
        rotated: provisioned.rotated.as_deref(),
        host: &endpoint.host,
        port: endpoint.port,
        database: &place.database,
        schema: &provisioned.record.schema,
        username,
        password,
        sslmode: connected.sslmode,
        ca_pem: connected.ca_pem.as_deref(),
    })
}
