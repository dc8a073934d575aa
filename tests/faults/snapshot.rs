//! All that there is of a tenant, in the cluster and in PostgreSQL, in a form in which two
//! tenants that were made alike are equal: names replaced, times and passwords left out.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::ApiResource,
    discovery::{ApiGroup, Discovery, verbs as can},
};
use serde_json::{Map, Value, json};
use tenantry::{api::Tenant, database::TenantId, desired::rollout::ANNOTATION_ROLLOUT};

use super::{
    ground::Ground,
    verbs::{rows, superuser},
};

/// Kinds that Kubernetes makes and names by itself, or that only tell what happened.
const PASSING: [&str; 10] = [
    "Event",
    "Lease",
    "APIService",
    "Node",
    "PodMetrics",
    "Pod",
    "ReplicaSet",
    "Endpoints",
    "EndpointSlice",
    "CustomResourceDefinition",
];

/// Fields that say when, which time, or at which address.
const INCIDENTAL: [&str; 14] = [
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "observedGeneration",
    "managedFields",
    "lastTransitionTime",
    "lastUpdateTime",
    "lastScaleTime",
    "clusterIP",
    "clusterIPs",
    "resourceVersions",
    "digest",
    "salt",
];

/// By what a tenant is known. (Its name must not look like part of a hash, or of an id.)
#[derive(Clone, Debug)]
pub struct Names {
    pub name: String,
    pub uid: String,
    pub id: String,
}

impl Names {
    pub fn of(tenant: &Tenant) -> Self {
        let uid = tenant.metadata.uid.clone().expect("a UID");
        let id = TenantId::from_uid(&uid).to_string();
        Self { name: tenant.metadata.name.clone().expect("a name"), uid, id }
    }

    /// The names by which a write of this tenant is known. Its own database has its id without
    /// what comes before.
    pub fn marks(&self) -> Vec<String> {
        vec![self.name.clone(), self.uid.clone(), self.core().to_owned()]
    }

    fn core(&self) -> &str {
        self.id.trim_start_matches("t_")
    }

    fn are_in(&self, text: &str) -> bool {
        [self.name.as_str(), &self.uid, self.core()].iter().any(|name| text.contains(name))
    }

    fn replace(&self, text: &str) -> String {
        text.replace(&self.uid, "UID").replace(self.core(), "ID").replace(&self.name, "NAME")
    }
}

/// Everything of every tenant at one moment.
pub struct Snapshot {
    objects: Vec<(String, Value)>,
    rows: Vec<String>,
}

impl Snapshot {
    /// Lists the whole cluster and every database of the operator's.
    pub async fn of(ground: &Ground, client: &Client) -> Self {
        Self { objects: objects(client).await, rows: database_rows(ground).await }
    }

    /// What there is of one tenant, by what it is.
    pub fn tenant(&self, names: &Names) -> BTreeSet<String> {
        let objects = self.objects.iter().filter(|(_, object)| belongs(object, names)).map(|(kind, object)| {
            let mut object = object.clone();
            normalise(&mut object);
            names.replace(&format!("{kind} {object}"))
        });
        let rows = self.rows.iter().filter(|row| names.are_in(row)).map(|row| names.replace(&without_times(row)));
        objects.chain(rows).collect()
    }
}

/// Fails with the differences alone.
pub fn assert_same(found: &BTreeSet<String>, wanted: &BTreeSet<String>, what: &str) {
    let more: Vec<_> = found.difference(wanted).collect();
    let less: Vec<_> = wanted.difference(found).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "{what}\nthere is, and should not be: {more:#?}\nthere should be: {less:#?}"
    );
}

/// Every object in the cluster, with its kind.
async fn objects(client: &Client) -> Vec<(String, Value)> {
    let discovery = Discovery::new(client.clone()).run().await.expect("discovery");
    let mut found = Vec::new();
    for (resource, capabilities) in discovery.groups().flat_map(ApiGroup::recommended_resources) {
        if PASSING.contains(&resource.kind.as_str()) || !capabilities.supports_operation(can::LIST) {
            continue;
        }
        found.extend(list(client, &resource).await.into_iter().map(|object| (resource.kind.clone(), object)));
    }
    found
}

async fn list(client: &Client, resource: &ApiResource) -> Vec<Value> {
    let api = Api::<DynamicObject>::all_with(client.clone(), resource);
    let all = api.list(&ListParams::default()).await.expect("a list").items;
    all.into_iter().map(|object| serde_json::to_value(object).expect("JSON")).collect()
}

/// Whether an object is a tenant's: its own name or its namespace's says so.
fn belongs(object: &Value, names: &Names) -> bool {
    let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    let label = object["metadata"]["labels"]["tenantry.io/tenant"].as_str();
    label == Some(&names.name) || names.are_in(field("name")) || names.are_in(field("namespace"))
}

/// Takes out what differs between two objects that are alike.
fn normalise(object: &mut Value) {
    if object["type"] == "servicebinding.io/postgresql"
        && let Some(data) = object.get_mut("data").and_then(Value::as_object_mut)
    {
        read_secret(data);
    }
    // What Kubernetes tells of our objects names its own.
    let ours = object["apiVersion"].as_str().is_some_and(|version| version.starts_with("tenantry.io/"));
    if !ours && let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    take_out(object);
}

/// A Secret's entries as text; of what holds the password, that it is there.
fn read_secret(data: &mut Map<String, Value>) {
    for (key, value) in data {
        let bytes = BASE64.decode(value.as_str().expect("text").as_bytes()).expect("Base64");
        let text = String::from_utf8(bytes).expect("text");
        *value = if ["password", "uri"].contains(&key.as_str()) { json!(!text.is_empty()) } else { json!(text) };
    }
}

