//! The programs of the ground: built once from the pinned Go module, kept in a cache
//! outside the tree that is keyed by the module's content.

mod go;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use self::go::Go;
use crate::progress::Progress;
use crate::{Error, disk, text};

/// The module, as it was when this crate was compiled: name and content of each file.
const MODULE: [(&str, &str); 4] = [
    ("go.mod", include_str!("../go.mod")),
    ("go.sum", include_str!("../go.sum")),
    ("main.go", include_str!("../main.go")),
    ("crds.go", include_str!("../crds.go")),
];
/// What the combined program of `main.go` is called as.
const COMBINED: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// Programs of their own.
const SINGLE: [&str; 3] = ["kubectl", "helm", "kwok"];
/// How pods and nodes live under kwok: files of its module, joined to one.
const STAGES: [&str; 5] = [
    "kustomize/stage/node/fast/node-initialize.yaml",
    "kustomize/stage/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "kustomize/stage/pod/fast/pod-ready.yaml",
    "kustomize/stage/pod/fast/pod-complete.yaml",
    "kustomize/stage/pod/fast/pod-delete.yaml",
];
const MIB: u64 = 1024 * 1024;
/// A build with empty caches: module and build cache, links, programs (measured: 5 GiB).
const COLD_BUILD: u64 = 6 * 1024 * MIB;
/// A build from a full Go cache, or the copy of the programs.
const WARM_BUILD: u64 = 1024 * MIB;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    bin: PathBuf,
    files: PathBuf,
}

impl Programs {
    /// The path of a program: `etcd`, `kube-apiserver`, `kube-controller-manager`,
    /// `kube-scheduler`, `kubectl`, `helm` or `kwok`.
    pub fn path(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }

    /// The folder that holds them.
    pub fn folder(&self) -> &Path {
        &self.bin
    }

    /// kwok's configuration.
    pub(crate) fn stages(&self) -> PathBuf {
        self.files.join("kwok/stages.yaml")
    }

    /// The folder of the Gateway API's custom resource definitions.
    pub(crate) fn gateway_api(&self) -> PathBuf {
        self.files.join("gateway-api")
    }

    /// `kubectl` and `helm` for a cluster that exists: those of the machine, else ours.
    pub(crate) fn for_existing_cluster(progress: Progress) -> Result<Programs, Error> {
        let on_path = std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path)
                .find(|folder| ["kubectl", "helm"].iter().all(|name| folder.join(name).is_file()))
        });
        match (text::path_variable("DEVCLUSTER_BIN"), on_path) {
            (None, Some(bin)) => Ok(Programs { bin, files: fetched_files(progress)? }),
            _ => install(progress),
        }
    }
}

/// The programs: those of `DEVCLUSTER_BIN`, or the cache's, built first if need be
/// (about five minutes on two cores; concurrent callers wait for one build).
pub fn install(progress: Progress) -> Result<Programs, Error> {
    if let Some(bin) = text::path_variable("DEVCLUSTER_BIN") {
        return given(bin, progress);
    }
    let cache = cache()?;
    let bin = cache.join("bin");
    if bin.is_dir() {
        let files = fetched_files(progress)?;
        return Ok(Programs { bin, files });
    }
    let base = parent(&cache);
    let _lock = exclusive(base, progress)?;
    if !bin.is_dir() {
        build(&cache, &bin)?;
    }
    let files = files_in(&cache)?;
    Ok(Programs { bin, files })
}

/// The programs that the user brought.
fn given(bin: PathBuf, progress: Progress) -> Result<Programs, Error> {
    let missing: Vec<&str> =
        COMBINED.into_iter().chain(SINGLE).filter(|program| !bin.join(program).is_file()).collect();
    if !missing.is_empty() {
        return Err(Error::Missing {
            what: format!("DEVCLUSTER_BIN is {}, which lacks {}", bin.display(), missing.join(", ")),
            hint: "add these programs there, or unset DEVCLUSTER_BIN to have all of them built (needs Go)".into(),
        });
    }
    // A folder that was copied from a cache has the files beside it.
    let beside = parent(&bin);
    let files = if beside.join("gateway-api").is_dir() && beside.join("kwok").is_dir() {
        beside.to_owned()
    } else {
        fetched_files(progress)?
    };
    Ok(Programs { bin, files })
}

/// The modules' files in the cache, fetched if need be (seconds).
fn fetched_files(progress: Progress) -> Result<PathBuf, Error> {
    let cache = cache()?;
    if cache.join("gateway-api").is_dir() && cache.join("kwok").is_dir() {
        return Ok(cache);
    }
    let _lock = exclusive(parent(&cache), progress)?;
    files_in(&cache)
}

/// `${XDG_CACHE_HOME:-~/.cache}/tenantry/devcluster/KEY`.
fn cache() -> Result<PathBuf, Error> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache"))).ok_or_else(|| {
            Error::Missing {
                what: "no folder for the cache: neither XDG_CACHE_HOME nor HOME is set".into(),
                hint: "set one of them".into(),
            }
        })?;
    let mut hash = Sha256::new();
    for (name, content) in MODULE {
        hash.update(format!("{name} {}\n{content}", content.len()));
    }
    // The programs run on the architecture that they were built for.
    hash.update(std::env::consts::ARCH);
    let key = data_encoding::HEXLOWER.encode(&hash.finalize()[..8]);
    Ok(base.join("tenantry/devcluster").join(key))
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// One builder at a time, in all processes.
fn exclusive(base: &Path, progress: Progress) -> Result<File, Error> {
    fs::create_dir_all(base).map_err(Error::file("make", base))?;
    let path = base.join("building.lock");
    let lock = File::create(&path).map_err(Error::file("write", &path))?;
    if lock.try_lock().is_err() {
        let _phase = progress.phase("waiting for another process that builds the programs");
        lock.lock().map_err(Error::file("lock", &path))?;
    }
    // What an interrupted builder left; none runs now.
    for entry in fs::read_dir(base).map_err(Error::file("read", base))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path()).map_err(Error::file("remove", &entry.path()))?;
        }
    }
    Ok(lock)
}

