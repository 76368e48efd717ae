//! What each caller uses of its limits: requests at once, and requests a minute.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::keys::Caller;

/// The use of every caller.
#[derive(Debug, Default)]
pub struct Usage {
    callers: Mutex<BTreeMap<String, Used>>,
}

#[derive(Debug, Default)]
struct Used {
    running: u32,
    /// Requests that may still come at once, and since when.
    left: Option<(f64, Instant)>,
}

/// A limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Its name, as in the Secret.
    pub limit: &'static str,
    /// Its value.
    pub value: u32,
    /// When trying again makes sense.
    pub retry_after: Duration,
}

/// A request of a caller; counted until it is dropped.
#[derive(Debug)]
pub struct Running {
    usage: Arc<Usage>,
    caller: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut callers = self.usage.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = callers.get_mut(&self.caller) {
            used.running = used.running.saturating_sub(1);
        }
    }
}

impl Usage {
    /// Counts a request of a caller of this Secret: others may have one of the same name.
    ///
    /// # Errors
    ///
    /// The caller is at one of its limits.
    pub fn begin(self: &Arc<Self>, secret: &str, caller: &Caller, now: Instant) -> Result<Running, Reached> {
        let name = format!("{secret}/{}", caller.name);
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let used = callers.entry(name.clone()).or_default();
        if let Some(most) = caller.limits.max_concurrent.filter(|most| used.running >= *most) {
            let retry_after = Duration::from_secs(1);
            return Err(Reached { limit: "max-concurrent", value: most, retry_after });
        }
        if let Some(most) = caller.limits.requests_per_minute {
            let per_second = f64::from(most) / 60.0;
            let (left, since) = used.left.unwrap_or((f64::from(most), now));
            let earned = now.saturating_duration_since(since).as_secs_f64() * per_second;
            let left = (left + earned).min(f64::from(most));
            if left < 1.0 {
                used.left = Some((left, now));
                // A limit of none has no time at which it ends.
                let seconds = ((1.0 - left) / per_second).min(3_600.0);
                let retry_after = Duration::from_secs_f64(seconds.ceil());
                return Err(Reached { limit: "requests-per-minute", value: most, retry_after });
            }
            used.left = Some((left - 1.0, now));
        }
        used.running += 1;
        Ok(Running { usage: Arc::clone(self), caller: name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;

    fn caller(limits: &str) -> Caller {
        let (name, value) = ("alice".to_owned(), format!("key\n{limits}"));
        Keys::read([(&name, value.as_bytes())]).find("key").unwrap().clone()
    }

    #[test]
    fn requests_at_once_are_limited_and_come_free_again() {
        let (usage, alice, now) = (Arc::new(Usage::default()), caller("max-concurrent: 2"), Instant::now());
        let first = usage.begin("keys", &alice, now).unwrap();
        let _second = usage.begin("keys", &alice, now).unwrap();
        assert_eq!(usage.begin("keys", &alice, now).unwrap_err().limit, "max-concurrent");
        assert!(usage.begin("others", &alice, now).is_ok(), "somebody else of that name");
        drop(first);
        assert!(usage.begin("keys", &alice, now).is_ok());
    }

    #[test]
    fn requests_a_minute_are_limited_and_time_earns_new_ones() {
        let (usage, alice, now) =
            (Arc::new(Usage::default()), caller("requests-per-minute: 6"), Instant::now());
        assert_eq!((0..10).filter(|_| usage.begin("keys", &alice, now).is_ok()).count(), 6);
        let reached = usage.begin("keys", &alice, now).unwrap_err();
        assert_eq!((reached.limit, reached.retry_after), ("requests-per-minute", Duration::from_secs(10)));
        assert!(usage.begin("keys", &alice, now + Duration::from_secs(10)).is_ok());
        let none = caller("requests-per-minute: 0");
        let reached = Arc::new(Usage::default()).begin("keys", &none, now).unwrap_err();
        assert_eq!(reached.retry_after, Duration::from_secs(3_600));
    }
}
