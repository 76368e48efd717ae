//! Models in buckets: `atlas-engine fetch` and `kubectl atlas plan` against a server that checks every signature.
//!
//! The server is moto's, in the environment that `make setup` makes; signatures are compared with those that botocore
//! computes, and rights with IAM's policies. It tells no bucket's region, so a wrong region is not played here.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use atlas_tests::{
    assets::cache_folder,
    support::{binary, header_of_width},
};
use serde_json::Value;

/// Id of an access key and its secret.
type Key = (String, String);

struct Server {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    endpoint: String,
    keys: Value,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.input = None;
        // It ends with its input.
        let _ = self.process.wait();
    }
}

impl Server {
    fn start() -> Result<Self> {
        let python = cache_folder().join("venv-s3/bin/python");
        let mut process = Command::new(&python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/s3_server.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{}: run `make setup`", python.display()))?;
        let input = process.stdin.take();
        let mut output = BufReader::new(process.stdout.take().context("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let told: Value = serde_json::from_str(&line).context("the server of buckets did not start")?;
        let endpoint = told["endpoint"].as_str().context("no endpoint")?.to_owned();
        Ok(Self { process, input, output, endpoint, keys: told["keys"].clone() })
    }

    fn obey(&mut self, words: &[&str]) -> Result<()> {
        let command = words.join("\t");
        writeln!(self.input.as_mut().context("no input")?, "{command}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim() == "done", "{command}: {line:?}");
        Ok(())
    }

    fn key(&self, user: &str) -> Key {
        let text = |index: usize| self.keys[user][index].as_str().unwrap_or_default().to_owned();
        (text(0), text(1))
    }
}

/// A relay to the server that cuts its first `cuts` connections after so many bytes of answers, and counts them all.
fn cutting_relay(endpoint: &str, cuts: usize, after: usize) -> Result<(String, Arc<AtomicUsize>)> {
    let server = endpoint.strip_prefix("http://").context("no http")?.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", listener.local_addr()?);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let limit = if number < cuts { after } else { usize::MAX };
            let Ok(upstream) = TcpStream::connect(&server) else { return };
            let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || {
                // Whoever has read enough may be gone.
                let _ = std::io::copy(&mut (&upstream).take(limit as u64), &mut &client);
                let _ = (client.shutdown(Shutdown::Both), upstream.shutdown(Shutdown::Both));
            });
        }
    });
    Ok((address, count))
}

fn with_key(command: &mut Command, key: Option<&Key>) {
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        command.env_remove(name);
    }
    if let Some((id, secret)) = key {
        command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
    }
}

fn fetching(endpoint: &str, uri: &str, key: Option<&Key>, cache: &Path) -> Result<Command> {
    let mut command = Command::new(binary("atlas-engine")?);
    command.args(["fetch", "--model", uri, "--s3-endpoint", endpoint, "--cache-dir"]).arg(cache);
    command.args(["--termination-log", "/dev/null"]);
    with_key(&mut command, key);
    Ok(command)
}

fn fetch(endpoint: &str, uri: &str, key: Option<&Key>, cache: &Path) -> Result<Output> {
    Ok(fetching(endpoint, uri, key, cache)?.output()?)
}

fn fetched(output: &Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(String::from_utf8_lossy(&output.stdout).trim()).unwrap()
}

#[test]
fn models_in_buckets_are_planned_and_fetched_with_the_keys_that_may() -> Result<()> {
    let mut server = Server::start()?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let header = header_of_width(48);
    let mut file = header.clone();
    // Beyond what sockets buffer, so that a cut is one.
    file.extend((0..4_000_000_u32).map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[3]));
    let other: Vec<u8> = header.iter().chain(file[header.len()..].iter().rev()).copied().collect();
    std::fs::write(path("file"), &file)?;
    std::fs::write(path("other"), &other)?;
    let put = |server: &mut Server, verb: &str, name: &str| {
        server.obey(&[verb, name, &folder.path().join("file").display().to_string()])
    };
    // What has to be encoded alike for the address and for the signature.
    put(&mut server, "put", "a/wide b~c.gguf")?;
    put(&mut server, "put", "changes.gguf")?;
    // The server's check fails for such keys whoever signs, botocore too, so this one is public.
    put(&mut server, "publish", "a/public+é(1).gguf")?;
    let (endpoint, reader) = (server.endpoint.clone(), server.key("reader"));

    the_public_need_no_key(&endpoint, &path("public"), &file)?;
    server.obey(&["check", "on"])?;
    let uri = "s3://models/a/wide b~c.gguf";
    ensure!(fetched(&fetch(&endpoint, uri, Some(&reader), &path("plain"))?) == file, "another file");
    refusals_say_what_to_do(&server, &path("refused"))?;
    a_session_needs_its_token(&server, uri, &path("session"), &file)?;
    a_plan_reads_the_header_alone(&endpoint, uri, &reader, folder.path())?;

    // A download that breaks twice goes on where it stopped, and each request is signed anew.
    let (relay, connections) = cutting_relay(&endpoint, 2, 1_500_000)?;
    let output = fetch(&relay, uri, Some(&reader), &path("broken"))?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        log.contains("download interrupted") && !log.contains("X-Amz-"),
        "a signature is in the log: {log}"
    );
    ensure!(fetched(&output) == file, "another file");
    ensure!(connections.load(Ordering::SeqCst) == 3, "{connections:?}");

    // What changed in between is fetched from its beginning, and never mixed.
    let (relay, _) = cutting_relay(&endpoint, usize::MAX, 1_500_000)?;
    let cache = path("changed");
    let mut begun = Command::new(binary("atlas-engine")?);
    begun.args(["fetch", "--model", "s3://models/changes.gguf", "--s3-endpoint", &relay, "--cache-dir"]);
    with_key(begun.arg(&cache).stderr(Stdio::piped()), Some(&reader));
    let mut begun = begun.spawn()?;
    let mut log = BufReader::new(begun.stderr.take().context("no log")?).lines();
    ensure!(log.any(|line| line.is_ok_and(|line| line.contains("download interrupted"))), "it did not break");
    begun.kill()?;
    begun.wait()?;
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let part = std::fs::read_dir(&cache)?.flatten().map(name).find(|name| name.ends_with(".part"));
    ensure!(part.is_some(), "nothing is left to go on with");
    // The cache's name is made from the endpoint too, so another relay would begin another file: the part moves there.
    server.obey(&["put", "changes.gguf", &path("other").display().to_string()])?;
    let whole = fetch(&endpoint, "s3://models/changes.gguf", Some(&reader), &path("name"))?;
    let whole = String::from_utf8_lossy(&whole.stdout).trim().to_owned();
    let base = Path::new(&whole).file_name().context("no name")?.to_string_lossy().into_owned();
    let part = part.unwrap_or_default();
    for suffix in ["", ".etag"] {
        std::fs::rename(cache.join(format!("{part}{suffix}")), cache.join(format!("{base}.part{suffix}")))?;
    }
    let output = fetch(&endpoint, "s3://models/changes.gguf", Some(&reader), &cache)?;
    ensure!(fetched(&output) == other, "two files were mixed");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(log.contains("the file has changed since its download began"), "{log}");
    Ok(())
}