fn take_out(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !INCIDENTAL.contains(&key.as_str()));
            if let Some(Value::String(record)) = map.get_mut(ANNOTATION_ROLLOUT) {
                *record = without_hashes(record);
            }
            map.values_mut().for_each(take_out);
        }
        Value::Array(items) => items.iter_mut().for_each(take_out),
        Value::String(text) if is_time(text) => *text = "TIME".into(),
        _ => {}
    }
}

/// What a Deployment keeps of its rollout, without the hashes of templates, which have a
/// tenant's names in them.
fn without_hashes(record: &str) -> String {
    let mut record: Value = serde_json::from_str(record).expect("JSON");
    if let Some(source) = record["source"].as_object_mut() {
        source.retain(|key, _| !["application", "planned"].contains(&key.as_str()));
    }
    record.to_string()
}

fn is_time(text: &str) -> bool {
    text.parse::<jiff::Timestamp>().is_ok()
}

/// A row of JSON without times, and without what is random.
fn without_times(row: &str) -> String {
    let Some(start) = row.find('{') else { return row.to_owned() };
    let Ok(mut value) = serde_json::from_str::<Value>(&row[start..]) else { return row.to_owned() };
    take_out(&mut value);
    if let Some(map) = value.as_object_mut() {
        for key in ["event_id", "place"] {
            map.remove(key);
        }
    }
    format!("{}{value}", &row[..start])
}

/// What the server knows of roles and databases.
const SERVER: &str = "
    SELECT 'role ' || jsonb_build_object('name', rolname, 'superuser', rolsuper, 'inherit', rolinherit,
               'createrole', rolcreaterole, 'createdb', rolcreatedb, 'login', rolcanlogin, 'limit', rolconnlimit,
               'until', rolvaliduntil, 'password', rolpassword IS NOT NULL, 'comment',
               shobj_description(oid, 'pg_authid'))::text
      FROM pg_authid
    UNION ALL SELECT 'member ' || jsonb_build_object('role', roleid::regrole::text, 'member', member::regrole::text,
               'admin', admin_option)::text
      FROM pg_auth_members
    UNION ALL SELECT 'setting ' || jsonb_build_object('database', d.datname, 'role', nullif(setrole, 0)::regrole::text,
               'settings', setconfig)::text
      FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase
    UNION ALL SELECT 'database ' || jsonb_build_object('name', datname, 'owner', datdba::regrole::text,
               'privileges', (SELECT jsonb_agg(p::text ORDER BY p::text) FROM unnest(datacl) p), 'limit', datconnlimit,
               'comment', shobj_description(oid, 'pg_database'))::text
      FROM pg_database";

/// What one database knows of schemas, what is in them, and privileges on it.
const DATABASE: &str = "
    SELECT 'schema ' || jsonb_build_object('name', nspname, 'owner', nspowner::regrole::text,
               'privileges', (SELECT jsonb_agg(p::text ORDER BY p::text) FROM unnest(nspacl) p))::text
      FROM pg_namespace
    UNION ALL SELECT 'relation ' || jsonb_build_object('name', c.oid::regclass::text, 'kind', relkind,
               'owner', relowner::regrole::text,
               'privileges', (SELECT jsonb_agg(p::text ORDER BY p::text) FROM unnest(relacl) p))::text
      FROM pg_class c
     WHERE relkind <> 't' AND relnamespace::regnamespace::text NOT IN ('pg_toast', 'pg_catalog', 'information_schema')
    UNION ALL SELECT 'function ' || jsonb_build_object('name', p.oid::regprocedure::text,
               'privileges', (SELECT jsonb_agg(a::text ORDER BY a::text) FROM unnest(proacl) a))::text
      FROM pg_proc p WHERE pronamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
    UNION ALL SELECT 'default ' || jsonb_build_object('role', defaclrole::regrole::text,
               'schema', defaclnamespace::regnamespace::text, 'kind', defaclobjtype,
               'privileges', (SELECT jsonb_agg(p::text ORDER BY p::text) FROM unnest(defaclacl) p))::text
      FROM pg_default_acl";

/// The operator's tables, row by row.
const TABLES: [&str; 6] = ["tenant", "login", "meter", "meter_limit", "outbox", "migration"];

async fn database_rows(ground: &Ground) -> Vec<String> {
    let admin = superuser(ground, "postgres").await;
    let mut found = rows(&admin, SERVER).await;
    let ours = "SELECT datname::text FROM pg_database WHERE datdba = to_regrole('tenantry_owner')";
    for database in rows(&admin, ours).await {
        let session = superuser(ground, &database).await;
        let mut here = rows(&session, DATABASE).await;
        for table in TABLES {
            here.extend(
                rows(&session, &format!("SELECT '{table} ' || to_jsonb(t)::text FROM tenantry.{table} t")).await,
            );
        }
        found.extend(here.into_iter().map(|row| format!("{database} {row}")));
    }
    found
}

/// How many logins of each state a tenant has, by its records.
pub fn logins(state: &BTreeSet<String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for row in state.iter().filter(|row| row.contains(" login {")) {
        let start = row.find('{').expect("it is there");
        let row: Value = serde_json::from_str(&row[start..]).expect("JSON");
        *counts.entry(row["state"].as_str().expect("a state").to_owned()).or_default() += 1;
    }
    counts
}
