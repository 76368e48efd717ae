//! `status`: how models stand, once or again every second.

use std::time::Duration;

use atlas_crds::AtlasModel;
use kube::Api;

use crate::{
    Outcome,
    args::{Output, StatusArgs, Target},
    cluster::{Cluster, list},
    engines::{self, Engine, EngineStatus},
    error::{CliError, tell},
    render::{render_cards, render_status},
    terminal::{Terminal, print_value, put},
};

const PERIOD: Duration = Duration::from_secs(1);
/// Moves to the top left and clears what is below, so that nothing flickers.
const HOME: &str = "\x1b[H\x1b[J";

/// Prints; a model that is not Ready is a problem.
pub async fn run(args: &StatusArgs, target: &Target, terminal: &Terminal) -> Result<Outcome, CliError> {
    let cluster = Cluster::connect(target).await?;
    let mut seen = false;
    loop {
        let models = match fetch(args, &cluster).await {
            // Who watches wants to see the end of it.
            Err(error) if args.watch && seen => {
                eprintln!("{}", terminal.warn(&tell(&error)));
                tokio::time::sleep(PERIOD).await;
                continue;
            }
            fetched => fetched?,
        };
        seen = true;
        let live = args.watch && args.output == Output::Table;
        let engines = if live { ask_engines(&cluster, &models).await } else { Vec::new() };
        match (args.output, models.as_slice()) {
            (Output::Table, models) => {
                let before = match (live, terminal.live) {
                    (true, true) => HOME,
                    // In a file or a pipe one picture follows the other.
                    (true, false) => "\n",
                    (false, _) => "",
                };
                let namespace = (!args.all_namespaces).then_some(cluster.namespace.as_str());
                let status = render_status(models, namespace, terminal);
                let cards = render_cards(&engines, terminal);
                put(&format!("{before}{status}{cards}"));
            }
            (output, [one]) if args.name.is_some() => print_value(one, output)?,
            (output, all) => print_value(&all, output)?,
        }
        if !args.watch {
            let well = models.iter().all(is_ready);
            return Ok(if well { Outcome::Well } else { Outcome::Problem });
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Asks every engine how it and its card are; a model whose pods cannot be listed shows none.
async fn ask_engines(
    cluster: &Cluster,
    models: &[AtlasModel],
) -> Vec<(Engine, Result<EngineStatus, String>)> {
    let lists = models.iter().map(|model| engines::list(&cluster.client, model));
    let all = futures::future::join_all(lists).await.into_iter().filter_map(Result::ok).flatten();
    let asked = all.map(|engine| async move {
        let answer = engines::ask_status(&cluster.client, &engine).await;
        (engine, answer)
    });
    futures::future::join_all(asked).await
}

async fn fetch(args: &StatusArgs, cluster: &Cluster) -> Result<Vec<AtlasModel>, CliError> {
    match &args.name {
        Some(name) => Ok(vec![cluster.model(name).await?]),
        None if args.all_namespaces => list(&Api::all(cluster.client.clone()), "AtlasModels").await,
        None => list(&cluster.api(), "AtlasModels").await,
    }
}

/// Whether a model serves.
pub fn is_ready(model: &AtlasModel) -> bool {
    let conditions = model.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
