//! Which of several equal engines gets a request: the one that has its prompt's head cached, unless it has much more to
//! do than the others; without a head, the one with the least to do.
//!
//! Rendezvous hashing with bounded loads: every gateway sends the same head to the same engine without talking to the
//! others, an engine that comes or goes moves only its own share, and no engine is asked for much more than the average.
//! Pure.

/// Share of the average load that the wanted engine may have.
const BOUND_PERCENT: u64 = 125;
/// Bytes of a prompt that count as its head: a system prompt, or the beginning of a conversation.
const HEAD_BYTES: usize = 1_024;

/// An engine as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Hash of what identifies it everywhere.
    pub identity: u64,
    /// Tokens that it still owes.
    pub outstanding: u64,
}

/// Index of the engine to ask; `None` of none.
#[must_use]
pub fn pick(candidates: &[Candidate], head: Option<u64>, tokens: u64) -> Option<usize> {
    let least = (0..candidates.len()).min_by_key(|at| candidates[*at].outstanding)?;
    let Some(head) = head.filter(|_| candidates.len() > 1) else { return Some(least) };
    let owed: u64 = candidates.iter().map(|candidate| candidate.outstanding).sum();
    let average = owed.saturating_add(tokens) / candidates.len() as u64;
    let bound = (average.saturating_mul(BOUND_PERCENT) / 100).max(tokens);
    let within =
        |at: &usize| candidates[*at].outstanding.saturating_add(tokens) <= bound.saturating_add(tokens);
    let by_wish = (0..candidates.len()).filter(within);
    by_wish.max_by_key(|at| mix(candidates[*at].identity ^ head)).or(Some(least))
}

/// Hash of a request's head; `None` where it has no prompt.
#[must_use]
pub fn head_of(body: &[u8]) -> Option<u64> {
    let prompt = ["\"messages\"", "\"prompt\""].into_iter().find_map(|name| {
        body.windows(name.len()).position(|window| window == name.as_bytes()).map(|at| at + name.len())
    })?;
    let head = &body[prompt..body.len().min(prompt + HEAD_BYTES)];
    Some(hash(head))
}

/// FNV-1a: the same in every process and build.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Spreads similar values far apart (the finaliser of SplitMix64).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engines(outstanding: &[u64]) -> Vec<Candidate> {
        let name = |at: usize| hash(format!("10.0.0.{at}:8000").as_bytes());
        outstanding
            .iter()
            .enumerate()
            .map(|(at, owed)| Candidate { identity: name(at), outstanding: *owed })
            .collect()
    }

    #[test]
    fn one_head_goes_to_one_engine_and_heads_spread() {
        let idle = engines(&[0, 0, 0, 0]);
        let mut counts = [0; 4];
        for head in 0..4_000 {
            let head = hash(&u64::to_le_bytes(head));
            let at = pick(&idle, Some(head), 100).unwrap();
            assert_eq!(pick(&idle, Some(head), 7), Some(at));
            counts[at] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }

    #[test]
    fn an_engine_that_goes_moves_only_its_own_share() {
        let (four, three) = (engines(&[0; 4]), engines(&[0; 3]));
        for head in 0..1_000 {
            let head = hash(&u64::to_le_bytes(head));
            let before = pick(&four, Some(head), 1).unwrap();
            let after = pick(&three, Some(head), 1).unwrap();
            assert!(before == 3 || before == after);
        }
    }

    #[test]
    fn an_engine_with_too_much_to_do_is_passed_by() {
        let check = |owed: &[u64], head: Option<u64>, not: Option<usize>| {
            let at = pick(&engines(owed), head, 100).unwrap();
            assert_ne!(Some(at), not, "{owed:?}");
            at
        };
        for head in 0..100 {
            check(&[5_000, 100, 100], Some(hash(&[head])), Some(0));
        }
        assert_eq!(check(&[300, 200, 900], None, None), 1);
        assert_eq!(pick(&[], Some(1), 1), None);
    }

    #[test]
    fn the_load_stays_bounded_whatever_the_heads_are() {
        let mut owed = engines(&[0; 5]);
        for request in 0..2_000_u64 {
            // Nine of ten requests have the same head.
            let head = hash(&u64::to_le_bytes(if request % 10 == 0 { request } else { 0 }));
            let at = pick(&owed, Some(head), 100).unwrap();
            owed[at].outstanding += 100;
            let average = owed.iter().map(|engine| engine.outstanding).sum::<u64>() / 5;
            assert!(owed[at].outstanding <= average * 5 / 4 + 200, "{owed:?}");
        }
    }

    #[test]
    fn the_head_is_the_beginning_of_the_prompt() {
        let body = |system: &str, tail: &str| {
            format!(r#"{{"model":"code","temperature":{},"messages":["{system}{tail}"]}}"#, tail.len())
                .into_bytes()
        };
        let long = "x".repeat(2_000);
        assert_eq!(head_of(&body(&long, "a")), head_of(&body(&long, "bc")));
        assert_ne!(head_of(&body("short", "a")), head_of(&body("short", "bc")));
        assert_eq!(head_of(br#"{"model": "code"}"#), None);
        assert!(head_of(br#"{"prompt": "p"}"#).is_some());
    }
}
