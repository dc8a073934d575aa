//! Calls of the Go toolchain.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::progress::Progress;
use crate::{Error, process};

/// What go.mod asks for.
const NEEDED: (u32, u32) = (1, 26);
/// Where Go's own archive puts it; not always on the PATH of a make or an editor.
const USUAL: &str = "/usr/local/go/bin/go";

/// A toolchain that is new enough.
pub(super) struct Go {
    program: PathBuf,
}

impl Go {
    pub(super) fn find() -> Result<Go, Error> {
        Go::find_among(&["go", USUAL])
    }

    fn find_among(programs: &[&str]) -> Result<Go, Error> {
        let hint = format!(
            "install Go {}.{} or newer (https://go.dev/dl), or set DEVCLUSTER_BIN to a folder with etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, helm and kwok",
            NEEDED.0, NEEDED.1
        );
        let mut old = None;
        for program in programs {
            let go = Go { program: program.into() };
            // `go version` of a newer toolchain that go.mod asks for would download it.
            let Ok(version) = go.output(&["env", "GOVERSION"], None) else {
                continue;
            };
            let version = version.trim().to_owned();
            if number(&version).is_some_and(|found| found >= NEEDED) {
                return Ok(go);
            }
            old = Some(version);
        }
        Err(Error::Missing {
            what: match old {
                Some(version) => {
                    format!("the Kubernetes programs can't be built: Go is too old ({version})")
                }
                None => "the Kubernetes programs can't be built: Go was not found".into(),
            },
            hint,
        })
    }

    /// The build cache's folder.
    pub(super) fn cache(&self) -> Result<PathBuf, Error> {
        Ok(self.output(&["env", "GOCACHE"], None)?.trim().into())
    }

    /// The folders of these modules' files, downloaded if need be.
    pub(super) fn module_folders<const N: usize>(
        &self,
        module: &Path,
        names: [&str; N],
    ) -> Result<[PathBuf; N], Error> {
        let mut args = vec!["mod", "download"];
        args.extend(names);
        self.output(&args, Some(module))?;
        let mut folders = Vec::new();
        for name in names {
            let folder = self.output(&["list", "-m", "-f", "{{.Dir}}", name], Some(module))?;
            folders.push(PathBuf::from(folder.trim()));
        }
        Ok(folders.try_into().expect("one folder per name"))
    }

    /// Builds the module's program and its tools into `bin`.
    pub(super) fn build(&self, module: &Path, bin: &Path, linker_flags: &str, progress: Progress) -> Result<(), Error> {
        let fetching = progress.phase("fetching the sources of the Kubernetes programs");
        let mut command = self.command(&["list", "-deps", ".", "tool"], Some(module));
        let packages = followed(&mut command, "go list", |line| {
            if let Some(name) = line.strip_prefix("go: downloading ") {
                fetching.update(name);
            }
        })?
        .lines()
        .count();
        drop(fetching);

        let compiling =
            progress.phase("building the Kubernetes programs, the first time only (5 to 10 minutes on two cores)");
        let mut command =
            self.command(&["build", "-v", "-trimpath", "-mod=readonly", "-ldflags", linker_flags, "-o"], Some(module));
        command.arg(bin).args([".", "tool"]);
        let mut compiled = 0;
        followed(&mut command, "go build", |line| {
            compiled += 1;
            compiling.update(&format!("{compiled} of {packages} packages, {line}"));
        })?;
        Ok(())
    }

    fn output(&self, args: &[&str], folder: Option<&Path>) -> Result<String, Error> {
        let mut command = self.command(args, folder);
        followed(&mut command, &format!("go {}", args.join(" ")), |_| {})
    }

    fn command(&self, args: &[&str], folder: Option<&Path>) -> Command {
        let mut command = process::guarded(&self.program, None);
        command
            .args(args)
            // The module says which toolchain it wants; it is never downloaded.
            .env("GOTOOLCHAIN", "local")
            .env("GOWORK", "off")
            .env("CGO_ENABLED", "0")
            .current_dir(folder.unwrap_or(Path::new("/")));
        command
    }
}

/// Runs a command to its end, shows each line of its standard error to `each`, and
/// gives its standard output.
fn followed(command: &mut Command, name: &str, mut each: impl FnMut(&str)) -> Result<String, Error> {
    const KEPT: usize = 30;
    let failed = |source| Error::File { action: "run", path: name.into(), source };
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let output = child.stdout.take().expect("its standard output is a pipe");
    let errors = child.stderr.take().expect("its standard error is a pipe");
    // Both pipes are read at once: neither may fill and block the command.
    let reader = std::thread::spawn(move || std::io::read_to_string(output));
    let mut last = VecDeque::with_capacity(KEPT);
    for line in BufReader::new(errors).lines().map_while(Result::ok) {
        each(&line);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(line);
    }
    let status = child.wait().map_err(failed)?;
    let text = reader.join().expect("reading a pipe doesn't panic").map_err(failed)?;
    if status.success() {
        return Ok(text);
    }
    // What compiled well is no news.
    let news: Vec<String> = last.into_iter().filter(|line| line.contains([' ', '\t'])).collect();
    Err(Error::Command { command: name.to_owned(), status: process::describe(status), output: news.join("\n") })
}

/// Major and minor of `go1.26.8`.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix("go")?.split(['.', 'r', '-', ' ']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_go_or_an_old_one_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let old = folder.path().join("go");
        std::fs::write(&old, "#!/bin/sh\necho go1.19.8\n").expect("written");
        let mut mode = std::fs::metadata(&old).expect("there").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        std::fs::set_permissions(&old, mode).expect("executable");
        let told = |programs: &[&str]| match Go::find_among(programs) {
            Ok(_) => panic!("found"),
            Err(error) => error.to_string(),
        };
        let absent = told(&["/nowhere/go"]);
        assert!(absent.contains("Go was not found"), "{absent}");
        assert!(absent.contains("Go 1.26") && absent.contains("DEVCLUSTER_BIN"), "{absent}");
        let old = told(&["/nowhere/go", &old.to_string_lossy()]);
        assert!(old.contains("too old (go1.19.8)"), "{old}");
    }

    #[test]
    fn versions_of_go_compare_as_numbers() {
        assert_eq!(number("go1.26.8"), Some((1, 26)));
        assert_eq!(number("go1.30rc1"), Some((1, 30)));
        assert!(number("go1.9.4") < Some(NEEDED));
        assert_eq!(number("devel"), None);
    }
}
