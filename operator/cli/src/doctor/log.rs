//! What the kernel's log says about cards: lines that mean something, and what to do about them.

/// A line to look for.
#[derive(Debug)]
pub struct Pattern {
    /// What the line holds; every part, in any order.
    pub parts: &'static [&'static str],
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// Messages of the amdgpu and amdkfd drivers.
pub const PATTERNS: &[Pattern] = &[
    Pattern {
        parts: &["PCIE atomic ops is not supported"],
        meaning: "the slot does no PCIe atomics, so compute is refused",
        remedy: "move the card to a slot of the CPU's root port",
    },
    Pattern {
        parts: &["MES failed to"],
        meaning: "the card's scheduler firmware hung",
        remedy: "update kernel and firmware; restart the node where it repeats",
    },
    Pattern {
        parts: &["GPU reset begin"],
        meaning: "the card was reset",
        remedy: "see what the log says before it; update firmware, check power and temperature",
    },
    Pattern {
        parts: &["ring", "timeout"],
        meaning: "work on the card did not end",
        remedy: "update kernel and firmware; a card that repeats it may be faulty or short of power",
    },
    Pattern {
        parts: &["VM_L2_PROTECTION_FAULT"],
        meaning: "a program reached for memory that is not its own",
        remedy: "update the engine image; report it with the lines around it",
    },
    Pattern {
        parts: &["amdgpu", "failed to load firmware"],
        meaning: "the card's firmware is missing",
        remedy: "install the distribution's firmware package for AMD GPUs and restart",
    },
    Pattern {
        parts: &["amdgpu", "Not enough memory for command submission"],
        meaning: "the card's memory was full",
        remedy: "plan with a larger reservedVram, or lower maxBatch or contextTokens of the tier",
    },
];

/// The patterns that a log holds, each with its last line.
pub fn find_patterns(log: &str) -> Vec<(&'static Pattern, &str)> {
    PATTERNS
        .iter()
        .filter_map(|pattern| {
            let last = log.lines().rev().find(|line| pattern.parts.iter().all(|part| line.contains(part)))?;
            Some((pattern, last.trim()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_mean_something_are_found_once_each() {
        let log = "[    1.0] amdgpu 0000:03:00.0: amdgpu: ring gfx_0.0.0 timeout, signaled seq=1\n\
                   [    2.0] something else\n\
                   [    3.0] amdgpu 0000:03:00.0: amdgpu: ring comp_1.0.0 timeout, signaled seq=2\n\
                   [    4.0] kfd kfd: amdgpu: skipped device 1002:744c, PCI rejects atomics. PCIE atomic ops is not supported\n";
        let found: Vec<_> =
            find_patterns(log).into_iter().map(|(pattern, line)| (pattern.parts[0], line)).collect();
        assert_eq!(found.len(), 2);
        assert!(found[0].1.starts_with("[    4.0]") && found[1].1.contains("comp_1.0.0"), "{found:?}");
        assert!(find_patterns("all is well\n").is_empty());
    }
}
