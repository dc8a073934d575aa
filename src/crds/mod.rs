//! `tenantry crds`: the CustomResourceDefinitions as YAML, and their reference as Markdown.

mod reference;

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use crate::api::{all_crds, crd_yaml};

pub use reference::reference;

/// What `tenantry crds` prints or writes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Write one file for each definition into this folder instead of printing them.
    #[arg(long, env = "TENANTRY_CRDS_DIR", value_name = "DIR", conflicts_with = "reference")]
    dir: Option<PathBuf>,
    /// Print the API reference as Markdown instead: every field, its bounds and rules.
    #[arg(long, env = "TENANTRY_CRDS_REFERENCE")]
    reference: bool,
}

/// Why the definitions could not be printed or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A definition could not be written as YAML.
    #[error("can't write {name} as YAML")]
    Yaml {
        /// The definition's name.
        name: String,
        /// What the serializer said.
        source: serde_saphyr::ser::Error,
    },
    /// A file or folder could not be written.
    #[error("can't write {}: choose a folder that exists and is writable with --dir", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Standard output could not be written.
    #[error("can't write to standard output")]
    Print(#[source] io::Error),
}

/// Runs the subcommand.
///
/// # Errors
/// When the output can't be written.
pub fn run(args: &Args) -> Result<(), Error> {
    if let Some(dir) = &args.dir {
        return write_files(dir);
    }
    let text = if args.reference { reference(&all_crds()) } else { documents()? };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // `tenantry crds | head` is no fault.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(Error::Print),
    }
}

/// Every definition in one YAML stream, in the order in which they are applied.
fn documents() -> Result<String, Error> {
    let documents = all_crds().iter().map(yaml).collect::<Result<Vec<_>, _>>()?;
    Ok(documents.join("---\n"))
}

/// Writes one file for each definition, named after it.
fn write_files(dir: &Path) -> Result<(), Error> {
    let write =
        |path: &Path, result: io::Result<()>| result.map_err(|source| Error::Write { path: path.to_owned(), source });
    write(dir, fs::create_dir_all(dir))?;
    for crd in all_crds() {
        let path = dir.join(file_name(&crd));
        write(&path, fs::write(&path, yaml(&crd)?))?;
    }
    Ok(())
}

/// The name of a definition's file, such as `plans.tenantry.io.yaml`.
pub fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}.{}.yaml", crd.spec.names.plural, crd.spec.group)
}

fn yaml(crd: &CustomResourceDefinition) -> Result<String, Error> {
    crd_yaml(crd).map_err(|source| Error::Yaml { name: file_name(crd), source })
}
