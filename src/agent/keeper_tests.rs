use std::fs;

use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::api::{ANNOTATION_HOSTS, LABEL_TENANT};

/// A Secret as the API server returns it; `age` in seconds since some day, less is older.
fn secret(name: &str, tenant: &str, hosts: &str, password: &str, age: i64) -> Secret {
    let mut secret = Secret::default();
    let metadata = &mut secret.metadata;
    metadata.namespace = Some("pool".into());
    metadata.name = Some(name.into());
    metadata.uid = Some(format!("uid-{name}"));
    metadata.creation_timestamp = Some(Time(Timestamp::from_second(1_700_000_000 + age).unwrap()));
    metadata.labels = Some([(LABEL_TENANT.to_owned(), tenant.to_owned())].into());
    metadata.annotations = Some([(ANNOTATION_HOSTS.to_owned(), hosts.to_owned())].into());
    secret.data = Some([("password".to_owned(), ByteString(password.as_bytes().to_vec()))].into());
    secret
}

fn list(keeper: &mut Keeper, secrets: &[Secret]) {
    keeper.list_begins();
    secrets.iter().for_each(|secret| keeper.listed(secret.clone()));
    keeper.list_ends();
}

fn open(dir: &Path) -> Keeper {
    Keeper::open(dir, Duration::ZERO).unwrap()
}

fn password(dir: &Path, host: &str) -> Option<String> {
    fs::read_to_string(dir.join("hosts").join(host).join("password")).ok()
}

#[test]
fn nothing_is_removed_before_a_list_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (secret("a", "a", "a.example.com", "pa", 0), secret("b", "b", "b.example.com", "pb", 0));
    list(&mut open(dir.path()), &[a.clone(), b.clone()]);

    let mut keeper = open(dir.path());
    keeper.list_begins();
    keeper.listed(a.clone());
    // The API server went away and came back: the list begins again.
    keeper.list_begins();
    keeper.sweep(Instant::now() + Duration::from_secs(3600));
    assert_eq!(
        password(dir.path(), "b.example.com").as_deref(),
        Some("pb"),
        "a list that isn't complete removes nothing"
    );
    keeper.listed(a);
    keeper.list_ends();
    keeper.sweep(Instant::now() + Duration::from_secs(3600));
    assert_eq!(password(dir.path(), "b.example.com"), None);
    assert_eq!(password(dir.path(), "a.example.com").as_deref(), Some("pa"));
    let folders = fs::read_dir(dir.path().join(".versions")).unwrap().count();
    assert_eq!(folders, 1, "nothing of b is left");
}

#[test]
fn a_list_that_brings_nothing_new_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let all = [secret("a", "a", "a.example.com", "pa", 0), secret("b", "b", "", "pb", 0)];
    let mut keeper = open(dir.path());
    list(&mut keeper, &all);
    let before = (keeper.status().clone(), fs::metadata(dir.path().join("hosts")).unwrap().modified().unwrap());
    assert_eq!(before.0.written, 2);
    list(&mut keeper, &all);
    let after = (keeper.status().clone(), fs::metadata(dir.path().join("hosts")).unwrap().modified().unwrap());
    assert_eq!(before, after);
}

#[test]
fn the_older_secret_keeps_a_host_and_hands_it_over_when_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = open(dir.path());
    list(&mut keeper, &[secret("young", "b", "shared.example.com", "pb", 9)]);
    keeper.changed(secret("old", "a", "shared.example.com", "pa", 1));
    assert_eq!(password(dir.path(), "shared.example.com").as_deref(), Some("pa"));
    assert_eq!(keeper.status().conflicts, 1);
    keeper.deleted(&SecretKey { namespace: "pool".into(), name: "old".into() });
    assert_eq!(password(dir.path(), "shared.example.com").as_deref(), Some("pb"));
    assert_eq!(keeper.status().conflicts, 0);
}

#[test]
fn a_secret_that_loses_its_good_name_loses_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = open(dir.path());
    list(&mut keeper, &[secret("a", "a", "a.example.com", "pa", 0)]);
    keeper.changed(secret("a", "..", "a.example.com", "pa", 0));
    assert_eq!((keeper.status().tenants, keeper.status().hosts, keeper.status().refused), (0, 0, 1));
    assert_eq!(password(dir.path(), "a.example.com"), None);
}

#[test]
fn a_write_that_fails_is_made_good_and_counts_before_the_list_is_called_complete() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = open(dir.path());
    // Something stands where the set of files belongs, which no rename can replace.
    let (old, new) = (secret("a", "a", "a.example.com", "one", 0), secret("a", "a", "a.example.com", "two", 0));
    let binding = Binding::of(new.clone()).unwrap();
    let obstacle = dir.path().join(".versions").join(Version::of("a", &binding.files).as_str());
    list(&mut keeper, &[old]);
    fs::write(&obstacle, "").unwrap();

    keeper.changed(new.clone());
    assert_eq!(password(dir.path(), "a.example.com").as_deref(), Some("one"), "the old set serves on");
    assert!(keeper.is_behind());
    assert_eq!(keeper.unwritten().len(), 1);
    keeper.retry(vec![new.clone()]);
    assert!(keeper.is_behind(), "nothing has changed");
    fs::remove_file(&obstacle).unwrap();
    keeper.retry(vec![new]);
    assert!(!keeper.is_behind());
    assert_eq!(password(dir.path(), "a.example.com").as_deref(), Some("two"));
}

#[test]
fn the_first_list_is_not_complete_while_a_set_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = open(dir.path());
    let secret = secret("a", "a", "a.example.com", "one", 0);
    let binding = Binding::of(secret.clone()).unwrap();
    let obstacle = dir.path().join(".versions").join(Version::of("a", &binding.files).as_str());
    keeper.list_begins();
    fs::write(&obstacle, "").unwrap();
    keeper.listed(secret.clone());
    keeper.list_ends();
    assert!(!keeper.status().listed);
    fs::remove_file(&obstacle).unwrap();
    keeper.retry(vec![secret]);
    assert!(keeper.status().listed);
}
