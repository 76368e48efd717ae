//! A hub on loopback: one repository behind the API that the real one has, its large files behind a redirect to another
//! host; the same files as a plain folder; and the faults that a test asks for.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// Files from this size on are kept apart, by their sum.
const LARGE: usize = 1000;

/// What the hub holds, and what it does wrong.
#[derive(Default)]
pub struct State {
    /// The files by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Sizes that are announced in place of the real ones.
    pub announced: BTreeMap<String, u64>,
    /// Files whose size is not told with them.
    pub unannounced: Vec<String>,
    /// Bytes of nothing in the hub's answer about a revision.
    pub padding: usize,
    /// Files that the hub knows and does not give.
    pub withheld: Vec<String>,
    /// The file whose next answer breaks off after so many bytes.
    pub cut: Option<(String, usize)>,
    /// The file whose bytes are others than announced.
    pub damaged: Option<String>,
    /// Who has no such token gets no file.
    pub token: Option<String>,
    /// Requests for files: their names, and the byte from which they ask.
    pub asked: Vec<(String, usize)>,
    /// Whether a token went where it must not.
    pub leaked: bool,
}

/// The server; it lives as long as the process.
pub struct Hub {
    /// Address of the hub, for `HF_ENDPOINT`.
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    /// Serves these files as `hf://acme/model`, revisions `main` and the commit.
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        // The files' host is another one, as the hub's is: a token must not follow there.
        let [hub, store] = ["127.0.0.1:0", "127.0.0.2:0"].map(|address| TcpListener::bind(address).unwrap());
        let [url, store_url] =
            [&hub, &store].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        for (listener, is_store) in [(hub, false), (store, true)] {
            let (state, store_url) = (state.clone(), store_url.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let (state, store_url) = (state.clone(), store_url.clone());
                    // Clients may be gone before they have read everything.
                    std::thread::spawn(move || {
                        let _ = answer(&stream.unwrap(), &state, &store_url, is_store);
                    });
                }
            });
        }
        Self { url, state }
    }

    /// Serves the files of a folder.
    pub fn of(folder: &Path) -> Self {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        });
        Self::start(files.collect())
    }

    /// The state, to be looked at and changed.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How often each file was asked for, and forgets it.
    pub fn take_asked(&self) -> BTreeMap<String, Vec<usize>> {
        let mut asked: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (name, from) in std::mem::take(&mut self.state().asked) {
            asked.entry(name).or_default().push(from);
        }
        asked
    }
}

fn sum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The commit changes with the files.
fn commit(state: &State) -> String {
    let all: Vec<String> = state.files.iter().map(|(name, bytes)| format!("{name} {}", sum(bytes))).collect();
    sum(all.join("\n").as_bytes())[..40].to_owned()
}

fn listing(state: &State) -> Value {
    let files = state.files.iter().map(|(name, bytes)| {
        let size = state.announced.get(name).copied().unwrap_or(bytes.len() as u64);
        let mut file = json!({"rfilename": name, "size": size, "blobId": &sum(bytes)[..40]});
        if bytes.len() >= LARGE {
            file["lfs"] = json!({"sha256": sum(bytes), "size": size, "pointerSize": 134});
        }
        file
    });
    let files: Vec<Value> = files.collect();
    let padding = " ".repeat(state.padding);
    json!({"id": "acme/model", "sha": commit(state), "private": false, "siblings": files, "padding": padding})
}

/// A request's head.
struct Head {
    method: String,
    path: String,
    from: usize,
    if_range: Option<String>,
    token: Option<String>,
}

fn read_head(stream: &TcpStream) -> std::io::Result<Head> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut head = Head { method, path, from: 0, if_range: None, token: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                head.from = value.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap();
            }
            "if-range" => head.if_range = Some(value.to_owned()),
            "authorization" => head.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    Ok(head)
}

fn answer(stream: &TcpStream, state: &Mutex<State>, store_url: &str, is_store: bool) -> std::io::Result<()> {
    let head = read_head(stream)?;
    let mut state = state.lock().unwrap();
    let path = head.path.split('?').next().unwrap_or_default().to_owned();
    if is_store {
        state.leaked |= head.token.is_some();
        let name = path.trim_start_matches('/').to_owned();
        return send_file(stream, state, &head, &name);
    }
    if let Some(name) = path.strip_prefix("/plain/") {
        let name = name.to_owned();
        return send_file(stream, state, &head, &name);
    }
    if let Some(revision) = path.strip_prefix("/api/models/acme/model/revision/") {
        return match revision == "main" || revision == commit(&state) {
            true => send(stream, "200 OK", "", listing(&state).to_string().as_bytes()),
            false => send(stream, "404 Not Found", "x-error-code: RevisionNotFound\r\n", b""),
        };
    }
    let Some((revision, name)) =
        path.strip_prefix("/acme/model/resolve/").and_then(|path| path.split_once('/'))
    else {
        // The hub does not tell strangers which repositories there are.
        return send(stream, "401 Unauthorized", "x-error-code: RepoNotFound\r\n", b"");
    };
    if state.token.is_some() && state.token != head.token {
        let status = if head.token.is_some() { "403 Forbidden" } else { "401 Unauthorized" };
        return send(stream, status, "x-error-code: GatedRepo\r\n", b"");
    }
    let known = revision == "main" || revision == commit(&state);
    let Some(bytes) = state.files.get(name).filter(|_| known) else {
        return send(stream, "404 Not Found", "x-error-code: EntryNotFound\r\n", b"");
    };
    if bytes.len() < LARGE {
        let name = name.to_owned();
        return send_file(stream, state, &head, &name);
    }
    let more = format!(
        "location: {store_url}/{name}\r\nx-linked-size: {}\r\nx-linked-etag: \"{}\"\r\nx-repo-commit: {revision}\r\n",
        bytes.len(),
        sum(bytes)
    );
    send(stream, "302 Found", &more, b"")
}

fn send(mut stream: &TcpStream, status: &str, more: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n")?;
    stream.write_all(body)
}

fn send_file(
    mut stream: &TcpStream,
    mut state: MutexGuard<'_, State>,
    head: &Head,
    name: &str,
) -> std::io::Result<()> {
    let Some(bytes) = state.files.get(name) else {
        return send(stream, "404 Not Found", "", b"");
    };
    let etag = format!("\"{}\"", &sum(bytes)[..16]);
    let length = bytes.len();
    if head.method == "HEAD" {
        let size = state.announced.get(name).copied().unwrap_or(length as u64);
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\netag: {etag}\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n"
        );
    }
    let mut bytes = bytes.clone();
    state.asked.push((name.to_owned(), head.from));
    if state.withheld.iter().any(|withheld| withheld == name) {
        return send(stream, "403 Forbidden", "", b"");
    }
    if state.damaged.as_deref() == Some(name) {
        bytes[length / 2] ^= 1;
    }
    let end = match &state.cut {
        Some((cut, end)) if cut == name => {
            let end = *end;
            state.cut = None;
            end.min(length)
        }
        _ => length,
    };
    let unannounced = state.unannounced.iter().any(|unannounced| unannounced == name);
    drop(state);
    let from = match &head.if_range {
        Some(version) if *version != etag => 0,
        _ => head.from.min(length),
    };
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let size = if unannounced { String::new() } else { format!("content-length: {}\r\n", length - from) };
    write!(stream, "HTTP/1.1 {status}\r\netag: {etag}\r\n{size}connection: close\r\n\r\n")?;
    stream.write_all(&bytes[from..end.max(from)])
}
