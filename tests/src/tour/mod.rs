//! The main job, live: apply a model, get an answer, lose the card, still get an answer, get the card back.
//!
//! The same script runs on the local cluster and on the cluster of a kubeconfig; what differs (how a card is lost,
//! how the Service URL is reached) lies behind [`stage::Stage`]. `make run` and the end-to-end suite both call
//! [`run`], so what a newcomer sees is what CI asserts.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

pub mod client;
pub mod report;
pub mod stage;

use client::{Answer, Client, Load};
use report::{Report, Screen, TourAnswer, step};
use stage::Stage;

use crate::support::wait_until;

/// Name of the sample AtlasModel.
pub const MODEL: &str = "code";
/// Namespace of the sample AtlasModel.
pub const NAMESPACE: &str = "atlas";

const PROMPT: &str = "Write a Python function that adds two numbers.";
/// Clients of the steady load during the fault.
const LOAD_CLIENTS: usize = 2;

/// Applies the samples and waits until every tier is ready; returns a client of the Service URL.
///
/// # Errors
///
/// The first step that did not hold, with what was seen instead.
pub async fn deploy(stage: &mut Stage, screen: &Screen, report: &mut Report) -> anyhow::Result<Client> {
    screen.heading("A model on two cards");
    let profiles = stage.sample("gpuprofiles.yaml")?;
    let model = stage.model_sample()?;
    let applied = step(screen, report, "kubectl apply of the GpuProfiles and the AtlasModel", async {
        let mut out = stage.kubectl(&["apply", "-f", &profiles]).await?;
        out += &stage.kubectl(&["apply", "-f", &model]).await?;
        Ok(out)
    })
    .await?;
    screen.detail(&applied);
    step(screen, report, "pods of both tiers scheduled", pods_scheduled(stage)).await?;
    step(screen, report, "AtlasModel Ready", async {
        stage
            .kubectl(&[
                "wait",
                "-n",
                NAMESPACE,
                "atlasmodel",
                MODEL,
                "--for=condition=Ready",
                "--timeout=300s",
            ])
            .await
    })
    .await?;
    step(screen, report, "every tier ready", tiers_ready(stage)).await?;
    for arguments in [
        &["get", "atlasmodels", "-n", NAMESPACE, "-o", "wide"][..],
        &["get", "pods", "-n", NAMESPACE, "-o", "wide"][..],
    ] {
        screen.detail(&stage.kubectl(arguments).await?);
    }
    let url = step(screen, report, "Service URL reachable", stage.service_url()).await?;
    screen.detail(&format!("{url}   (in the cluster: http://{MODEL}.{NAMESPACE}.svc:8080/v1)"));
    Ok(Client::new(&url, MODEL)?)
}

/// Plays the whole tour on `stage` and fills `report` as it goes, so that a failed tour leaves what it measured.
///
/// # Errors
///
/// The first step that did not hold, with what was seen instead.
pub async fn run(stage: &mut Stage, screen: &Screen, report: &mut Report) -> anyhow::Result<()> {
    let client = deploy(stage, screen, report).await?;
    let status = stage.tier_names().await?;
    let (first, second) = match status.as_slice() {
        [first, second, ..] => (first.clone(), second.clone()),
        _ => bail!("the sample has {} tier(s); the tour needs two", status.len()),
    };

    screen.heading("An answer");
    let before = step(screen, report, "streamed chat completion", ask(&client, screen)).await?;
    screen.detail(&served_by(&before));
    ensure!(before.tier == first, "answered by tier {:?}, expected {first:?}", before.tier);
    report.answers.push(TourAnswer { when: "before", answer: before });

    screen.heading(&format!("{} is lost, under a steady load of short requests", stage.fault_name()));
    let load = Load::start(&client, LOAD_CLIENTS);
    let outcome = fault_and_return(stage, screen, report, &client, &first, &second).await;
    let load = load.stop().await;
    report.answered = load.answered;
    report.lost = Some(load.lost.len() as u64);
    outcome?;
    let tiers: Vec<String> = load.by_tier.iter().map(|(tier, count)| format!("{count} by {tier}")).collect();
    screen.detail(&format!(
        "load: {} answered ({}), {} lost",
        load.answered,
        tiers.join(", "),
        load.lost.len()
    ));
    if let Some(first_loss) = load.lost.first() {
        bail!("{} of {} requests were lost, the first with: {first_loss}", load.lost.len(), load.answered);
    }
    step(screen, report, "failover recorded in status", recorded(stage)).await?;
    screen.detail(&stage.kubectl(&["get", "atlasmodels", "-n", NAMESPACE, "-o", "wide"]).await?);
    Ok(())
}

