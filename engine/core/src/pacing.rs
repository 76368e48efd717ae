//! How many tokens a step may compute, so that it stays within the time that others are made to wait.

use crate::speculation::StepCost;
use std::time::Duration;

/// Time that a step may take.
pub const STEP_TARGET: Duration = Duration::from_millis(200);

/// Measured steps, and what follows from them.
#[derive(Debug, Clone, PartialEq)]
pub struct Pacer {
    least: usize,
    most: usize,
    budget: usize,
    /// Seconds of a step of one row.
    single: Option<f64>,
    /// Seconds that one more row adds.
    row: Option<f64>,
    /// Rows of the largest step.
    largest: usize,
}

impl Pacer {
    /// A pacer whose budget stays between two bounds and begins with the lower one.
    #[must_use]
    pub fn new(least: usize, most: usize) -> Self {
        let (least, most) = (least.max(1), most.max(least).max(1));
        Self { least, most, budget: least, single: None, row: None, largest: 0 }
    }

    /// Tokens a step.
    #[must_use]
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Rows of the next warm-up step; `None` once the budget is known. Steps grow fourfold, at least once, until one
    /// takes longer than a third of the target, so that warming up a slow model takes no longer than it must.
    #[must_use]
    pub fn next_probe(&self, last: Option<(usize, Duration)>) -> Option<usize> {
        match last {
            None => Some(1),
            Some((rows, time)) if rows < self.most && (rows == 1 || time < STEP_TARGET / 3) => {
                Some((rows * 4).min(self.most))
            }
            Some(_) => None,
        }
    }

    /// Learns from a step of this many rows.
    pub fn record(&mut self, rows: usize, time: Duration) {
        let seconds = time.as_secs_f64().max(1e-6);
        let smooth = |old: Option<f64>, new: f64| Some(old.map_or(new, |old| old + 0.2 * (new - old)));
        if rows <= 1 {
            self.single = smooth(self.single, seconds);
            return;
        }
        let single = self.single.unwrap_or(0.0).min(seconds);
        // A step that is far from full is mostly what it costs at all, and that grows with the contexts.
        if rows * 2 < self.largest.min(self.budget) {
            return;
        }
        let row = (seconds - single) / (rows - 1) as f64;
        // The larger the step, the more it says; a larger one than ever counts alone.
        self.row = if rows > self.largest { Some(row) } else { smooth(self.row, row) };
        self.largest = self.largest.max(rows);
        let row = self.row.unwrap_or(0.0).max(1e-9);
        let fitting = (STEP_TARGET.as_secs_f64() - single) / row;
        self.budget = (fitting as usize).saturating_add(1).clamp(self.least, self.most);
    }

    /// What a row more costs, for drafts to be weighed against.
    #[must_use]
    pub fn step_cost(&self) -> StepCost {
        match (self.single, self.row) {
            (Some(single), Some(row)) => StepCost { row_share: (row / single).clamp(0.0, 1.0) as f32 },
            _ => StepCost::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device with these times, warmed up.
    fn warmed(single: f64, row: f64) -> (Pacer, usize) {
        let mut pacer = Pacer::new(4, 512);
        let (mut last, mut probes) = (None, 0);
        while let Some(rows) = pacer.next_probe(last) {
            let time = Duration::from_secs_f64(single + row * (rows - 1) as f64);
            pacer.record(rows, time);
            last = Some((rows, time));
            probes += 1;
        }
        (pacer, probes)
    }

    #[test]
    fn the_budget_fills_the_target_within_its_bounds() {
        for (single, row, expected) in
            [(0.010, 0.002, 90..=100), (0.001, 0.000_01, 512..=512), (0.5, 0.3, 4..=4), (0.1, 0.01, 9..=12)]
        {
            let (pacer, probes) = warmed(single, row);
            assert!(expected.contains(&pacer.budget()), "{single} {row}: {}", pacer.budget());
            assert!(probes <= 6);
        }
    }

    #[test]
    fn a_device_that_slows_down_gets_less() {
        let (mut pacer, _) = warmed(0.010, 0.002);
        for _ in 0..50 {
            pacer.record(pacer.budget(), Duration::from_secs_f64(0.01 + 0.008 * pacer.budget() as f64));
        }
        assert!((15..=30).contains(&pacer.budget()), "{}", pacer.budget());
    }

    #[test]
    fn small_steps_over_long_contexts_do_not_shrink_the_budget() {
        let (mut pacer, _) = warmed(0.010, 0.002);
        let budget = pacer.budget();
        (0..100).for_each(|_| pacer.record(4, Duration::from_millis(60)));
        assert_eq!(pacer.budget(), budget);
    }

    #[test]
    fn a_rows_cost_is_its_share_of_a_step() {
        let (pacer, _) = warmed(0.010, 0.002);
        assert!((pacer.step_cost().row_share - 0.2).abs() < 0.01);
        assert_eq!(warmed(0.5, 0.3).0.budget(), 4);
        assert_eq!(Pacer::new(1, 8).step_cost(), StepCost::default());
    }
}
