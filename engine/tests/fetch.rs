//! `atlas-engine fetch` against a server that breaks off, forgets, changes the file and refuses.

#![allow(clippy::unwrap_used, clippy::panic)]

use atlas_format::HeaderWriter;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

/// How the server answers one request.
#[derive(Clone)]
struct Answer {
    status: &'static str,
    etag: Option<&'static str>,
    body: Vec<u8>,
    /// Serves ranges of `body`, where the request's `If-Range` allows it.
    ranges: bool,
    /// Bytes sent before the connection is cut.
    cut: Option<usize>,
}

impl Answer {
    fn whole(body: &[u8], etag: &'static str) -> Self {
        Self { status: "200 OK", etag: Some(etag), body: body.to_vec(), ranges: true, cut: None }
    }

    fn cut(self, bytes: usize) -> Self {
        Self { cut: Some(bytes), ..self }
    }

    fn send(&self, mut stream: TcpStream, range: Option<usize>, if_range: Option<&str>) {
        let start = range.filter(|_| self.ranges && (if_range.is_none() || if_range == self.etag));
        let body = &self.body[start.unwrap_or(0)..];
        let status = if start.is_some() { "206 Partial Content" } else { self.status };
        let etag = self.etag.map(|etag| format!("etag: {etag}\r\n")).unwrap_or_default();
        let head =
            format!("HTTP/1.1 {status}\r\n{etag}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
        // A client that has what it wants may be gone.
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body[..self.cut.unwrap_or(body.len()).min(body.len())]);
    }
}

/// A server that gives these answers in turn, and remembers the ranges that it was asked for.
fn serve(answers: Vec<Answer>) -> (String, Arc<Mutex<Vec<Option<usize>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/model.gguf", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    std::thread::spawn(move || {
        for answer in answers {
            let (stream, _) = listener.accept().unwrap();
            let (mut range, mut if_range) = (None, None);
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let line = line.unwrap();
                if line.is_empty() {
                    break;
                }
                let (name, value) = line.split_once(": ").unwrap_or_default();
                match name.to_ascii_lowercase().as_str() {
                    "range" => {
                        range =
                            value.strip_prefix("bytes=").and_then(|v| v.trim_end_matches('-').parse().ok())
                    }
                    "if-range" => if_range = Some(value.to_owned()),
                    _ => {}
                }
            }
            seen.lock().unwrap().push(range);
            answer.send(stream, range, if_range.as_deref());
        }
    });
    (url, asked)
}

fn fetch(url: &str, cache: &Path, sha256: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
    command.args(["fetch", "--model", url, "--cache-dir"]).arg(cache);
    if let Some(sum) = sha256 {
        command.args(["--sha256", sum]);
    }
    command.output().unwrap()
}

fn fetched(output: &Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(String::from_utf8_lossy(&output.stdout).trim()).unwrap()
}

/// A model of 100,000 bytes.
fn bytes(seed: u8) -> Vec<u8> {
    let mut file = HeaderWriter::default().tensor("t", &[99_000], 24).finish();
    let data = (0..).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed);
    file.extend(data.take(100_000 - file.len()));
    file
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    entries.map(|name| name.to_string_lossy().into_owned()).collect()
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let cache = tempfile::tempdir().unwrap();
    let file = bytes(1);
    let whole = Answer::whole(&file, "\"v1\"");
    let (url, asked) = serve(vec![whole.clone().cut(30_000), whole.clone().cut(20_000), whole]);
    let sum = hex::encode(Sha256::digest(&file));
    assert_eq!(fetched(&fetch(&url, cache.path(), Some(&sum))), file);
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked[0], None);
    // The system may keep the last bytes before a cut, so the place is not known exactly, but it only grows.
    assert!(asked[1].is_some_and(|at| at > 0 && at <= 30_000), "{asked:?}");
    assert!(asked[2] > asked[1], "{asked:?}");
    let left = names(cache.path());
    assert!(!left.iter().any(|name| name.contains(".part")), "{left:?}");
    assert!(left.iter().any(|name| name.ends_with(".sha256")), "the next start would sum it again: {left:?}");
}

#[test]
fn a_file_that_changed_meanwhile_starts_over_instead_of_being_mixed() {
    let cache = tempfile::tempdir().unwrap();
    let (old, new) = (bytes(1), bytes(2));
    let (url, asked) = serve(vec![Answer::whole(&old, "\"v1\"").cut(50_000), Answer::whole(&new, "\"v2\"")]);
    // No checksum is given: only the ETag can tell.
    assert_eq!(fetched(&fetch(&url, cache.path(), None)), new);
    assert!(asked.lock().unwrap()[1].is_some(), "the second request asked to go on");
}

