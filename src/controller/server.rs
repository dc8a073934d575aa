//! DatabaseServers: connects to them, reads their records, watches their health.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;

use super::{
    conditions::{Concerns, now},
    databases::Connected,
    failure::{Class, Failure},
    maintenance,
    queue::{Next, Outcome},
    world::World,
};
use crate::{
    api::{ConditionType, DatabaseServer, DatabaseServerStatus, TlsMode, Verdict, merge_conditions},
    cluster::{add_finalizer, remove_finalizer},
    database::{Endpoint, Password, Purpose, Server, ServerConfig, ServerInfo, Timeouts, Tls},
    desired::{join_faults, server_faults},
};

/// How many connections the operator holds to a server, unless the server says otherwise.
const CONNECTIONS: usize = 8;

pub(super) async fn reconcile(server: Arc<DatabaseServer>, world: Arc<World>) -> Outcome {
    let outcome = look_at(&server, &world).await;
    world.shared.set_tried(&server.name_any());
    outcome
}

async fn look_at(server: &DatabaseServer, world: &Arc<World>) -> Outcome {
    if super::is_paused(server) {
        return Ok(None);
    }
    let name = server.name_any();
    let on_server = |tenant: &crate::api::Tenant| {
        tenant
            .status
            .as_ref()
            .and_then(|status| status.database.as_ref())
            .is_some_and(|database| database.server == name)
    };
    let tenants = world.count_tenants(on_server);
    let pools = world.stores.pools.state().iter().filter(|pool| pool.spec.server == name).count();
    if server.metadata.deletion_timestamp.is_some() {
        if tenants == 0 && pools == 0 {
            world.databases.remove(&name);
            world.statuses.servers.forget(server.metadata.uid.as_deref().unwrap_or_default());
            remove_finalizer(world.cluster.client(), server).await?;
            return Ok(None);
        }
        let message = format!("{tenants} Tenants and {pools} Pools are still on this server: delete them first");
        return write(server, world, tenants, None, &[Verdict::no(ConditionType::Ready, "InUse", message)]).await;
    }
    add_finalizer(world.cluster.client(), server).await?;
    let faults = server_faults(server);
    let found = match faults.first() {
        Some(fault) => Err(Failure::permanent(fault.reason, join_faults(&faults))),
        None => connect(server, world).await,
    };
    let mut concerns = Concerns::default();
    match &found {
        Ok(info) => {
            let advice = if info.advice.is_empty() {
                "the admin may do all that is needed".to_owned()
            } else {
                info.advice.join(" ")
            };
            concerns.holds(ConditionType::Reachable, "Connected", advice);
        }
        Err(failure) => concerns.fails(ConditionType::Reachable, failure.clone()),
    }
    let verdicts = concerns.verdicts("the server answers, and its records are known");
    let counted = write(server, world, tenants, found.as_ref().ok(), &verdicts).await?;
    match concerns.blocked() {
        // A server that is away comes back without anybody telling: look often.
        Some(failure) if failure.class == Class::Permanent => Ok(Some(world.args.health_interval)),
        Some(failure) => Err(Failure { class: Class::Waiting, ..failure }),
        None => {
            let interval = world.args.health_interval;
            Ok(sooner(counted, world.databases.get(&name).map_or(interval, |connected| connected.check_due(interval))))
        }
    }
}

fn sooner(next: Next, other: Duration) -> Next {
    Some(next.map_or(other, |next| next.min(other)))
}

/// Connects, unless that was done with the same settings; then asks how the server is.
async fn connect(server: &DatabaseServer, world: &Arc<World>) -> Result<ServerInfo, Failure> {
    let name = server.name_any();
    let refused = |error: crate::database::Error| {
        let sqlstate = error.sqlstate().map(str::to_owned);
        let mut failure = Failure::from(error);
        // 28P01 and 28000: the login is refused; 3D000: there is no such database.
        match sqlstate.as_deref() {
            Some("28P01" | "28000") => {
                let secret = &server.spec.admin.credentials_secret.name;
                failure.message.push_str(&format!(": correct Secret {secret}"));
            }
            Some("3D000") => failure.message.push_str(": correct spec.admin.database"),
            _ => {}
        }
        failure
    };
    let (config, hash) = config(server, world)?;
    if let Some(connected) = world.databases.get(&name).filter(|connected| connected.config_hash == hash) {
        return connected.check(world.args.health_interval).await.map_err(refused);
    }
    let (ca_pem, sslmode) = match &config.tls {
        Tls::VerifyFull { ca_pem } => (Some(ca_pem.clone()), "verify-full"),
        Tls::Disable => (None, "disable"),
    };
    let connection = Server::new(config)?;
    let info = connection.check().await.map_err(refused)?;
    let connected = Arc::new(Connected::new(connection, hash, info.clone(), ca_pem, sslmode));
    for database in connected.server.list_databases().await? {
        let ours = database.mark.as_ref().is_some_and(|mark| mark.cluster_id == world.facts.cluster_id);
        if ours {
            let records = connected.server.records(&database.name).await?;
            let limits = connected.server.plan_limits(&database.name).await?;
            connected.load(database, records, limits);
        }
    }
    world.databases.insert(&name, Arc::clone(&connected));
    maintenance::start(world, &name, &connected);
    world.push_pools(|pool| pool.spec.server == name);
    world.push_waiting();
    world.push_tenants(|tenant| tenant.metadata.deletion_timestamp.is_some());
    Ok(info)
}

