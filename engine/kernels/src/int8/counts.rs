//! How many instructions a panel takes, counted one by one, against the table beside this file.
//!
//! Seconds say little on a shared machine; instructions are the same everywhere. A child process stops itself, its
//! parent lets it go one instruction at a time, which works for every instruction set that the processor has. The table
//! is what this compiler makes of the kernels: `ATLAS_UPDATE=1` writes it anew.

use super::*;
use crate::blocks::BlockType;
use crate::pool::Pool;
use crate::product::Weights;
use crate::testing::{Numbers, quantized};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

const TYPES: [BlockType; 7] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q8_0,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
    BlockType::F16,
];
/// One panel of 32 rows by one superblock of the K types.
const ROWS: usize = 32;
const COLUMNS: usize = 256;
/// By how much a count may differ: compilers of one version differ with what else they inline.
const TOLERANCE: f64 = 0.03;

/// Instructions of `work`, which neither allocates nor locks: it runs in a child of a process with threads.
fn instructions(work: &dyn Fn()) -> u64 {
    // SAFETY: the child calls nothing but `work`, which takes no lock that another thread might have held, and signals.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let traced = ptrace::traceme().and_then(|()| raise(Signal::SIGSTOP));
            if traced.is_ok() {
                work();
            }
            // The parent sees how this process ends, whatever the answer is.
            let _ = raise(Signal::SIGKILL);
            unreachable!("nobody outlives this signal")
        }
    };
    let stopped = waitpid(child, None).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{stopped:?}");
    let mut count = 0;
    loop {
        ptrace::step(child, None).unwrap();
        match waitpid(child, None).unwrap() {
            WaitStatus::Stopped(..) => count += 1,
            WaitStatus::Signaled(..) => return count,
            other => panic!("the counted process has become {other:?}"),
        }
    }
}

/// The counted instructions by type, rows of activations and instruction set.
fn counted() -> BTreeMap<(String, usize, String), u64> {
    let pool = Pool::new(1).unwrap();
    let around = instructions(&|| {});
    let mut counts = BTreeMap::new();
    for block in TYPES {
        let (bytes, _) = quantized(block, &Numbers(7).list(ROWS * COLUMNS));
        for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Portable) {
            let weights = Weights::new(block, &bytes, ROWS, COLUMNS).unwrap();
            let packed = Packed::on(isa, &pool, &[weights]).unwrap();
            for rows in [1, 6] {
                let mut x = Activations::new();
                x.fill(&pool, &Numbers(8).list(rows * COLUMNS), COLUMNS, packed.operands());
                let items = packed.items(rows, 1);
                assert_eq!(items.count(), 1);
                let mut out = vec![0.0; rows * ROWS];
                let out = Output::new(out.as_mut_ptr());
                let count = instructions(&|| {
                    // SAFETY: the output has all rows of both sides, and nobody else is there.
                    unsafe { packed.multiply_item(&items, 0, &x, &out) };
                });
                counts.insert((format!("{block:?}"), rows, format!("{isa:?}")), count - around);
            }
        }
    }
    counts
}

#[test]
fn a_panel_takes_no_more_instructions_than_recorded() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/int8/counts.tsv");
    let counts = counted();
    if std::env::var_os("ATLAS_UPDATE").is_some() {
        let mut text = "type\trows\tset\tinstructions\n".to_owned();
        for ((block, rows, isa), count) in &counts {
            writeln!(text, "{block}\t{rows}\t{isa}\t{count}").unwrap();
        }
        std::fs::write(&path, text).unwrap();
    }
    let table = std::fs::read_to_string(&path).unwrap();
    let mut recorded = BTreeMap::new();
    for line in table.lines().skip(1) {
        let [block, rows, isa, count] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line:?} has other columns");
        };
        recorded
            .insert((block.to_owned(), rows.parse().unwrap(), isa.to_owned()), count.parse::<u64>().unwrap());
    }
    for (what, count) in &counts {
        let expected = *recorded.get(what).unwrap_or_else(|| panic!("{what:?} is not in {}", path.display()));
        let limit = expected as f64 * (1.0 + TOLERANCE) + 20.0;
        assert!(*count as f64 <= limit, "{what:?} takes {count} instructions where {expected} are recorded");
    }
}
