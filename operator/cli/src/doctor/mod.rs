//! `doctor`: checks of a card node as the hardware guide's troubleshooting asks for them, or of a slow model.
//!
//! It reads files and logs, and changes nothing. Run it on the node itself, or in a pod that sees the node's `/dev`,
//! `/sys` and `/etc`.

mod checks;
mod live;
mod log;
mod model;
mod node;

use serde::Serialize;

pub use checks::{Finding, Severity};

use crate::{
    Outcome,
    args::{DoctorArgs, Output, Target},
    cluster::Cluster,
    error::{CliError, tell},
    render::render_findings,
    terminal::{Terminal, print_value, put},
};

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was looked at.
    pub about: String,
    /// In the order of the checks.
    pub findings: Vec<Finding>,
}

/// What could not be looked at.
fn unseen(check: &'static str, error: &CliError) -> Finding {
    Finding { check, severity: Severity::Unknown, found: tell(error), remedy: None }
}

/// Prints; what is broken is a problem.
pub async fn run(args: &DoctorArgs, target: &Target, terminal: &Terminal) -> Result<Outcome, CliError> {
    let report = match &args.model {
        Some(name) => {
            let cluster = Cluster::connect(target).await?;
            let model = cluster.model(name).await?;
            let mut findings = model::check(&model);
            // Whoever may see less is told the rest.
            let profiles = cluster.profiles().await.unwrap_or_else(|error| {
                findings.push(unseen("cards", &error));
                Vec::new()
            });
            match live::watch(&cluster.client, &model, &profiles).await {
                Ok(more) => findings.extend(more),
                Err(error) => findings.push(unseen("engines", &error)),
            }
            Report { about: format!("AtlasModel {name}"), findings }
        }
        None => {
            let kernel_log = match &args.kernel_log {
                Some(path) => Some(
                    std::fs::read_to_string(path)
                        .map_err(|source| CliError::File { path: path.clone(), source })?,
                ),
                None => node::read_kernel_log(),
            };
            let facts = node::gather(&args.root, kernel_log);
            Report { about: "this node".to_owned(), findings: checks::check_node(&facts) }
        }
    };
    match args.output {
        Output::Table => put(&render_findings(&report, terminal)),
        output => print_value(&report, output)?,
    }
    let broken = report.findings.iter().any(|finding| finding.severity == Severity::Broken);
    Ok(if broken { Outcome::Problem } else { Outcome::Well })
}
