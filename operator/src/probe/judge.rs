//! Who is deleted for its silence, and on what evidence. Pure.
//!
//! A controller that cannot see the API server judges nobody: before a gateway is given up, the API server has to show, after
//! the silence began, that the pod is as it was and that another ready one is there, and the gateway has to be silent once
//! more after that. What the controller's own copies say may be old, and so it only tells where to look.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::silence::{Attention, Gateway, Silences};

/// A gateway pod as the API server showed it just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The gateway.
    pub gateway: Gateway,
    /// Its pod's resource version.
    pub version: String,
}

/// What a last look at a suspect found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The API server shows these gateways of the namespace, and the suspect did not answer after that.
    Silent(Vec<Shown>),
    /// It answers.
    Alive,
    /// The API server did not say: this process may be cut off.
    Nothing,
}

/// That a gateway is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    /// The version of its pod that this is about.
    pub version: String,
    /// For how long it was silent.
    pub silent: Duration,
}

/// What is known of every gateway, and which of them are being looked at.
#[derive(Debug)]
pub struct Judge {
    attention: Attention,
    silences: Silences,
    gateways: Vec<Gateway>,
    /// Uids of gateways that are being looked at or deleted.
    busy: HashSet<String>,
}

impl Judge {
    /// Begins to listen. Silence is too long from `limit` on; two pulses are at most `longest_pulse` apart where nothing stalls.
    #[must_use]
    pub fn begin(now: Instant, limit: Duration, longest_pulse: Duration) -> Self {
        Self {
            attention: Attention::begin(now, longest_pulse),
            silences: Silences::new(limit),
            gateways: Vec::new(),
            busy: HashSet::new(),
        }
    }

    /// Takes in that this process runs, and says for how long it did not.
    pub fn pulse(&mut self, now: Instant) -> Duration {
        self.attention.pulse(now)
    }

    /// Time in which this process listened.
    #[must_use]
    pub fn awake(&self) -> Duration {
        self.attention.awake()
    }

    /// Takes in which gateways there are, as far as this process knows.
    pub fn observe(&mut self, gateways: Vec<Gateway>) {
        self.silences.observe(&gateways, self.awake());
        self.gateways = gateways;
    }

    /// The gateways as they were observed last.
    #[must_use]
    pub fn gateways(&self) -> &[Gateway] {
        &self.gateways
    }

    /// Takes in an answer, however old its question is.
    pub fn hear(&mut self, uid: &str) {
        self.silences.hear(uid, self.attention.awake());
    }

    /// Whether it is still there.
    #[must_use]
    pub fn knows(&self, uid: &str) -> bool {
        self.silences.knows(uid)
    }

    /// Whether it has been silent for too long.
    #[must_use]
    pub fn is_silent(&self, gateway: &Gateway) -> bool {
        self.silences.is_silent(gateway, self.awake())
    }

    /// Gateways to take a last look at: those that will have been silent for too long when `lead` has passed. Each comes
    /// once, until the look has been [`Self::conclude`]d, or its deletion is [`Self::close`]d.
    pub fn suspect(&mut self, lead: Duration) -> Vec<Gateway> {
        let chosen = self.silences.choose(&self.gateways, self.attention.awake(), lead);
        chosen.into_iter().filter(|gateway| self.busy.insert(gateway.uid.clone())).cloned().collect()
    }

    /// What follows from a last look. `observe` comes before it, so that what was heard of since counts.
    pub fn conclude(&mut self, suspect: &Gateway, found: Found) -> Option<Sentence> {
        self.busy.remove(&suspect.uid);
        let shown = match found {
            Found::Nothing => return None,
            Found::Alive => {
                self.hear(&suspect.uid);
                return None;
            }
            Found::Silent(shown) => shown,
        };
        // What only one of both knows is news on its way, and no reason to delete anything.
        let is_known = |gateway: &Gateway| {
            self.gateways.iter().any(|known| known.uid == gateway.uid && known.ready && gateway.ready)
        };
        let agreed: Vec<Gateway> =
            shown.iter().map(|shown| &shown.gateway).filter(|gateway| is_known(gateway)).cloned().collect();
        let awake = self.awake();
        let chosen = self.silences.choose(&agreed, awake, Duration::ZERO);
        let chosen = chosen.into_iter().find(|chosen| chosen.uid == suspect.uid)?;
        let version = shown.iter().find(|shown| shown.gateway.uid == chosen.uid)?.version.clone();
        let silent = self.silences.of(chosen, awake);
        self.busy.insert(suspect.uid.clone());
        Some(Sentence { version, silent })
    }

    /// Its deletion is over, well or not.
    pub fn close(&mut self, uid: &str) {
        self.busy.remove(uid);
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