/// Loses the preferred tier, waits for the fallback's answer, brings the tier back and waits for its answer.
async fn fault_and_return(
    stage: &mut Stage,
    screen: &Screen,
    report: &mut Report,
    client: &Client,
    first: &str,
    second: &str,
) -> anyhow::Result<()> {
    let lost_at = Instant::now();
    step(screen, report, "fault injected", stage.lose_primary()).await?;
    let after = step(screen, report, "next answer", next_answer(client)).await?;
    let failover = lost_at.elapsed();
    report.failover_ms = Some(u64::try_from(failover.as_millis())?);
    screen.detail(&format!("{}, {} ms after the fault", served_by(&after), failover.as_millis()));
    ensure!(after.tier == second, "answered by tier {:?}, expected {second:?}", after.tier);
    let full =
        step(screen, report, "streamed chat completion from the fallback", ask(client, screen)).await?;
    screen.detail(&served_by(&full));
    report.answers.push(TourAnswer { when: "after", answer: full });

    screen.heading(&format!("{} comes back", stage.fault_name()));
    let returned_at = Instant::now();
    step(screen, report, "card back", stage.return_primary()).await?;
    step(screen, report, "traffic returns to the preferred tier", failback(client, first)).await?;
    let failback = returned_at.elapsed();
    report.failback_ms = Some(u64::try_from(failback.as_millis())?);
    let answer = step(screen, report, "streamed chat completion", ask(client, screen)).await?;
    screen.detail(&format!("{}, {} ms after the card came back", served_by(&answer), failback.as_millis()));
    ensure!(answer.tier == first, "answered by tier {:?}, expected {first:?}", answer.tier);
    report.answers.push(TourAnswer { when: "failback", answer });
    Ok(())
}

async fn ask(client: &Client, screen: &Screen) -> anyhow::Result<Answer> {
    print!("    ");
    let answer = client.chat(PROMPT, 48, |text| screen.stream(text)).await;
    println!();
    Ok(answer?)
}

/// The next whole answer: a client with the usual retries, as applications have them, but counted in time.
async fn next_answer(client: &Client) -> anyhow::Result<Answer> {
    client.chat("Say yes.", 4, |_| {}).await.context("the request right after the fault")
}

async fn failback(client: &Client, tier: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let answer = client.chat("Say yes.", 4, |_| {}).await?;
        if answer.tier == tier {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "still answered by {:?} after 180 s", answer.tier);
    }
}

async fn pods_scheduled(stage: &Stage) -> anyhow::Result<()> {
    let selector = format!("atlas.gillsystems.com/model={MODEL}");
    let bound = "jsonpath={range .items[*]}{.spec.nodeName}{\"\\n\"}{end}";
    let arguments = ["get", "pods", "-n", NAMESPACE, "-l", &selector, "-o", bound];
    until(stage, "engine pods are scheduled", Duration::from_secs(60), &arguments, |nodes| {
        nodes.lines().filter(|node| !node.is_empty()).count() >= 2
    })
    .await
}

async fn tiers_ready(stage: &Stage) -> anyhow::Result<()> {
    let ready = "jsonpath={range .status.tiers[*]}{.name}={.ready} {end}";
    let arguments = ["get", "atlasmodel", "-n", NAMESPACE, MODEL, "-o", ready];
    until(stage, "every tier is ready", Duration::from_secs(300), &arguments, |tiers| {
        !tiers.trim().is_empty() && tiers.split_whitespace().all(|tier| !tier.ends_with("=0"))
    })
    .await
}

async fn recorded(stage: &Stage) -> anyhow::Result<()> {
    let arguments = ["get", "atlasmodel", "-n", NAMESPACE, MODEL, "-o", "jsonpath={.status.failover.count}"];
    until(stage, "status.failover counts the failover", Duration::from_secs(30), &arguments, |count| {
        count.trim().parse::<u64>().is_ok_and(|count| count >= 1)
    })
    .await
}

/// Asks kubectl until its answer is as wanted; the error tells what it answered last.
async fn until(
    stage: &Stage,
    what: &str,
    timeout: Duration,
    arguments: &[&str],
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    wait_until(what, timeout, || async {
        let answer = stage.kubectl(arguments).await.map_err(|error| format!("{error:#}"))?;
        if wanted(&answer) { Ok(()) } else { Err(answer) }
    })
    .await?;
    Ok(())
}

fn served_by(answer: &Answer) -> String {
    format!(
        "served by tier {} with model {} (first token after {} ms, {} ms in all)",
        answer.tier, answer.model, answer.first_token_ms, answer.total_ms
    )
}
