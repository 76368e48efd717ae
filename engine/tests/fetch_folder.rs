//! `atlas-engine fetch` of folders of safetensors: from a hub that breaks off, changes, refuses and lacks files, and from
//! a plain server.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/hub.rs"]
mod hub;

use hub::Hub;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const SOURCE: &str = "hf://acme/model";

fn bytes(seed: u8) -> Vec<u8> {
    (0..200_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect()
}

/// What a repository has that nobody asks for, beside what a model is made of.
fn files() -> BTreeMap<String, Vec<u8>> {
    let index = json!({"metadata": {"total_size": 400_000}, "weight_map": {"a": FIRST, "b": SECOND}});
    let text = |text: &str| text.as_bytes().to_vec();
    BTreeMap::from([
        ("config.json".to_owned(), text("{}")),
        ("tokenizer.json".to_owned(), bytes(9)),
        ("tokenizer_config.json".to_owned(), text("{\"a\": 1}")),
        ("model.safetensors.index.json".to_owned(), text(&index.to_string())),
        (FIRST.to_owned(), bytes(1)),
        (SECOND.to_owned(), bytes(2)),
        ("pytorch_model.bin".to_owned(), bytes(3)),
        ("README.md".to_owned(), text("# model")),
    ])
}

const NEEDED: [&str; 6] =
    ["config.json", FIRST, SECOND, "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"];

fn command(hub: &Hub, source: &str, cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
    command.args(["fetch", "--model", source, "--cache-dir"]).arg(cache);
    command.env("HF_ENDPOINT", &hub.url).env_remove("HF_TOKEN");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fetches, and finds exactly what a model needs, whole.
fn fetched(hub: &Hub, source: &str, cache: &Path) -> PathBuf {
    checked(hub, &command(hub, source, cache).output().unwrap())
}

fn checked(hub: &Hub, output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", said(output));
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let state = hub.state();
    for name in NEEDED {
        assert!(std::fs::read(folder.join(name)).unwrap() == state.files[name], "{name} is another file");
    }
    let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let shown = names.filter(|name| !name.to_string_lossy().starts_with('.')).count();
    assert_eq!(shown, NEEDED.len(), "{}", folder.display());
    folder
}

fn refused(hub: &Hub, source: &str, cache: &Path, code: i32, says: &[&str]) {
    let output = command(hub, source, cache).output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for words in says {
        assert!(said.contains(words), "{words:?} is missing: {said}");
    }
}

#[test]
fn a_model_needs_few_of_a_repositorys_files_and_each_of_them_once() {
    let (hub, cache) = (Hub::start(files()), tempfile::tempdir().unwrap());
    let folder = fetched(&hub, SOURCE, cache.path());
    assert!(folder.file_name().unwrap().to_string_lossy().ends_with("-model"));
    let asked = hub.take_asked();
    assert_eq!(asked.keys().map(String::as_str).collect::<Vec<_>>(), NEEDED);
    assert!(asked.values().all(|times| times == &[0]), "{asked:?}");
    assert_eq!(fetched(&hub, SOURCE, cache.path()), folder);
    assert!(hub.take_asked().is_empty(), "what is cached is not asked for");
    // The same folder by its files, and under a plain address, is another source.
    let by_file = fetched(&hub, &format!("{SOURCE}/model.safetensors.index.json@main"), cache.path());
    let plain = fetched(&hub, &format!("{}/plain/", hub.url), cache.path());
    assert!(by_file != folder && plain != folder);
    let left = std::fs::read_dir(cache.path()).unwrap().count();
    assert_eq!(left, 3, "nothing half-done is left");
}

#[test]
fn a_broken_line_goes_on_within_the_file() {
    for source in [SOURCE.to_owned(), "/plain/".to_owned()] {
        let (hub, cache) = (Hub::start(files()), tempfile::tempdir().unwrap());
        hub.state().cut = Some((SECOND.to_owned(), 120_000));
        let source = if source == SOURCE { source } else { format!("{}{source}", hub.url) };
        fetched(&hub, &source, cache.path());
        let asked = hub.take_asked();
        let [0, at] = asked[SECOND][..] else { panic!("{asked:?}") };
        assert!(at > 0 && at <= 120_000, "{asked:?}");
        assert_eq!(asked[FIRST], [0]);
    }
}

#[test]
fn a_fetch_that_was_given_up_keeps_what_is_whole_and_of_the_same_version() {
    let (hub, cache) = (Hub::start(files()), tempfile::tempdir().unwrap());
    hub.state().withheld = vec![SECOND.to_owned()];
    refused(&hub, SOURCE, cache.path(), 10, &["403", SECOND]);
    hub.take_asked();
    hub.state().withheld.clear();
    fetched(&hub, SOURCE, cache.path());
    assert_eq!(hub.take_asked().keys().map(String::as_str).collect::<Vec<_>>(), [SECOND]);

    let cache = tempfile::tempdir().unwrap();
    hub.state().withheld = vec![SECOND.to_owned()];
    refused(&hub, SOURCE, cache.path(), 10, &[]);
    hub.state().withheld.clear();
    // The repository moves on: one file is another, so the commit is.
    hub.state().files.insert(FIRST.to_owned(), bytes(7));
    hub.take_asked();
    fetched(&hub, SOURCE, cache.path());
    assert_eq!(hub.take_asked().keys().map(String::as_str).collect::<Vec<_>>(), [FIRST, SECOND]);
}

#[test]
fn bytes_of_an_older_version_are_not_gone_on_with() {
    let (hub, cache) = (Hub::start(files()), tempfile::tempdir().unwrap());
    let folder = fetched(&hub, SOURCE, cache.path());
    // As a process leaves it that was killed in the middle, without a word of the version.
    let staging = cache.path().join(format!("{}.part", folder.file_name().unwrap().to_string_lossy()));
    std::fs::rename(&folder, &staging).unwrap();
    std::fs::remove_file(staging.join(SECOND)).unwrap();
    std::fs::write(staging.join(format!("{SECOND}.part")), &bytes(5)[..1000]).unwrap();
    hub.take_asked();
    fetched(&hub, SOURCE, cache.path());
    assert_eq!(hub.take_asked()[SECOND], [1000, 0], "the sum told, and it was fetched from its beginning");
}

#[test]
fn a_file_whose_sum_is_wrong_is_removed_and_told() {
    let (hub, cache) = (Hub::start(files()), tempfile::tempdir().unwrap());
    hub.state().damaged = Some(FIRST.to_owned());
    refused(&hub, SOURCE, cache.path(), 12, &[FIRST, "has the sha256"]);
    hub.state().damaged = None;
    fetched(&hub, SOURCE, cache.path());
}

#[test]
fn the_token_opens_a_gated_repository_and_stays_with_the_hub() {
    let (hub, cache) = (Hub::start(files()), tempfile::tempdir().unwrap());
    hub.state().token = Some("secret".to_owned());
    refused(&hub, SOURCE, cache.path(), 10, &["401", "gated or private; give a token in HF_TOKEN"]);
    let with = |token: &str| command(&hub, SOURCE, cache.path()).env("HF_TOKEN", token).output().unwrap();
    let output = with("other");
    assert!(said(&output).contains("accept its terms"), "{}", said(&output));
    checked(&hub, &with("secret"));
    assert!(!hub.state().leaked, "the token went to the files' host");
}

#[test]
fn what_is_not_there_is_named_before_anything_large_is_fetched() {
    let hub = Hub::start(files());
    let check = |source: &str, without: &[&str], code: i32, says: &[&str]| {
        let cache = tempfile::tempdir().unwrap();
        let all = hub.state().files.clone();
        hub.state().files.retain(|name, _| !without.contains(&name.as_str()));
        hub.take_asked();
        refused(&hub, source, cache.path(), code, says);
        let asked = hub.take_asked();
        assert!(!asked.contains_key(FIRST) && !asked.contains_key(SECOND), "{asked:?}");
        hub.state().files = all;
    };
    let plain = format!("{}/plain/", hub.url);
    let incomplete = "which its index names: the upload is incomplete";
    check(SOURCE, &[SECOND], 10, &[SECOND, incomplete]);
    check(&plain, &[FIRST], 10, &[FIRST, incomplete]);
    check(SOURCE, &["tokenizer.json"], 10, &["lacks tokenizer.json"]);
    check(&plain, &["tokenizer.json"], 10, &["tokenizer.json answers 404"]);
    let index = "model.safetensors.index.json";
    check(SOURCE, &[index], 10, &["lacks model.safetensors or model.safetensors.index.json"]);
    check(&plain, &[index], 10, &["lacks model.safetensors, and model.safetensors.index.json too"]);
    check("hf://acme/model@v9", &[], 10, &["404", "no such revision"]);
    check("hf://acme/none", &[], 10, &["401", "gated or private"]);
    check("hf://acme", &[], 2, &["expected hf://OWNER/REPO"]);
}

#[test]
fn what_the_disk_cannot_hold_is_not_begun() {
    let hub = Hub::start(files());
    hub.state().announced.insert(SECOND.to_owned(), 1 << 60);
    for source in [SOURCE.to_owned(), format!("{}/plain/", hub.url)] {
        let cache = tempfile::tempdir().unwrap();
        hub.take_asked();
        refused(&hub, &source, cache.path(), 10, &["bytes free", "1152921504607046976 more"]);
        assert!(!hub.take_asked().contains_key(FIRST));
    }
}

#[test]
fn what_is_read_as_a_whole_has_a_largest_size() {
    let hub = Hub::start(files());
    let plain = format!("{}/plain/", hub.url);
    let check = |source: &str, says: &[&str]| {
        let cache = tempfile::tempdir().unwrap();
        refused(&hub, source, cache.path(), 11, says);
        let staging = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path());
        let left = staging.filter(|path| path.is_dir()).flat_map(|path| std::fs::read_dir(path).unwrap());
        let largest = left.map(|entry| entry.unwrap().metadata().unwrap().len()).max();
        assert!(largest < Some(16 << 20), "{source}: {largest:?} bytes are left on the disk");
    };
    // What is announced is not begun.
    hub.state().announced.insert("tokenizer.json".to_owned(), 1 << 40);
    check(SOURCE, &["tokenizer.json has at least 1099511627776 bytes", "134217728"]);
    assert!(!hub.take_asked().contains_key("tokenizer.json"));
    hub.state().announced.clear();
    hub.state().files.insert("config.json".to_owned(), vec![b' '; 17 << 20]);
    check(&plain, &["/plain/config.json has at least 17825792 bytes", "16777216"]);
    check(SOURCE, &["/config.json has at least 17825792 bytes", "16777216"]);
    // What is not is given up on the way.
    hub.state().unannounced = vec!["config.json".to_owned()];
    check(&plain, &["/plain/config.json has at least 167", "16777216"]);
    hub.state().padding = 33 << 20;
    check(SOURCE, &["/api/models/acme/model/revision/main has at least", "33554432"]);
}

#[test]
fn a_folder_has_no_sum_of_one_file() {
    let (hub, cache) = (Hub::start(files()), tempfile::tempdir().unwrap());
    let output = command(&hub, SOURCE, cache.path()).args(["--sha256", &"0".repeat(64)]).output().unwrap();
    assert!(output.status.code() == Some(2) && said(&output).contains("name a commit"), "{}", said(&output));
    assert!(hub.take_asked().is_empty());
}

#[test]
fn engines_that_share_a_cache_fetch_a_model_once() {
    let (hub, cache) = (Hub::start(files()), tempfile::tempdir().unwrap());
    let children: Vec<_> = (0..3).map(|_| command(&hub, SOURCE, cache.path()).spawn().unwrap()).collect();
    for child in children {
        checked(&hub, &child.wait_with_output().unwrap());
    }
    let asked = hub.take_asked();
    assert!(asked.values().all(|times| times == &[0]), "{asked:?}");
}
