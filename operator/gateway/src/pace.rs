//! How fast a queue moves, from when its places come back. Pure: the clock is an argument.

use std::time::{Duration, Instant};

/// Share of the newest distance in what is expected of the next one.
const NEWEST: f64 = 0.2;
/// What a client is told where nothing is known, and at least.
const SHORTEST: Duration = Duration::from_secs(1);
/// At most: what waits for longer is better asked again.
const LONGEST: Duration = Duration::from_secs(60);

/// The distance of two places that come back while somebody waits.
#[derive(Debug, Default)]
pub struct Pace {
    last: Option<Instant>,
    distance: Option<Duration>,
}

impl Pace {
    /// Somebody begins to wait where nobody did: what was before says nothing about how long that takes.
    pub fn begin(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// A place came back while somebody waited.
    pub fn came_back(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let newest = now.saturating_duration_since(last);
            self.distance = Some(match self.distance {
                Some(known) => known.mul_f64(1.0 - NEWEST) + newest.mul_f64(NEWEST),
                None => newest,
            });
        }
    }

    /// In which time those who wait have had their turn, in whole seconds.
    #[must_use]
    pub fn until_served(&self, queued: usize, now: Instant) -> Duration {
        // One that is slower than those before is seen before it ends.
        let stands = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let Some(distance) = self.distance.map(|known| known.max(stands)).or(self.last.map(|_| stands))
        else {
            return SHORTEST;
        };
        let all = distance.as_secs_f64() * queued.max(1) as f64;
        Duration::from_secs_f64(all.ceil().min(LONGEST.as_secs_f64())).max(SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_as_long_as_the_queue_and_follows_its_pace() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let seconds = |pace: &Pace, queued, now| pace.until_served(queued, now).as_secs();
        let mut pace = Pace::default();
        assert_eq!(seconds(&pace, 64, start), 1, "nothing is known");
        pace.begin(start);
        pace.came_back(at(500));
        assert_eq!((seconds(&pace, 1, at(500)), seconds(&pace, 9, at(500))), (1, 5));
        for after in 1..40 {
            pace.came_back(at(500 + after * 2_000));
        }
        let now = at(500 + 39 * 2_000);
        assert_eq!((seconds(&pace, 9, now), seconds(&pace, 1_000, now)), (18, 60));
        assert_eq!(seconds(&pace, 2, now + Duration::from_secs(7)), 14, "the next one is late already");
        pace.begin(now + Duration::from_secs(600));
        assert_eq!(seconds(&pace, 9, now + Duration::from_secs(600)), 18, "nobody waited in between");
    }
}
