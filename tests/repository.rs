//! Rules of the repository that no compiler checks: sizes, lints, documents, generated files.
//!
//! They look at files alone, and only at those that git knows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Longest source file: past this, split by responsibility.
const MAX_LINES: usize = 450;

#[test]
fn no_source_file_is_longer_than_one_sitting() -> Result<()> {
    check(&["rs", "go", "sh", "py"], |path, text| {
        let lines = text.lines().count();
        (lines > MAX_LINES)
            .then(|| format!("{path}: {lines} lines, at most {MAX_LINES}: split it by responsibility"))
    })
}

#[test]
fn every_crate_takes_the_workspace_lints_but_the_one_with_unsafe() -> Result<()> {
    check(&["toml"], |path, text| {
        if !path.ends_with("Cargo.toml") || path == "Cargo.toml" || path == "engine/kernels/Cargo.toml" {
            return None;
        }
        (!text.contains("[lints]\nworkspace = true"))
            .then(|| format!("{path}: add [lints] with workspace = true"))
    })
}

#[test]
fn unsafe_code_stays_in_the_kernels() -> Result<()> {
    // Written in two parts, so that this file does not find itself.
    let patterns = [concat!("unsa", "fe {"), concat!("unsa", "fe fn"), concat!("unsa", "fe impl")];
    check(&["rs"], |path, text| {
        if path.starts_with("engine/kernels/") {
            return None;
        }
        let line = text.lines().position(|line| {
            !line.trim_start().starts_with("//") && patterns.iter().any(|pattern| line.contains(pattern))
        })?;
        Some(format!("{path}:{}: the only crate with it is engine/kernels", line + 1))
    })
}

#[test]
fn every_module_opens_with_what_it_does() -> Result<()> {
    check(&["rs"], |path, text| {
        (!text.starts_with("//! ")).then(|| format!("{path}: begin with a `//!` sentence"))
    })
}

#[test]
fn nothing_names_the_machine_it_was_written_on() -> Result<()> {
    let folders = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    check(&["rs", "go", "sh", "py", "toml", "yaml", "md", "json", "tpl", "txt"], |path, text| {
        let (line, folder) = text.lines().enumerate().find_map(|(index, line)| {
            Some((index + 1, *folders.iter().find(|folder| line.contains(**folder))?))
        })?;
        Some(format!("{path}:{line}: {folder} is a folder of one machine"))
    })
}

#[test]
fn documents_have_one_sentence_per_line() -> Result<()> {
    check(&["md"], |path, text| {
        let line = prose(text).find(|(_, line)| sentences(line) > 1)?;
        Some(format!("{path}:{}: two sentences on a line: {}", line.0, line.1))
    })
}

#[test]
fn links_between_documents_lead_somewhere() -> Result<()> {
    check(&["md"], |path, text| {
        let folder = repository().join(path).parent()?.to_owned();
        text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).find_map(|target| {
            let file = target.split('#').next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            (!elsewhere && !folder.join(file).exists()).then(|| format!("{path}: {target} is not there"))
        })
    })
}

#[test]
fn documents_name_make_targets_that_exist() -> Result<()> {
    let makefile = std::fs::read_to_string(repository().join("Makefile"))?;
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| is_target(name))
        .collect();
    check(&["md"], |path, text| {
        // In running text a target stands in backticks, in a block it begins the line.
        let in_text = text.split("`make ").skip(1);
        let in_blocks =
            text.lines().filter_map(|line| line.strip_prefix("    ")?.trim_start().strip_prefix("make "));
        in_text.chain(in_blocks).find_map(|rest| {
            let name = rest.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).next().unwrap_or_default();
            (is_target(name) && !targets.contains(name))
                .then(|| format!("{path}: the Makefile has no target {name}"))
        })
    })
}

#[test]
fn the_images_have_the_names_and_entry_points_of_the_contract() -> Result<()> {
    let dockerfile = std::fs::read_to_string(repository().join("Dockerfile"))?;
    for (target, entry) in
        [("operator", "atlas-operator"), ("engine-cpu", "atlas-engine"), ("engine-hip", "atlas-engine")]
    {
        let stage = dockerfile
            .split("\nFROM ")
            .find(|stage| stage.lines().next().is_some_and(|line| line.ends_with(&format!(" AS {target}"))))
            .with_context(|| format!("the Dockerfile has no target {target}"))?;
        for line in [format!("ENTRYPOINT [\"/usr/local/bin/{entry}\"]"), "USER 65532:65532".into()] {
            ensure!(stage.contains(&line), "target {target} lacks: {line}");
        }
    }
    Ok(())
}

/// Runs `rule` over every file with one of these extensions and reports all that break it.
fn check(extensions: &[&str], rule: impl Fn(&str, &str) -> Option<String>) -> Result<()> {
    let (mut looked_at, mut broken) = (0, Vec::new());
    for path in files()? {
        let extension = Path::new(&path).extension().and_then(|e| e.to_str()).unwrap_or_default();
        // A file that was deleted and not committed yet is still in git's list.
        let Ok(text) = std::fs::read_to_string(repository().join(&path)) else { continue };
        if extensions.contains(&extension) {
            looked_at += 1;
            broken.extend(rule(&path, &text));
        }
    }
    ensure!(looked_at > 0, "no file with {extensions:?}: the rule looks at nothing");
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// Every file that git has, or would add.
fn files() -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(repository())
        .output()
        .context("git is needed to list the files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// Lines of running text with their numbers: no code, tables, headings or quotes.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        let code = fenced || line.starts_with("    ");
        (!code && !line.starts_with(['|', '#', '>'])).then_some((index + 1, line))
    })
}

/// Sentence ends that another sentence follows, plus one. Short words before the stop are abbreviations.
fn sentences(line: &str) -> usize {
    let words: Vec<&str> = line.split_whitespace().collect();
    1 + words
        .windows(2)
        .filter(|pair| {
            let ends = pair[0].ends_with(['.', '!', '?'])
                && pair[0].len() > 3
                && !pair[0].starts_with(char::is_numeric);
            ends && pair[1].starts_with(char::is_uppercase) && !["e.g.", "i.e.", "etc."].contains(&pair[0])
        })
        .count()
}

fn is_target(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-')
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
