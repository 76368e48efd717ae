//! What goes wrong between a client and the API server, and when.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

/// What happens to one write, or to one event of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The write does not take place; this status is the answer.
    Answer(u16),
    /// The write takes place, and the connection breaks in place of its answer.
    LoseAnswer,
    /// The write takes place, and no answer ever comes.
    Hang,
    /// The write waits for [`super::ApiProxy::release`], even when its client is gone by then.
    Hold,
    /// The connection of a watch breaks in place of the event.
    CutWatch,
    /// The watch ends with 410 Gone in place of the event.
    ExpireWatch,
    /// The event never comes, and the watch goes on as if nothing had been.
    DropEvent,
}

impl Fault {
    /// Whether it strikes events of watches, not writes.
    pub fn is_of_watches(self) -> bool {
        matches!(self, Self::CutWatch | Self::ExpireWatch | Self::DropEvent)
    }
}

/// Which faults come, and when.
#[derive(Default)]
pub enum Faults {
    #[default]
    Never,
    /// At one write or event, counted from 1.
    Once(Fault, usize),
    /// Again and again, drawn anew for every write and event.
    Storm(Box<StdRng>),
}

impl Faults {
    /// What the write or event of this number meets.
    pub fn next(&mut self, of_watches: bool, number: usize) -> Option<Fault> {
        match self {
            Self::Once(fault, at) if fault.is_of_watches() == of_watches && number >= *at => {
                let fault = *fault;
                *self = Self::Never;
                Some(fault)
            }
            Self::Never | Self::Once(..) => None,
            Self::Storm(random) => Self::draw(random, of_watches),
        }
    }

    /// One write in six, and one event in twelve.
    fn draw(random: &mut StdRng, of_watches: bool) -> Option<Fault> {
        const OF_WRITES: [Fault; 4] =
            [Fault::Answer(409), Fault::Answer(429), Fault::Answer(500), Fault::LoseAnswer];
        const OF_WATCHES: [Fault; 3] = [Fault::CutWatch, Fault::ExpireWatch, Fault::DropEvent];
        let (faults, of) = if of_watches { (&OF_WATCHES[..], 12) } else { (&OF_WRITES[..], 6) };
        if !random.random_ratio(1, of) {
            return None;
        }
        // Some that are on their way get no answer before their time is over.
        if !of_watches && random.random_ratio(1, 12) {
            return Some(Fault::Hang);
        }
        faults.choose(random).copied()
    }
}