fn config(server: &DatabaseServer, world: &World) -> Result<(ServerConfig, u64), Failure> {
    let admin = &server.spec.admin;
    let secret = secret(world, &admin.credentials_secret.name, "spec.admin.credentialsSecret")?;
    let user = text(&secret, "username")?;
    let password = text(&secret, "password")?;
    let tls = server.spec.tls.clone().unwrap_or_default();
    let tls = match (tls.mode, &tls.ca_secret) {
        (TlsMode::Disable, _) => Tls::Disable,
        (TlsMode::VerifyFull, None) => {
            return Err(Failure::permanent(
                "CaMissing",
                "spec.tls.caSecret is missing: name the Secret with the server's CA certificates",
            ));
        }
        (TlsMode::VerifyFull, Some(reference)) => {
            let secret = self::secret(world, &reference.name, "spec.tls.caSecret")?;
            Tls::VerifyFull { ca_pem: text(&secret, "ca.crt")? }
        }
    };
    let port = |port: Option<i32>| port.and_then(|port| u16::try_from(port).ok());
    let admin_port = port(admin.port).unwrap_or(5432);
    let endpoint = server
        .spec
        .endpoint
        .as_ref()
        .map(|endpoint| Endpoint { host: endpoint.host.clone(), port: port(endpoint.port).unwrap_or(admin_port) });
    let capacity = server.spec.capacity.as_ref();
    let connections = capacity.and_then(|capacity| capacity.operator_connections).and_then(|n| usize::try_from(n).ok());
    let identity = serde_json::json!([
        admin.host,
        admin_port,
        admin.database,
        user,
        password,
        server.spec.tls,
        match &tls {
            Tls::VerifyFull { ca_pem } => Some(ca_pem),
            Tls::Disable => None,
        },
        endpoint.as_ref().map(|endpoint| (&endpoint.host, endpoint.port)),
        connections,
    ]);
    let config = ServerConfig {
        host: admin.host.clone(),
        port: admin_port,
        database: admin.database.clone().unwrap_or_else(|| "postgres".into()),
        user,
        password: Password::new(password),
        tls,
        endpoint,
        connections: connections.unwrap_or(CONNECTIONS),
        timeouts: Timeouts::default(),
    };
    Ok((config, crate::cluster::desired_hash(&identity)))
}

fn secret(world: &World, name: &str, field: &str) -> Result<Arc<Secret>, Failure> {
    world.secret(name).ok_or_else(|| {
        let namespace = &world.args.namespace;
        Failure::waiting(
            "SecretMissing",
            format!("Secret {name} is not in namespace {namespace}: create it, or correct {field}"),
        )
    })
}

fn text(secret: &Secret, key: &str) -> Result<String, Failure> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or_else(|| {
        Failure::waiting("SecretIncomplete", format!("Secret {} has no key {key}: add it", secret.name_any()))
    })?;
    String::from_utf8(bytes.0.clone()).map_err(|_| {
        Failure::waiting("SecretIncomplete", format!("key {key} of Secret {} is not text", secret.name_any()))
    })
}

async fn write(
    server: &DatabaseServer,
    world: &World,
    tenants: i64,
    info: Option<&ServerInfo>,
    verdicts: &[Verdict],
) -> Outcome {
    let old = world.statuses.servers.current(server, server.status.as_ref()).unwrap_or_default();
    let name = server.name_any();
    // Where two DatabaseServers lead to one PostgreSQL, a pool's database is its own server's.
    let is_here = |connected: &Connected, database: &str| match connected.purpose(database) {
        Some(Purpose::Pool(pool)) => world.pool(&pool).is_none_or(|pool| pool.spec.server == name),
        _ => true,
    };
    let databases = world.databases.get(&name).map_or(old.databases, |connected| {
        let here = connected.names().iter().filter(|database| is_here(&connected, database)).count();
        i64::try_from(here).unwrap_or(i64::MAX)
    });
    let status = DatabaseServerStatus {
        observed_generation: server.metadata.generation,
        version: info.map(|info| version(info.version)).or_else(|| old.version.clone()),
        databases,
        tenants,
        conditions: merge_conditions(&old.conditions, verdicts, server.metadata.generation, now()),
    };
    let counts = DatabaseServerStatus { tenants, databases: status.databases, ..old.clone() };
    if let Some(wait) = super::count_only(world, server, counts == status && old != status) {
        return Ok(Some(wait));
    }
    world.statuses.servers.write(world.cluster.client(), server, server.status.as_ref(), &status).await?;
    Ok(None)
}

/// PostgreSQL's `server_version_num`, as people write it: 150018 is 15.18.
fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}
