//! The HIP backend on the stand-in runtime against the CPU backend: the same program, the same weights, the same
//! steps.
//!
//! The reference keeps f32 activations rounded to int8 blocks, as the card's products take them, so that what is left
//! are roundings that fall the other way: a tolerance that is stated once. Where both sides are the card, bits are
//! compared.

#![cfg(feature = "hip")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod model;
mod support;

use atlas_engine_core::DeviceError;
use atlas_engine_core::ExitCode;
use atlas_engine_core::backend::{Backend, KvType, StepOut};
use atlas_kernels::CpuBackend;
use atlas_kernels::hip::{BUILT, HipBackend, HipError, Options};
use model::{Runner, Sequence, relative_error, tensor};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Root mean square of the difference of logits over that of the logits: what int8 activations cost in two layers.
const TOLERANCE: f64 = 0.02;

fn library() -> PathBuf {
    support::standin(BUILT.0, Path::new(env!("CARGO_MANIFEST_DIR")), Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// A card that lives as long as its files do.
struct Card {
    backend: HipBackend,
    _files: [tempfile::TempDir; 2],
}

/// Opens the stand-in with its settings and the options changed.
fn open(settings: &str, change: impl FnOnce(&mut Options)) -> Result<Card, HipError> {
    let root = support::root(110_000, support::VRAM_BYTES);
    let (folder, path) = support::standin_with(&library(), settings);
    let mut options = Options {
        root: root.path().to_owned(),
        library: Some(path),
        arena_bytes: Some(64 << 20),
        ..Options::new()
    };
    change(&mut options);
    HipBackend::open(&options).map(|backend| Card { backend, _files: [root, folder] })
}

fn card(settings: &str) -> Card {
    open(settings, |_| {}).unwrap()
}

/// A long prompt, another beside a decoding one, then decoding alone and together, over several blocks.
fn conversation(runner: &mut Runner<'_>) -> Vec<StepOut> {
    let mut first = Sequence::new(&[5, 1, 3, 7, 9, 11]);
    let mut second = Sequence::new(&[2, 8, 4, 0]);
    let mut steps = vec![runner.step(&mut [(&mut first, 37)])];
    steps.push(runner.step(&mut [(&mut first, 1), (&mut second, 20)]));
    steps.push(runner.step(&mut [(&mut first, 1), (&mut second, 3)]));
    for _ in 0..3 {
        steps.push(runner.step(&mut [(&mut second, 1)]));
        steps.push(runner.step(&mut [(&mut first, 1), (&mut second, 1)]));
    }
    // More rows than one launch of the matrix-vector kernels takes, of one sequence and of two.
    steps.push(runner.step(&mut [(&mut second, 9)]));
    steps.push(runner.step(&mut [(&mut first, 1), (&mut second, 15)]));
    steps.push(runner.step(&mut [(&mut first, 30)]));
    steps
}

#[test]
fn a_program_computes_what_the_cpu_computes() {
    for kv_type in [KvType::F16, KvType::Q8_0] {
        let mut cpu = CpuBackend::rounded(2).unwrap();
        let expected = conversation(&mut Runner::whole(&mut cpu, kv_type));
        let mut card = card("");
        let found = conversation(&mut Runner::whole(&mut card.backend, kv_type));
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            for (what, found, expected) in
                [("logits", &found.logits, &expected.logits), ("hidden", &found.hidden, &expected.hidden)]
            {
                assert_eq!(found.len(), expected.len(), "{what} of step {step}");
                let error = relative_error(found, expected);
                assert!(error <= TOLERANCE, "{kv_type:?}: {what} of step {step}: {error}");
            }
        }
        let usage = card.backend.memory_use();
        assert!(usage.weights > 0 && usage.kv_cache > 0 && usage.scratch > 0, "{usage:?}");
        assert!(card.backend.replayed_steps() > 0, "decode steps are captured and replayed");
    }
}

#[test]
fn captured_steps_have_the_bits_of_launched_ones() {
    let mut with = card("");
    let mut without = open("", |options| options.graphs = false).unwrap();
    let with_graphs = conversation(&mut Runner::whole(&mut with.backend, KvType::F16));
    assert_eq!(with_graphs, conversation(&mut Runner::whole(&mut without.backend, KvType::F16)));
    assert_eq!(without.backend.replayed_steps(), 0);
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_small_company() {
    let mut one = card("");
    let mut runner = Runner::whole(&mut one.backend, KvType::F16);
    let (mut first, mut second) = (Sequence::new(&[5, 1, 3]), Sequence::new(&[9, 2]));
    let whole = runner.step(&mut [(&mut first, 6), (&mut second, 2)]);
    let mut again = Sequence::new(&[5, 1, 3]);
    for _ in 0..5 {
        runner.step(&mut [(&mut again, 1)]);
    }
    let alone = runner.step(&mut [(&mut again, 1)]);
    assert_eq!(alone.logits, whole.logits[..alone.logits.len()]);
}

#[test]
fn layers_on_the_cpu_hand_over_to_the_card() {
    let mut cpu = CpuBackend::new(2).unwrap();
    let expected = conversation(&mut Runner::whole(&mut cpu, KvType::F16));
    let (mut lower, mut upper) = (CpuBackend::new(2).unwrap(), card(""));
    let found = conversation(&mut Runner::split(&mut lower, &mut upper.backend, KvType::F16));
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = relative_error(&found.logits, &expected.logits);
        assert!(error <= TOLERANCE, "step {step}: {error}");
    }
}

#[test]
fn copied_blocks_hold_what_was_copied() {
    let mut card = card("");
    let mut runner = Runner::whole(&mut card.backend, KvType::Q8_0);
    let mut first = Sequence::new(&[5, 1, 3]);
    runner.step(&mut [(&mut first, 20)]);
    let mut copy = first.clone();
    copy.blocks = vec![7, 11];
    runner.copy(&[(first.blocks[0], 7), (first.blocks[1], 11)]);
    let expected = runner.step(&mut [(&mut first, 1)]);
    assert_eq!(runner.step(&mut [(&mut copy, 1)]).logits, expected.logits);
}

/// Settings of the stand-in, a change of the options, and the exit code that follows.
type Case = (&'static str, fn(&mut Options), ExitCode);

#[test]
fn a_card_that_is_not_as_planned_or_not_there_is_refused() {
    let cases: [Case; 9] = [
        ("", |o| o.expected.gfx_target = Some("gfx1102".to_owned()), ExitCode::WrongCard),
        ("", |o| o.expected.vram_bytes = Some(1), ExitCode::WrongCard),
        ("", |o| o.library = Some("libmissing.so".into()), ExitCode::NoRuntime),
        ("", |o| o.root = "/nonexistent".into(), ExitCode::NoRuntime),
        ("", |o| o.arena_bytes = Some(1 << 40), ExitCode::DoesNotFit),
        ("pci=0000:0a:00.0", |_| {}, ExitCode::NoRuntime),
        ("fault=hipMalloc:1:2", |_| {}, ExitCode::OutOfMemory),
        ("fault=hipInit:1:100", |_| {}, ExitCode::Lost),
        ("fault=hipModuleLoadData:3:200", |_| {}, ExitCode::Internal),
    ];
    for (settings, change, expected) in cases {
        let error = open(settings, change).err().unwrap();
        assert_eq!(error.exit_code(), expected, "{settings}: {error}");
    }
}

#[test]
fn a_card_without_kernels_in_this_build_is_refused() {
    let root = support::root(90_400, support::VRAM_BYTES);
    let (_folder, path) = support::standin_with(&library(), "");
    let options = Options { root: root.path().to_owned(), library: Some(path), ..Options::new() };
    let error = HipBackend::open(&options).err().unwrap();
    assert!(matches!(&error, HipError::UnknownTarget { found, .. } if found == "gfx940"), "{error}");
    assert_eq!(error.exit_code(), ExitCode::WrongCard);
}

#[test]
fn a_runtime_that_lacks_a_function_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("empty.c"), folder.path().join("libamdhip64.so"));
    std::fs::write(&source, "int hipInit(unsigned flags) { return (int)flags; }").unwrap();
    let compiler = BUILT.0.replace("clang++", "clang");
    let mut command = std::process::Command::new(compiler);
    assert!(command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap().success());
    let path = library.to_str().unwrap().to_owned();
    let error = open("", |options| options.library = Some(path)).err().unwrap();
    assert!(matches!(error, HipError::Symbol { .. }), "{error}");
    assert_eq!(error.exit_code(), ExitCode::NoRuntime);
}

