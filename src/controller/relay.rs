//! The relay of each DatabaseServer: its namespace with all that is in it, and its login in each
//! database.
//!
//! A login is made when a database is ready, and its password is in the Secret alone. One that was
//! deleted or edited is made anew with a new password. At rest nothing is sent; a login is
//! compared with the server's, by one statement, after each sweep of its database.

use std::sync::Arc;

use futures::StreamExt as _;
use kube::ResourceExt as _;
use serde_json::Value;

use super::{
    api_ca::ApiCa,
    databases::Connected,
    failure::{Class, Failure},
    namespaces,
    objects::Namespaced,
    retire::{Retired, retire},
    server::is_here,
    state::{ChildState, credentials},
    world::World,
};
use crate::{
    api::{ConditionType, DatabaseServer, Verdict},
    cluster::{Key, Observed, Owner, desired_hash},
    database::{Password, PasswordDigest, relay_role},
    desired::{Kind, Object, RelayInput, RelaySecretInput, naming, relay_objects, relay_secret},
};

/// How many databases get their login at a time.
const AT_A_TIME: usize = 4;

/// Brings a server's relay to what it should be; where nothing is metered, there is none. Returns
/// what is to be said of it.
///
/// # Errors
/// What stands in the way, such as somebody else's namespace of that name.
pub(super) async fn ensure(server: &DatabaseServer, world: &Arc<World>) -> Result<Option<Verdict>, Failure> {
    let name = server.name_any();
    let Some(relay) = world.args.relay() else {
        // What was made while something was metered. A namespace that was left to others has nothing else.
        let owner = Owner::Server(name.clone());
        if world.cluster.children().of_owner(&owner).iter().any(|key| key.kind != Kind::Namespace) {
            remove(&name, world).await?;
        }
        return Ok(None);
    };
    let api_ca = world.api_ca.as_ref().map(ApiCa::pem);
    let input = RelayInput {
        server,
        settings: &world.settings,
        relay: &relay,
        api_server: &world.api_server(),
        api_ca: api_ca.as_deref(),
    };
    let namespace = naming::relay_namespace(&name);
    let mut namespaced = Namespaced::new(world, Owner::Server(name.clone()), &namespace);
    namespaced.apply(relay_objects(&input)).await?;
    let published = match world.databases.get(&name) {
        Some(connected) => publish_all(world, &name, &connected, &mut namespaced).await,
        // Nothing is known of its databases: their Secrets stay.
        None => {
            let secrets = world.cluster.children().of_kind(Kind::Secret, Some(&namespace));
            secrets.into_iter().for_each(|secret| namespaced.keep(secret));
            Ok(())
        }
    };
    namespaced.prune().await?;
    published?;
    let declared = server.spec.network.as_ref().is_some_and(|network| !network.to.is_empty());
    Ok(Some(match declared {
        true => Verdict::yes(ConditionType::RelayReady, "Applied", "the relay has a login in every database"),
        false => Verdict::no(
            ConditionType::RelayReady,
            "NetworkNotDeclared",
            "the relay may not reach the server: name the server's own peers in spec.network.to",
        ),
    }))
}

/// Removes a server's relay with its namespace; what others have there stays, and the namespace
/// with it.
pub(super) async fn remove(server: &str, world: &Arc<World>) -> Result<Retired, Failure> {
    let owner = Owner::Server(server.to_owned());
    if world.cluster.children().of_owner(&owner).is_empty() {
        return Ok(Retired::Gone);
    }
    retire(world, &owner, &naming::relay_namespace(server), true).await
}

/// A database was made ready: its relay is to have a login there.
pub(super) fn database_is_ready(world: &World, connected: &Connected) {
    if world.args.relay().is_some()
        && let Some(server) = world.databases.name_of(connected)
    {
        world.queues.servers.push(&server);
    }
}

/// The API server has other addresses, which the relays' policies name.
pub(super) fn api_server_moved(world: &World) {
    if world.args.relay().is_some() {
        for server in world.stores.servers.state() {
            world.queues.servers.push(&server.name_any());
        }
    }
}

