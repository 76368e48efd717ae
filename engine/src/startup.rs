//! How far starting has come: what `/readyz` shows while the answer is still no.

use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Progress of getting the model file.
#[derive(Debug, Default)]
pub struct Download {
    bytes: AtomicU64,
    /// 0 while unknown.
    total: AtomicU64,
    /// Bytes whose checksum is computed.
    checked: Arc<AtomicU64>,
    attempts: AtomicU32,
    resumed: AtomicBool,
}

impl Download {
    /// Counts an attempt.
    pub fn start_attempt(&self) {
        self.attempts.fetch_add(1, Relaxed);
    }

    /// Attempts so far.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Relaxed)
    }

    /// Whether the attempt went on from bytes that were there.
    pub fn was_resumed(&self) -> bool {
        self.resumed.load(Relaxed)
    }

    /// Sets the bytes there are, and the total where the server tells it.
    pub fn set(&self, bytes: u64, total: Option<u64>) {
        if self.bytes.swap(bytes, Relaxed) == 0 && bytes > 0 && self.total.load(Relaxed) == 0 {
            self.resumed.store(true, Relaxed);
        }
        self.total.store(total.unwrap_or(0), Relaxed);
    }

    /// The file was there already.
    pub fn set_done(&self, bytes: u64) {
        self.bytes.store(bytes, Relaxed);
        self.total.store(bytes, Relaxed);
    }

    /// Counts the bytes whose checksum is computed.
    pub fn checked(&self) -> Arc<AtomicU64> {
        self.checked.clone()
    }

    /// The object that the contract shows.
    pub fn json(&self) -> Value {
        let total = Some(self.total.load(Relaxed)).filter(|total| *total > 0);
        json!({
            "bytes": self.bytes.load(Relaxed),
            "totalBytes": total,
            "checkedBytes": self.checked.load(Relaxed),
            "attempts": self.attempts(),
        })
    }
}

/// Progress of loading and warming up.
#[derive(Debug, Default)]
pub struct Startup {
    layers: AtomicUsize,
    /// 0 until the header is read.
    total_layers: AtomicUsize,
    steps: AtomicUsize,
    tokens: AtomicUsize,
}

impl Startup {
    /// The weights of so many layers are loaded.
    pub fn set_layers(&self, layers: usize, total: usize) {
        self.total_layers.store(total, Relaxed);
        self.layers.store(layers, Relaxed);
    }

    /// A step of so many tokens has warmed the model up.
    pub fn count_warm_up(&self, tokens: usize) {
        self.tokens.store(tokens, Relaxed);
        self.steps.fetch_add(1, Relaxed);
    }

    /// Layers, where the header is read.
    pub fn loading(&self) -> Value {
        match self.total_layers.load(Relaxed) {
            0 => Value::Null,
            total => json!({"layers": self.layers.load(Relaxed), "totalLayers": total}),
        }
    }

    /// Steps of the warm-up and tokens of the last one, where there was one.
    pub fn warm_up(&self) -> Value {
        match self.steps.load(Relaxed) {
            0 => Value::Null,
            steps => json!({"steps": steps, "tokens": self.tokens.load(Relaxed)}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_begun_is_null() {
        let (download, startup) = (Download::default(), Startup::default());
        assert_eq!(
            download.json(),
            json!({"bytes": 0, "totalBytes": null, "checkedBytes": 0, "attempts": 0})
        );
        assert_eq!((startup.loading(), startup.warm_up()), (Value::Null, Value::Null));
        startup.set_layers(0, 30);
        startup.set_layers(3, 30);
        startup.count_warm_up(1);
        startup.count_warm_up(4);
        assert_eq!(startup.loading(), json!({"layers": 3, "totalLayers": 30}));
        assert_eq!(startup.warm_up(), json!({"steps": 2, "tokens": 4}));
    }

    #[test]
    fn bytes_from_before_the_first_attempt_count_as_resumed() {
        for (first, resumed) in [(0, false), (5, true)] {
            let download = Download::default();
            download.start_attempt();
            download.set(first, Some(10));
            download.set(10, Some(10));
            assert_eq!(download.was_resumed(), resumed, "{first}");
        }
    }
}