/// Runs until the first error, which has to come.
fn first_error(settings: &str) -> DeviceError {
    let mut card = open(settings, |options| options.step_timeout = Duration::from_millis(300)).unwrap();
    let mut runner = Runner::whole(&mut card.backend, KvType::F16);
    let mut sequence = Sequence::new(&[5, 1, 3]);
    (0..40)
        .find_map(|_| runner.try_step(&mut [(&mut sequence, 1)]).err())
        .unwrap_or_else(|| panic!("{settings} does not show"))
}

#[test]
fn faults_in_flight_are_told_apart() {
    for (settings, expected) in [
        ("fault=hipGraphLaunch:4:719", "lost"),
        ("fault=hipGraphLaunch:4:2", "memory"),
        ("fault=hipMemcpyAsync:60:2", "memory"),
        ("fault=hipEventQuery:50:700", "lost"),
        ("fault=hipGraphLaunch:3:1", "call"),
        ("hang=100", "hung"),
    ] {
        let error = first_error(settings);
        let kind = match &error {
            DeviceError::Lost { .. } => "lost",
            DeviceError::OutOfMemory { .. } => "memory",
            DeviceError::Call { .. } => "call",
            DeviceError::Hung { .. } => "hung",
            _ => "other",
        };
        assert_eq!(kind, expected, "{settings}: {error}");
    }
}

