//! Two models, one card: who holds a card keeps it, and free ones go to the oldest model.
//!
//! Age decides instead of the scheduler, whose order is that of the pods: a younger model's pod would take the card
//! in the moment in which the older one's pod is replaced.

/// The cards that one tier of one model wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardClaim {
    /// Order of claims: creation time, then namespace, name and the tier's place. Smaller is served first.
    pub age: (i64, String, String, usize),
    /// Cards that it wants.
    pub wanted: i32,
    /// Cards that its running pods hold.
    pub holding: i32,
    /// Cards that it was given before: it keeps them while its pods are replaced.
    pub granted: i32,
}

/// Cards for each claim, in the order of the claims.
///
/// A profile without any card restricts nobody: the pods wait in the scheduler's queue, which says why.
#[must_use]
pub fn allot_cards(capacity: i32, claims: &[CardClaim]) -> Vec<i32> {
    if capacity <= 0 {
        return claims.iter().map(|claim| claim.wanted).collect();
    }
    let mut given: Vec<i32> = claims.iter().map(|claim| claim.wanted.min(claim.holding)).collect();
    let mut free = capacity - given.iter().sum::<i32>();
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by(|a, b| claims[*a].age.cmp(&claims[*b].age));
    // Between the end of a pod and its successor nobody holds the card: what was given before comes first.
    for limit in [|claim: &CardClaim| claim.wanted.min(claim.granted), |claim: &CardClaim| claim.wanted] {
        for &index in &order {
            let more = (limit(&claims[index]) - given[index]).min(free).max(0);
            given[index] += more;
            free -= more;
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_keeps_its_card_and_the_older_gets_the_free_one() {
        let granted = |at: i64, wanted, holding, granted| CardClaim {
            age: (at, "ns".into(), format!("m{at}"), 0),
            wanted,
            holding,
            granted,
        };
        let claim = |at, wanted, holding| granted(at, wanted, holding, 0);
        let check = |capacity, claims: &[CardClaim], expected: &[i32]| {
            assert_eq!(allot_cards(capacity, claims), expected, "{capacity} for {claims:?}");
        };
        check(1, &[claim(2, 1, 0), claim(1, 1, 0)], &[0, 1]);
        check(1, &[claim(2, 1, 1), claim(1, 1, 0)], &[1, 0]);
        check(2, &[claim(2, 1, 0), claim(1, 1, 0)], &[1, 1]);
        check(2, &[claim(1, 3, 0), claim(2, 1, 0)], &[2, 0]);
        check(0, &[claim(1, 1, 0), claim(2, 1, 0)], &[1, 1]);
        check(1, &[claim(1, 0, 1), claim(2, 1, 0)], &[0, 1]);
        check(1, &[claim(1, 1, 1), claim(2, 1, 1)], &[1, 1]);
        // A younger model's pod is being replaced: the older one goes on waiting.
        check(1, &[claim(1, 1, 0), granted(2, 1, 0, 1)], &[0, 1]);
        check(1, &[granted(1, 1, 0, 1), granted(2, 1, 0, 1)], &[1, 0]);
        check(2, &[claim(1, 2, 0), granted(2, 1, 0, 1)], &[1, 1]);
        check(1, &[claim(1, 1, 0), granted(2, 0, 0, 1)], &[1, 0]);
    }
}
