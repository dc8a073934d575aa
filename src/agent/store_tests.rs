use super::*;
use crate::agent::{CheckError, Status, check};

fn files(password: &str) -> BTreeMap<String, Vec<u8>> {
    [("uri", format!("postgresql://u:{password}@db/")), ("password", password.to_owned())]
        .map(|(key, value)| (key.to_owned(), value.into_bytes()))
        .into()
}

fn publish(store: &mut Store, tenant: &str, password: &str) -> Version {
    let files = files(password);
    let version = Version::of(tenant, &files);
    store.put(&version, &files).unwrap();
    let link = Operation::LinkTenant { tenant: tenant.to_owned(), version: version.clone() };
    store.apply(&link, Instant::now()).unwrap();
    version
}

fn open(dir: &Path) -> Store {
    Store::open(dir, Duration::from_secs(60)).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_are_where_applications_look_and_group_readable() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o2777)).unwrap();
    let mut store = open(dir.path());
    publish(&mut store, "acme", "one");
    let link = Operation::LinkHost { host: "a.example.com".into(), tenant: "acme".into() };
    store.apply(&link, Instant::now()).unwrap();

    let host = dir.path().join("hosts/a.example.com");
    assert_eq!(fs::read_link(&host).unwrap(), Path::new("../tenants/acme"));
    assert_eq!(fs::read(host.join("password")).unwrap(), b"one");
    assert_eq!(mode(&host.join("uri")), 0o440);
    assert_eq!(mode(&host), 0o2750, "the volume's group reaches new folders");
    assert_eq!(mode(&dir.path().join("tenants")), 0o2750);
}

#[test]
fn the_same_content_is_written_once_also_by_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let version = publish(&mut store, "acme", "one");
    assert!(!store.put(&version, &files("one")).unwrap());
    drop(store);
    let mut store = open(dir.path());
    assert!(!store.put(&version, &files("one")).unwrap());
}

#[test]
fn a_damaged_version_of_an_earlier_run_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let version = publish(&mut open(dir.path()), "acme", "one");
    let path = dir.path().join("tenants/acme/uri");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    let mut store = open(dir.path());
    assert!(store.put(&version, &files("one")).unwrap());
    assert_eq!(fs::read(&path).unwrap(), files("one")["uri"]);
}

#[test]
fn a_version_removed_by_somebody_is_seen_by_a_scan() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let version = publish(&mut store, "acme", "one");
    fs::remove_dir_all(dir.path().join(VERSIONS).join(version.as_str())).unwrap();
    store.rescan().unwrap();
    assert!(store.put(&version, &files("one")).unwrap());
}

#[test]
fn a_retired_version_lingers_unless_it_is_wanted_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let (old, new) = (publish(&mut store, "acme", "one"), publish(&mut store, "acme", "two"));
    let (start, path) = (Instant::now(), dir.path().join(VERSIONS).join(old.as_str()));
    let retire = |store: &mut Store| store.apply(&Operation::Retire { version: old.clone() }, start).unwrap();

    retire(&mut store);
    assert!(store.sweep(start + Duration::from_secs(59)).unwrap().is_some());
    assert!(path.is_dir());
    store.put(&old, &files("one")).unwrap();
    assert_eq!(store.sweep(start + Duration::from_secs(61)).unwrap(), None);
    assert!(path.is_dir(), "it came back before it was due");

    retire(&mut store);
    assert_eq!(store.sweep(start + Duration::from_secs(61)).unwrap(), None);
    assert!(!path.exists());
    assert_eq!(store.disk().versions, [new].into());
}

#[test]
fn a_second_agent_on_the_same_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    assert!(matches!(Store::open(dir.path(), Duration::ZERO), Err(StoreError::Taken(_))));
}

#[test]
fn a_folder_with_foreign_files_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("hosts/important");
    fs::create_dir(dir.path().join("hosts")).unwrap();
    fs::write(&foreign, "data").unwrap();
    let error = Store::open(dir.path(), Duration::ZERO).err().expect("refused");
    assert!(error.to_string().contains("hosts/important"), "{error}");
    assert_eq!(fs::read(&foreign).unwrap(), b"data");
}

#[test]
fn what_an_earlier_run_left_unfinished_goes_what_it_published_stays() {
    let dir = tempfile::tempdir().unwrap();
    let version = publish(&mut open(dir.path()), "acme", "one");
    fs::create_dir(dir.path().join(VERSIONS).join(".tmp-7")).unwrap();
    fs::write(dir.path().join(VERSIONS).join(".tmp-7/uri"), "half").unwrap();
    fs::write(dir.path().join(STATUS), "{}").unwrap();
    let store = open(dir.path());
    assert_eq!(store.disk().versions, [version].into());
    assert!(!dir.path().join(VERSIONS).join(".tmp-7").exists());
    assert!(!dir.path().join(STATUS).exists());
    assert_eq!(fs::read(dir.path().join("tenants/acme/password")).unwrap(), b"one");
}

#[test]
fn a_probe_takes_no_earlier_runs_word_for_that_of_the_agent_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let listed = serde_json::to_vec(&Status { listed: true, ..Status::default() }).unwrap();
    let mut store = open(dir.path());
    assert!(matches!(check(dir.path()), Err(CheckError::NotListed)));
    // As if it had not got to removing it: the lock is the new run's, the word is not.
    fs::write(dir.path().join(STATUS), &listed).unwrap();
    assert!(matches!(check(dir.path()), Err(CheckError::NotListed)));
    for _ in 0..3 {
        store.publish_status(&listed).unwrap();
        assert!(check(dir.path()).unwrap().listed);
    }
    drop(store);
    assert!(matches!(check(dir.path()), Err(CheckError::NotRunning(_))));
}

#[test]
fn what_tenants_have_in_common_takes_its_room_once() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let with_authority = |password: &str| {
        let mut files = files(password);
        files.insert("ca.crt".into(), b"authority".to_vec());
        files
    };
    let mut versions = Vec::new();
    for tenant in ["a", "b"] {
        let files = with_authority(tenant);
        versions.push(Version::of(tenant, &files));
        store.put(&versions[versions.len() - 1], &files).unwrap();
    }
    let inode = |version: &Version, key: &str| {
        fs::metadata(dir.path().join(VERSIONS).join(version.as_str()).join(key)).unwrap().ino()
    };
    assert_eq!(inode(&versions[0], "ca.crt"), inode(&versions[1], "ca.crt"));
    assert_ne!(inode(&versions[0], "uri"), inode(&versions[1], "uri"));

    // One that goes takes nothing from the other.
    store.apply(&Operation::Retire { version: versions[1].clone() }, Instant::now()).unwrap();
    store.sweep(Instant::now() + Duration::from_secs(61)).unwrap();
    let files = with_authority("c");
    store.put(&Version::of("c", &files), &files).unwrap();
    let left = dir.path().join(VERSIONS).join(versions[0].as_str()).join("ca.crt");
    assert_eq!(fs::read(left).unwrap(), b"authority");
}