/// A capture that the runtime refuses costs speed and nothing else.
#[test]
fn a_runtime_that_cannot_capture_still_computes() {
    let mut whole = card("");
    let mut broken = card("fault=hipGraphInstantiateWithFlags:1:801");
    let expected = conversation(&mut Runner::whole(&mut whole.backend, KvType::F16));
    assert_eq!(conversation(&mut Runner::whole(&mut broken.backend, KvType::F16)), expected);
    assert_eq!(broken.backend.replayed_steps(), 0);
}

#[test]
fn weights_that_no_kernel_takes_are_refused_by_name() {
    let mut card = card("");
    let unknown = tensor("blk.0.attn_q.weight", 10, 1, 256, 84);
    let error = card.backend.load(&[unknown]).unwrap_err();
    assert!(
        matches!(&error, DeviceError::TensorType { name, .. } if name == "blk.0.attn_q.weight"),
        "{error}"
    );
    let short = tensor("w", 2, 4, 64, 17);
    assert!(matches!(card.backend.load(&[short]), Err(DeviceError::Shape { .. })));
    let large = tensor("w", 0, 1 << 19, 64, 256);
    assert!(matches!(card.backend.load(&[large]), Err(DeviceError::OutOfMemory { .. })));
}

#[test]
fn batches_that_would_lead_kernels_astray_are_refused() {
    let mut card = card("");
    let mut runner = Runner::whole(&mut card.backend, KvType::F16);
    let sequence = Sequence::new(&[5, 1, 3]);
    for (what, change) in [
        ("token", (|s: &mut Sequence| s.ids = vec![9999]) as fn(&mut Sequence)),
        ("block", |s| s.blocks = vec![9999]),
    ] {
        let mut wrong = sequence.clone();
        change(&mut wrong);
        let error = runner.try_step(&mut [(&mut wrong, 1)]).unwrap_err();
        assert!(matches!(error, DeviceError::Shape { .. }), "{what}: {error}");
    }
    let error = runner.try_step(&mut [(&mut sequence.clone(), 100)]).unwrap_err();
    assert!(matches!(error, DeviceError::Shape { what: "rows of a step", .. }), "{error}");
}