#[test]
fn two_processes_that_share_a_cache_download_once() {
    let cache = tempfile::tempdir().unwrap();
    let file = bytes(5);
    // Were there a second request, it would be refused for lack of an answer.
    let (url, asked) = serve(vec![Answer::whole(&file, "\"v1\"")]);
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| fetched(&fetch(&url, cache.path(), None))));
        for one in both {
            assert_eq!(one.join().unwrap(), file);
        }
    });
    assert_eq!(asked.lock().unwrap().len(), 1);
    assert_eq!(names(cache.path()).len(), 1, "{:?}", names(cache.path()));
}

#[test]
fn what_holds_a_model_stays_until_it_is_told_to_go() {
    let cache = tempfile::tempdir().unwrap();
    let file = bytes(6);
    let (url, _) = serve(vec![Answer::whole(&file, "\"v1\"")]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
    command.args(["fetch", "--hold", "--model", &url, "--cache-dir"]).arg(cache.path());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("holding the model bytes=100000")));
    assert!(child.try_wait().unwrap().is_none(), "it went by itself");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_server_without_ranges_sends_the_whole_file_again() {
    let cache = tempfile::tempdir().unwrap();
    let file = bytes(3);
    let plain = Answer { ranges: false, etag: None, ..Answer::whole(&file, "") };
    let (url, _) = serve(vec![plain.clone().cut(50_000), plain]);
    assert_eq!(fetched(&fetch(&url, cache.path(), None)), file);
}

#[test]
fn another_file_than_the_checksum_names_is_removed_and_told() {
    let cache = tempfile::tempdir().unwrap();
    let (url, _) = serve(vec![Answer::whole(&bytes(4), "\"v1\"")]);
    let output = fetch(&url, cache.path(), Some(&"ab".repeat(32)));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(12), "{said}");
    assert!(said.contains("has the sha256") && said.contains(&"ab".repeat(32)), "{said}");
    assert!(names(cache.path()).is_empty(), "{:?}", names(cache.path()));
}

#[test]
fn what_is_sent_in_place_of_a_model_is_told_and_not_kept() {
    let model = bytes(1);
    for (sent, says) in [
        (&b"<html>please log in</html>"[..], "it starts with \"<htm\""),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"", "it is truncated"),
        (&model[..50_000], "the file has 50000 bytes and needs"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let (url, _) = serve(vec![Answer::whole(sent, "\"v1\""), Answer::whole(&model, "\"v2\"")]);
        let output = fetch(&url, cache.path(), None);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(11), "{said}");
        assert!(said.contains(says) && said.contains("a login page") && said.contains(&url), "{said}");
        assert!(names(cache.path()).is_empty(), "{:?}", names(cache.path()));
        assert_eq!(fetched(&fetch(&url, cache.path(), None)), model);
    }
}

#[test]
fn a_cached_file_that_is_not_the_wanted_one_is_downloaded_anew() {
    let cache = tempfile::tempdir().unwrap();
    let (old, new) = (bytes(1), bytes(2));
    let sum = |file: &[u8]| hex::encode(Sha256::digest(file));
    let (url, asked) = serve([&old, &new, &new, &old].map(|file| Answer::whole(file, "\"v\"")).to_vec());
    assert_eq!(fetched(&fetch(&url, cache.path(), Some(&sum(&old)))), old);
    // The source has another file since, and so has the model.
    assert_eq!(fetched(&fetch(&url, cache.path(), Some(&sum(&new)))), new);
    assert_eq!(fetched(&fetch(&url, cache.path(), Some(&sum(&new)))), new);
    assert_eq!(asked.lock().unwrap().len(), 2);
    // One that came to harm on the disk.
    let path = String::from_utf8(fetch(&url, cache.path(), None).stdout).unwrap();
    std::fs::write(path.trim(), &new[..70_000]).unwrap();
    assert_eq!(fetched(&fetch(&url, cache.path(), None)), new);
    // What the source does not have leaves the cache as it was.
    let output = fetch(&url, cache.path(), Some(&sum(&bytes(3))));
    assert_eq!(output.status.code(), Some(12), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fetched(&fetch(&url, cache.path(), None)), new);
}

#[test]
fn a_refusal_is_told_at_once_with_its_remedy() {
    for (status, hint) in
        [("404 Not Found", "check the source's spelling"), ("403 Forbidden", "wants credentials")]
    {
        let cache = tempfile::tempdir().unwrap();
        let (url, asked) = serve(vec![Answer { status, ..Answer::whole(b"no", "\"x\"") }]);
        let output = fetch(&url, cache.path(), None);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(10), "{said}");
        assert!(said.contains(&status[..3]) && said.contains(hint), "{said}");
        assert_eq!(asked.lock().unwrap().len(), 1);
    }
}