fn the_public_need_no_key(endpoint: &str, cache: &Path, file: &[u8]) -> Result<()> {
    ensure!(
        fetched(&fetch(endpoint, "s3://models/a/public+é(1).gguf", None, cache)?) == file,
        "another file"
    );
    let output = fetch(endpoint, "s3://models/changes.gguf", None, cache)?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(10) && log.contains("the bucket is not public"), "{log}");
    Ok(())
}

fn a_session_needs_its_token(server: &Server, uri: &str, cache: &Path, file: &[u8]) -> Result<()> {
    let key = server.key("session");
    let with_token = |token: &str| -> Result<Output> {
        let mut command = fetching(&server.endpoint, uri, Some(&key), cache)?;
        Ok(command.env("AWS_SESSION_TOKEN", token).output()?)
    };
    let output = with_token("another session's")?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(log.contains("AWS_SESSION_TOKEN has expired") && !log.contains("another%20session"), "{log}");
    let token = server.keys["session"][2].as_str().context("no token")?;
    ensure!(fetched(&with_token(token)?) == file, "another file");
    Ok(())
}

fn refusals_say_what_to_do(server: &Server, cache: &Path) -> Result<()> {
    let (reader, stranger) = (server.key("reader"), server.key("stranger"));
    let check = |uri: &str, key: &Key, says: &str| -> Result<()> {
        let output = fetch(&server.endpoint, uri, Some(key), cache)?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(10) && log.contains(says), "{uri}: {log}");
        ensure!(!log.contains(&key.1), "the secret is in the log: {log}");
        ensure!(!log.contains("X-Amz-"), "a signature is in the log: {log}");
        Ok(())
    };
    check("s3://models/changes.gguf", &stranger, "grant them s3:GetObject on it")?;
    check("s3://models/none.gguf", &reader, "the bucket has no such object")?;
    check("s3://elsewhere/none.gguf", &server.key("writer"), "there is no such bucket")?;
    let wrong = (reader.0.clone(), "not-the-secret".to_owned());
    check("s3://models/changes.gguf", &wrong, "AWS_SECRET_ACCESS_KEY is not the one")?;
    let nobody = ("AKIANOBODY".to_owned(), "not-the-secret".to_owned());
    check("s3://models/changes.gguf", &nobody, "does not know this AWS_ACCESS_KEY_ID")
}

/// The same address, guard and signature that the operator uses.
fn a_plan_reads_the_header_alone(endpoint: &str, uri: &str, reader: &Key, folder: &Path) -> Result<()> {
    let manifest = folder.join("model.yaml");
    let tier = format!(
        "{{name: only, gpuProfile: rx-7600, model: {{source: \"{uri}\", s3: {{endpoint: \"{endpoint}\"}}}}}}"
    );
    let text = format!(
        "apiVersion: atlas.gillsystems.com/v1alpha1\nkind: AtlasModel\nmetadata: {{name: code}}\nspec:\n  tiers: [{tier}]\n"
    );
    std::fs::write(&manifest, text)?;
    let plan = |key: Option<&Key>, allowed: bool| -> Result<Value> {
        let mut command = Command::new(binary("kubectl-atlas")?);
        command.args(["plan", "-o", "json", "-f"]).arg(&manifest);
        if allowed {
            command.args(["--header-allow-addresses", "127.0.0.1"]);
        }
        with_key(&mut command, key);
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&text).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let read = plan(Some(reader), true)?;
    ensure!(read["tiers"][0]["parameters"].as_u64().is_some_and(|count| count > 0), "{read}");
    let closed = plan(Some(reader), false)?;
    let problem = closed["tiers"][0]["problem"].as_str().unwrap_or_default();
    ensure!(problem.contains("--header-allow-addresses"), "{closed}");
    let wrong = plan(Some(&(reader.0.clone(), "wrong".into())), true)?;
    let problem = wrong["tiers"][0]["problem"].as_str().unwrap_or_default();
    ensure!(problem.contains("AWS_SECRET_ACCESS_KEY is not the one"), "{wrong}");
    Ok(())
}