const UNFINISHED: &str = ".unfinished-";

/// A folder in the cache that gets its name when it is complete.
struct Unfinished {
    folder: tempfile::TempDir,
}

impl Unfinished {
    fn new(cache: &Path) -> Result<Unfinished, Error> {
        let base = parent(cache);
        fs::create_dir_all(cache).map_err(Error::file("make", cache))?;
        let folder = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(base)
            .map_err(Error::file("make a folder in", base))?;
        Ok(Unfinished { folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A fresh folder within.
    fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path().join(name);
        fs::create_dir_all(&path).map_err(Error::file("make", &path))?;
        Ok(path)
    }

    /// The module's files, in a folder of their own.
    fn module(&self) -> Result<PathBuf, Error> {
        let folder = self.folder("module")?;
        for (name, content) in MODULE {
            let path = folder.join(name);
            fs::write(&path, content).map_err(Error::file("write", &path))?;
        }
        Ok(folder)
    }
}

fn finish(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::file("make", to))
}

/// A build shows its progress always: nobody should wait minutes for a silent test.
fn build(cache: &Path, bin: &Path) -> Result<(), Error> {
    let go = Go::find()?;
    let go_cache = go.cache()?;
    let cold = !go_cache.join("trim.txt").exists();
    disk::require(&go_cache, if cold { COLD_BUILD } else { WARM_BUILD }, "build the Kubernetes programs")?;
    disk::require(parent(cache), WARM_BUILD, "keep the Kubernetes programs")?;
    let unfinished = Unfinished::new(cache)?;
    let module = unfinished.module()?;
    let built = unfinished.folder("bin")?;
    go.build(&module, &built, &version_stamp(MODULE[0].1), Progress::Shown)?;
    // `go build` names the combined program after its module.
    let combined = built.join("kubeall");
    fs::rename(built.join("devcluster"), &combined).map_err(Error::file("rename", &combined))?;
    for name in COMBINED {
        let link = built.join(name);
        symlink("kubeall", &link).map_err(Error::file("make", &link))?;
    }
    finish(&built, bin)
}

/// Copies what is needed of the modules' files. The caller holds the lock.
fn files_in(cache: &Path) -> Result<PathBuf, Error> {
    let gateway_api = cache.join("gateway-api");
    let kwok = cache.join("kwok");
    if gateway_api.is_dir() && kwok.is_dir() {
        return Ok(cache.to_owned());
    }
    let go = Go::find()?;
    let unfinished = Unfinished::new(cache)?;
    let module = unfinished.module()?;
    let [gateway_module, kwok_module] = go.module_folders(&module, ["sigs.k8s.io/gateway-api", "sigs.k8s.io/kwok"])?;

    if !gateway_api.is_dir() {
        let copies = unfinished.folder("gateway-api")?;
        let source = gateway_module.join("config/crd/standard");
        for entry in fs::read_dir(&source).map_err(Error::file("read", &source))? {
            let entry = entry.map_err(Error::file("read", &source))?;
            let copy = copies.join(entry.file_name());
            let content = fs::read(entry.path()).map_err(Error::file("read", &entry.path()))?;
            fs::write(&copy, content).map_err(Error::file("write", &copy))?;
        }
        finish(&copies, &gateway_api)?;
    }
    if !kwok.is_dir() {
        let folder = unfinished.folder("kwok")?;
        let mut stages = Vec::new();
        for name in STAGES {
            let path = kwok_module.join(name);
            stages.push(fs::read_to_string(&path).map_err(Error::file("read", &path))?);
        }
        let path = folder.join("stages.yaml");
        fs::write(&path, stages.join("\n---\n")).map_err(Error::file("write", &path))?;
        finish(&folder, &kwok)?;
    }
    Ok(cache.to_owned())
}

/// The linker's flags that give the programs the version of `k8s.io/kubernetes` in
/// go.mod; without them `/version` says v0.0.0, and Helm's version checks misfire.
fn version_stamp(go_mod: &str) -> String {
    let version = go_mod
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .expect("go.mod names k8s.io/kubernetes")
        .trim();
    let mut numbers = version.trim_start_matches('v').split('.');
    let major = numbers.next().unwrap_or_default();
    let minor = numbers.next().unwrap_or_default();
    let stamps = [
        ("gitVersion", version),
        ("gitMajor", major),
        ("gitMinor", minor),
        ("gitTreeState", "clean"),
        ("gitCommit", "go-module"),
        ("buildDate", "1970-01-01T00:00:00Z"),
    ]
    .map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}"));
    format!("-s -w {}", stamps.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_follows_go_mod() {
        let stamp = version_stamp(MODULE[0].1);
        assert!(stamp.contains("version.gitVersion=v1."), "{stamp}");
        assert!(stamp.contains("version.gitMajor=1 "), "{stamp}");
        let other = version_stamp("require (\n\tk8s.io/kubernetes v1.41.7\n)\n");
        assert!(other.contains("version.gitVersion=v1.41.7 "), "{other}");
        assert!(other.contains("version.gitMinor=41 "), "{other}");
    }
}
