//! Values of flags, read from their text.

use std::num::NonZeroUsize;
use std::time::Duration;

/// More threads than any machine has cores cannot be meant, and may not start.
const MAX_THREADS: usize = 1024;

/// So many threads.
pub fn thread_count(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= MAX_THREADS);
    count.ok_or_else(|| format!("expected a whole number from 1 to {MAX_THREADS}"))
}

/// The last part of a path or URI, without revision, query and the ending of GGUF files.
pub fn name_of(model: &str) -> String {
    let path = match model.split_once("://") {
        Some(("hf", rest)) => rest.split_once('@').map_or(rest, |(path, _)| path),
        Some((_, rest)) => rest.split_once(['?', '#']).map_or(rest, |(path, _)| path),
        None => model,
    };
    let path = path.trim_end_matches('/');
    let last = path.rsplit_once('/').map_or(path, |(_, last)| last);
    let name = last.strip_suffix(".gguf").unwrap_or(last);
    if name.is_empty() { "model".to_owned() } else { name.to_owned() }
}

/// 64 hexadecimal digits, in lower case.
pub fn sha256(text: &str) -> Result<String, String> {
    let digits = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits { Ok(text.to_ascii_lowercase()) } else { Err("expected 64 hexadecimal digits".to_owned()) }
}

/// A URL that begins as those of web servers do.
pub fn http_url(text: &str) -> Result<String, String> {
    let known = ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme));
    if known { Ok(text.to_owned()) } else { Err("expected http:// or https://".to_owned()) }
}

/// A time in which something has to be done: with none at all nothing would be.
pub fn patience(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("expected more than 0".to_owned()) } else { Ok(duration) }
}

/// A number and a unit, such as 300s; a year at most.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "expected a number and a unit, such as 300s".to_owned())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs);
    let duration = match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => return Err(format!("unknown unit {unit:?}: use ms, s, m or h")),
    };
    // A year is beyond any request and keeps the sums of clock and timeout far from their ends.
    let year = Duration::from_secs(365 * 24 * 3600);
    duration.filter(|duration| *duration <= year).ok_or_else(|| "longer than a year".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_with_their_unit() {
        for (text, expected) in
            [("300s", Some(300_000)), ("5m", Some(300_000)), ("1500ms", Some(1500)), ("1h", Some(3_600_000))]
        {
            assert_eq!(duration(text).ok().map(|read| read.as_millis()), expected, "{text}");
        }
        for text in ["", "s", "10", "10 s", "-1s", "99999999999999999h", "9000000h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("0s").is_ok() && patience("0ms").is_err() && patience("1ms").is_ok());
    }

    #[test]
    fn threads_are_as_many_as_could_run() {
        for (text, count) in [("1", Some(1)), ("1024", Some(1024)), ("0", None), ("1025", None), ("-1", None)]
        {
            assert_eq!(thread_count(text).ok().map(NonZeroUsize::get), count, "{text}");
        }
    }
}
