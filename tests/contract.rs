//! docs/contracts.md from both sides: what the operator says and expects against what the engine takes and answers.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use atlas_engine_core::ExitCode;
use atlas_operator_core::engine_contract::EngineExit;
use atlas_tests::support::binary;

/// The engine's codes; a new one does not compile until it is listed.
fn engine_codes() -> BTreeSet<(i32, String)> {
    let codes = [
        ExitCode::Internal,
        ExitCode::Usage,
        ExitCode::ModelUnavailable,
        ExitCode::ModelInvalid,
        ExitCode::ChecksumMismatch,
        ExitCode::DoesNotFit,
        ExitCode::PortInUse,
        ExitCode::WrongCard,
        ExitCode::NoPermission,
        ExitCode::NoRuntime,
        ExitCode::Hang,
        ExitCode::Lost,
        ExitCode::OutOfMemory,
    ];
    for code in codes {
        match code {
            ExitCode::Success
            | ExitCode::Internal
            | ExitCode::Usage
            | ExitCode::ModelUnavailable
            | ExitCode::ModelInvalid
            | ExitCode::ChecksumMismatch
            | ExitCode::DoesNotFit
            | ExitCode::PortInUse
            | ExitCode::WrongCard
            | ExitCode::NoPermission
            | ExitCode::NoRuntime
            | ExitCode::Hang
            | ExitCode::Lost
            | ExitCode::OutOfMemory => {}
        }
    }
    codes.iter().map(|code| (i32::from(code.number()), format!("{code:?}"))).collect()
}

/// Rows of the document's table of exit codes that name one.
fn documented_codes(text: &str) -> BTreeSet<(i32, String)> {
    let section = text.split("## Engine exit codes").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        Some((cells.next()?.parse().ok()?, cells.next()?.to_owned()))
    });
    rows.filter(|(code, _)| *code != 0).collect()
}

fn read(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

#[test]
fn exit_codes_mean_the_same_to_the_engine_the_operator_and_the_reader() -> Result<()> {
    let operator = EngineExit::ALL.iter().map(|exit| (exit.code(), format!("{exit:?}"))).collect();
    let documented = documented_codes(&read("docs/contracts.md")?);
    ensure!(engine_codes() == operator, "engine {:?}, operator {operator:?}", engine_codes());
    ensure!(documented == operator, "document {documented:?}, operator {operator:?}");
    Ok(())
}

#[test]
fn the_engine_takes_every_flag_that_the_operator_renders() -> Result<()> {
    let rendered = read(
        "operator/src/desired/snapshots/atlas_operator__desired__tests__Deployment-code-t-primary.snap",
    )?;
    let flags: BTreeSet<&str> =
        rendered.lines().filter_map(|line| line.trim().strip_prefix("- \"--")?.strip_suffix('"')).collect();
    ensure!(flags.len() > 10, "only {flags:?}: does the snapshot still hold the engine's arguments?");
    let help = Command::new(binary("atlas-engine")?).args(["serve", "--help"]).output()?;
    let help = String::from_utf8(help.stdout)?;
    let taken: BTreeSet<&str> =
        help.split_whitespace().filter_map(|word| word.trim_end_matches("...").strip_prefix("--")).collect();
    let unknown: Vec<_> = flags.difference(&taken).collect();
    ensure!(unknown.is_empty(), "atlas-engine serve does not take {unknown:?}");
    Ok(())
}