/// The Secrets of all databases of a server. One that fails keeps no other from being published.
async fn publish_all(
    world: &Arc<World>,
    server: &str,
    connected: &Connected,
    namespaced: &mut Namespaced<'_>,
) -> Result<(), Failure> {
    let mut todo = Vec::new();
    for database in connected.names().into_iter().filter(|database| is_here(world, server, connected, database)) {
        let login = Login { world, server, connected, database };
        namespaced.keep(login.key());
        // Those that nobody has made ready yet keep what they have.
        if connected.is_ready(&login.database) {
            todo.push(async move { login.publish().await });
        }
    }
    if todo.is_empty() {
        return Ok(());
    }
    let namespace = naming::relay_namespace(server);
    world.shared.listed(&namespace, namespaces::LISTING).await;
    if !world.shared.is_listed(&namespace) {
        return Err(namespaces::not_listed(&namespace));
    }
    let outcomes: Vec<_> = futures::stream::iter(todo).buffer_unordered(AT_A_TIME).collect().await;
    outcomes.into_iter().collect()
}

/// The relay's login in one database.
struct Login<'a> {
    world: &'a Arc<World>,
    server: &'a str,
    connected: &'a Connected,
    database: String,
}

impl Login<'_> {
    fn key(&self) -> Key {
        let namespace = Some(naming::relay_namespace(self.server));
        Key { kind: Kind::Secret, namespace, name: naming::relay_secret(&self.database) }
    }

    /// Sees to it that the Secret has the login.
    async fn publish(&self) -> Result<(), Failure> {
        let (key, children) = (self.key(), self.world.cluster.children());
        let known = match children.state(&key) {
            Some(ChildState::Credentials { digest, .. }) => Some(digest),
            _ => None,
        };
        if known.is_none() || self.connected.relay(&self.database) != known {
            let issued = self.connected.server.ensure_relay(&self.database, known.as_ref()).await?;
            if let Some(access) = issued {
                let digest = access.password.digest();
                self.world.cluster.apply_as(&self.secret(access.password.expose()), self.hash(&digest)).await?;
                self.connected.set_relay(&self.database, digest);
                return Ok(());
            }
        }
        let Some(digest) = known else {
            return Err(Failure::waiting("SecretGone", "the relay's Secret went; it is made anew"));
        };
        self.connected.set_relay(&self.database, digest);
        let hash = self.hash(&digest);
        if matches!(children.observe(&key, hash), Observed::InSync) {
            return Ok(());
        }
        let password = self.password(&key, &digest).await?;
        self.world.cluster.apply_as(&self.secret(password.expose()), hash).await?;
        Ok(())
    }

    /// The password in the Secret: the operator keeps none.
    async fn password(&self, key: &Key, digest: &PasswordDigest) -> Result<Password, Failure> {
        let matching =
            |secret: &Value| credentials(secret).map(|(_, password)| password).filter(|it| it.digest() == *digest);
        if let Some(password) = self.world.cluster.children().whole(key).as_ref().and_then(matching) {
            return Ok(password);
        }
        let live = self.world.cluster.read(key).await?;
        let changing =
            || Failure { class: Class::Waiting, reason: "SecretChanged", message: format!("{key} is being changed") };
        live.as_ref().and_then(matching).ok_or_else(changing)
    }

    fn secret(&self, password: &str) -> Object {
        let address = self.connected.server.address();
        relay_secret(&RelaySecretInput {
            server: self.server,
            host: &address.host,
            port: address.port,
            database: &self.database,
            username: &relay_role(&self.database),
            password,
            sslmode: self.connected.sslmode,
            ca_pem: self.connected.ca_pem.as_deref(),
        })
    }

    /// The hash of the Secret, by which it is known again without its password.
    fn hash(&self, digest: &PasswordDigest) -> u64 {
        desired_hash(&self.secret(&format!("{digest:?}")).body)
    }
}
