//! What engines tell: how far they are, and what their models' headers say where nobody else can read those.
//!
//! That is so of files on nodes and claims and of closed sources. An engine that runs is asked once, one that starts is
//! asked anyway, and one that ended for want of memory left it in its termination message. What was told is kept in the
//! model's status, so that it outlives pods and operator.

use std::collections::BTreeMap;

use atlas_crds::{
    names,
    status::{AtlasModelStatus, HeaderStatus},
};
use atlas_operator_core::vram::ModelShape;
use jiff::Timestamp;

use crate::{
    observe::{ENGINE_PATIENCE, EngineStatus, PodView, TierPods},
    plan::Plan,
    probe::fetch_status,
    validate::ValidatedTier,
};

/// What engines reported, by tier.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reports(BTreeMap<String, HeaderStatus>);

impl Reports {
    /// What a status keeps.
    #[must_use]
    pub fn of(status: &AtlasModelStatus) -> Self {
        let tiers = status.tiers.iter();
        Self(tiers.filter_map(|tier| Some((tier.name.clone(), tier.header.clone()?))).collect())
    }

    /// The report on a tier's file; one of another file is none.
    #[must_use]
    pub fn of_tier(&self, name: &str, source: &str) -> Option<&HeaderStatus> {
        self.0.get(name).filter(|report| report.source == source)
    }

    /// The shape of a tier's model.
    #[must_use]
    pub fn shape(&self, tier: &ValidatedTier) -> Option<ModelShape> {
        self.of_tier(&tier.name, &tier.source).and_then(ModelShape::from_report)
    }

    /// Takes a report; whether it is news.
    fn take(&mut self, tier: &str, report: HeaderStatus) -> bool {
        let news = self.0.get(tier) != Some(&report);
        self.0.insert(tier.to_owned(), report);
        news
    }
}

/// Which engines were heard, by their pods' uids: an engine reads its file once, so it has one thing to say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heard {
    /// Those that ran, with their number of restarts.
    running: BTreeMap<String, i32>,
    /// Those that ended, and when.
    ended: BTreeMap<String, Option<Timestamp>>,
}

/// What came of asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hearing {
    /// Whether something was told that was not known.
    pub news: bool,
    /// Whether one that should have answered did not.
    pub silent: bool,
}

impl Heard {
    /// Takes what engines left behind that ended for want of memory.
    pub fn take_ends(&mut self, tiers: &[TierPods], reports: &mut Reports) {
        self.forget_gone(tiers);
        for tier in tiers {
            for pod in tier.current() {
                let (Some(uid), Some(failure)) = (&pod.uid, &pod.failure) else { continue };
                let Some(header) = &failure.header else { continue };
                if self.ended.insert(uid.clone(), failure.at) != Some(failure.at) {
                    reports.take(&tier.tier, header.clone());
                }
            }
        }
    }

    /// Takes what starting engines have said by now, and asks those that run where nobody else knows the header.
    pub async fn ask(&mut self, tiers: &[TierPods], plan: Option<&Plan>, reports: &mut Reports) -> Hearing {
        let mut hearing = Hearing::default();
        let mut asked = Vec::new();
        for (index, tier) in tiers.iter().enumerate() {
            let wanted =
                plan.and_then(|plan| plan.tiers.get(index)).is_some_and(|tier| tier.vram.needs_engine());
            for pod in tier.current().filter(|_| wanted) {
                match (&pod.engine, &pod.address) {
                    (Some(engine), _) => hearing.news |= self.take(tier, pod, engine, reports),
                    (None, Some(address)) if pod.ready && !self.knows(pod) => {
                        asked.push(async move { (tier, pod, ask_engine(address).await) });
                    }
                    (None, _) => {}
                }
            }
        }
        for (tier, pod, answer) in futures::future::join_all(asked).await {
            match answer {
                Some(engine) => hearing.news |= self.take(tier, pod, &engine, reports),
                None => hearing.silent = true,
            }
        }
        hearing
    }

    fn knows(&self, pod: &PodView) -> bool {
        pod.uid.as_ref().is_some_and(|uid| self.running.get(uid) == Some(&pod.restarts))
    }

