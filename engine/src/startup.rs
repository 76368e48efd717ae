//! How far starting has come: what `/readyz` shows while the answer is still no.

use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Progress of getting the model: one file, or several one after the other.
#[derive(Debug, Default)]
pub struct Download {
    bytes: AtomicU64,
    /// 0 while unknown.
    total: AtomicU64,
    /// Bytes whose checksum is computed.
    checked: Arc<AtomicU64>,
    attempts: AtomicU32,
    /// Bytes of the files that are whole.
    before: AtomicU64,
}

/// Progress of one file of a download.
#[derive(Debug, Clone, Copy)]
pub struct FileProgress<'a> {
    download: &'a Download,
    /// Bytes of the files before it, and of these, how many were checked.
    before: (u64, u64),
    /// Bytes of all files, where they are known.
    total: Option<u64>,
    /// Whether there are other files.
    one_of_several: bool,
}

impl Download {
    /// The only file.
    pub fn file(&self) -> FileProgress<'_> {
        FileProgress { one_of_several: false, ..self.file_of(None) }
    }

    /// The next file of several.
    pub fn file_of(&self, total: Option<u64>) -> FileProgress<'_> {
        let before = (self.before(), self.checked.load(Relaxed));
        FileProgress { download: self, before, total, one_of_several: true }
    }

    /// Bytes of the files that are whole.
    pub fn before(&self) -> u64 {
        self.before.load(Relaxed)
    }

    /// One of several files is whole.
    pub fn finish_file(&self, bytes: u64) {
        let before = self.before.fetch_add(bytes, Relaxed) + bytes;
        self.bytes.store(before, Relaxed);
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
            "attempts": self.attempts.load(Relaxed),
        })
    }
}

impl FileProgress<'_> {
    /// Counts an attempt.
    pub fn start_attempt(&self) {
        self.download.attempts.fetch_add(1, Relaxed);
    }

    /// Sets the bytes of this file that there are, and its size where the server tells it.
    pub fn set(&self, bytes: u64, size: Option<u64>) {
        self.download.bytes.store(self.before.0 + bytes, Relaxed);
        let alone = size.filter(|_| !self.one_of_several);
        self.download.total.store(self.total.or(alone).unwrap_or(0), Relaxed);
    }

    /// Counts the bytes whose checksum is computed, on from those of other files.
    pub fn checked(&self) -> (Arc<AtomicU64>, u64) {
        (self.download.checked(), self.before.1)
    }

    /// Says how far all of it has come.
    pub fn log(&self) {
        let Download { bytes, total, .. } = self.download;
        let total = Some(total.load(Relaxed)).filter(|total| *total > 0);
        tracing::info!(bytes = bytes.load(Relaxed), total_bytes = total, "downloading");
    }
}

/// Progress of loading and warming up.
#[derive(Debug, Default)]
pub struct Startup {
    layers: AtomicUsize,
    /// 0 until the header is read.
    total_layers: AtomicUsize,
    uploaded: AtomicU64,
    /// 0 without a card.
    to_upload: AtomicU64,
    steps: AtomicUsize,
    tokens: AtomicUsize,
}

impl Startup {
    /// The weights of so many layers are loaded.
    pub fn set_layers(&self, layers: usize, total: usize) {
        self.total_layers.store(total, Relaxed);
        self.layers.store(layers, Relaxed);
    }

    /// So many bytes of weights are to go to the card.
    pub fn begin_upload(&self, bytes: u64) {
        self.to_upload.store(bytes, Relaxed);
    }

    /// So many more have arrived there.
    pub fn count_upload(&self, bytes: u64) {
        self.uploaded.fetch_add(bytes, Relaxed);
    }

    /// Says how far uploading has come.
    pub fn log_upload(&self, message: &'static str) {
        let (bytes, total_bytes) = (self.uploaded.load(Relaxed), self.to_upload.load(Relaxed));
        tracing::info!(bytes, total_bytes, "{message}");
    }

    /// A step of so many tokens has warmed the model up.
    pub fn count_warm_up(&self, tokens: usize) {
        self.tokens.store(tokens, Relaxed);
        self.steps.fetch_add(1, Relaxed);
    }

    /// Layers, where the header is read, and bytes that went to the card, where there is one.
    pub fn loading(&self) -> Value {
        match self.total_layers.load(Relaxed) {
            0 => Value::Null,
            total => {
                let to_upload = Some(self.to_upload.load(Relaxed)).filter(|bytes| *bytes > 0);
                json!({
                    "layers": self.layers.load(Relaxed),
                    "totalLayers": total,
                    "bytes": to_upload.map(|_| self.uploaded.load(Relaxed)),
                    "totalBytes": to_upload,
                })
            }
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
        let none = Value::Null;
        assert_eq!(
            startup.loading(),
            json!({"layers": 3, "totalLayers": 30, "bytes": none, "totalBytes": none})
        );
        startup.begin_upload(100);
        startup.count_upload(30);
        startup.count_upload(40);
        let uploading = json!({"layers": 3, "totalLayers": 30, "bytes": 70, "totalBytes": 100});
        assert_eq!(startup.loading(), uploading);
        assert_eq!(startup.warm_up(), json!({"steps": 2, "tokens": 4}));
    }

    #[test]
    fn files_add_up_to_one_progress() {
        let download = Download::default();
        let shown = |expected: (u64, Value)| {
            let json = download.json();
            assert_eq!((&json["bytes"], &json["totalBytes"]), (&json!(expected.0), &expected.1));
        };
        download.file().set(5, Some(10));
        shown((5, json!(10)));
        download.file_of(None).set(5, Some(10));
        shown((5, Value::Null));
        download.finish_file(10);
        let second = download.file_of(Some(40));
        second.set(7, Some(30));
        shown((17, json!(40)));
        second.set(0, Some(30));
        shown((10, json!(40)));
        download.finish_file(30);
        shown((40, json!(40)));
    }
}
