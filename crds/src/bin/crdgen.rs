//! Writes the CRD manifests, or with `--check` says which of them is out of date.
//!
//! The chart gets byte-for-byte copies, since Helm reads no file outside the chart's folder.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Folders that hold the manifests, relative to this crate.
const FOLDERS: [&str; 2] = ["manifests", "../helm/atlas-operator/files/crds"];

fn main() -> ExitCode {
    let check = env::args().nth(1).as_deref() == Some("--check");
    let folders = FOLDERS.map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
    match run(&folders, check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("crdgen: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(folders: &[PathBuf], check: bool) -> Result<(), String> {
    let files = atlas_crds::manifests::render().map_err(|e| e.to_string())?;
    for folder in folders {
        for (name, content) in &files {
            let path = folder.join(name);
            if check {
                let current = fs::read_to_string(&path).unwrap_or_default();
                if current != *content {
                    return Err(format!("{} is out of date: run `make generate`", path.display()));
                }
            } else {
                fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
                fs::write(&path, content).map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
    }
    Ok(())
}