    fn take(&mut self, tier: &TierPods, pod: &PodView, engine: &EngineStatus, reports: &mut Reports) -> bool {
        let known = self.knows(pod);
        // One that is ready and has nothing to tell is of an earlier release, and will not tell later.
        if let Some(uid) = pod.uid.clone().filter(|_| engine.header.is_some() || pod.ready) {
            self.running.insert(uid, pod.restarts);
        }
        match &engine.header {
            Some(header) if !known => reports.take(&tier.tier, header.clone()),
            _ => false,
        }
    }

    fn forget_gone(&mut self, tiers: &[TierPods]) {
        let here =
            |uid: &String| tiers.iter().flat_map(|tier| &tier.pods).any(|pod| pod.uid.as_ref() == Some(uid));
        self.running.retain(|uid, _| here(uid));
        self.ended.retain(|uid, _| here(uid));
    }
}

/// Asks engines that are not ready how far they are.
pub async fn ask_starting(tiers: &mut [TierPods]) {
    let asked = tiers
        .iter_mut()
        .flat_map(|tier| tier.pods.iter_mut())
        .filter(|pod| !pod.ready && !pod.terminating)
        .map(|pod| async move {
            if let Some(address) = &pod.address {
                pod.engine = ask_engine(address).await;
            }
        });
    futures::future::join_all(asked).await;
}

/// Asks an engine how it is; no answer is no news.
async fn ask_engine(address: &str) -> Option<EngineStatus> {
    fetch_status(address, names::ENGINE_INTERNAL_PORT, ENGINE_PATIENCE).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fit::TierVram, observe::Failure};
    use atlas_operator_core::engine_contract::EngineExit;

    fn header(source: &str, hidden: i64) -> HeaderStatus {
        HeaderStatus {
            source: source.into(),
            architecture: "llama".into(),
            parameters: 1,
            layer_weight_bytes: vec![1],
            key_elements: 64,
            value_elements: 64,
            hidden,
            feed_forward: 64,
            query_elements: 64,
            vocabulary: 64,
            trained_context: 64,
            ..HeaderStatus::default()
        }
    }

    fn pod(uid: &str) -> PodView {
        PodView { name: uid.into(), uid: Some(uid.into()), ..PodView::default() }
    }

    fn tier(pods: Vec<PodView>) -> Vec<TierPods> {
        vec![TierPods { tier: "a".into(), pods, ..TierPods::default() }]
    }

    #[test]
    fn what_an_ended_engine_left_is_taken_once_and_never_over_what_came_later() {
        let at = |second| Timestamp::from_second(second).ok();
        let failed = |hidden, second| PodView {
            failure: Some(Failure {
                exit: EngineExit::DoesNotFit,
                code: 13,
                message: "m".into(),
                at: at(second),
                header: Some(header("file:///m", hidden)),
                oom_killed: false,
            }),
            ..pod("u")
        };
        let (mut heard, mut reports) = (Heard::default(), Reports::default());
        heard.take_ends(&tier(vec![failed(1, 10)]), &mut reports);
        assert_eq!(reports.of_tier("a", "file:///m").map(|report| report.hidden), Some(1));
        assert_eq!(reports.of_tier("a", "file:///other"), None);
        // The next engine of the pod reads another file under the same name, while the old end still shows.
        let engine = EngineStatus { header: Some(header("file:///m", 2)), ..EngineStatus::default() };
        let tiers = tier(vec![failed(1, 10)]);
        assert!(heard.take(&tiers[0], &tiers[0].pods[0], &engine, &mut reports));
        heard.take_ends(&tiers, &mut reports);
        assert!(!heard.take(&tiers[0], &tiers[0].pods[0], &engine, &mut reports));
        assert_eq!(reports.of_tier("a", "file:///m").map(|report| report.hidden), Some(2));
        heard.take_ends(&tier(vec![failed(3, 20)]), &mut reports);
        assert_eq!(reports.of_tier("a", "file:///m").map(|report| report.hidden), Some(3));
        heard.take_ends(&tier(vec![pod("v")]), &mut reports);
        assert_eq!(heard, Heard::default(), "pods that are gone are forgotten");
    }

    #[test]
    fn only_the_engine_is_asked_for_what_nobody_else_reads() {
        let asked = |vram: TierVram| vram.needs_engine();
        assert!(asked(TierVram::Unread("it is on its node".into())));
        assert!(!asked(TierVram::Reading(std::time::Duration::ZERO)));
    }
}
