//! Copies of what a request's head shares with its connection's read buffer.
//!
//! Every value that was parsed from a head is a part of the buffer that it was read into, and keeps all 8 KiB of it. A call
//! lives as long as its stream, so it keeps copies of their own size, and the connection reads into the same buffer again.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Uri, uri::PathAndQuery};

/// The same headers, all in one allocation.
#[must_use]
pub fn headers(shared: &HeaderMap) -> HeaderMap {
    let mut all = BytesMut::with_capacity(shared.values().map(HeaderValue::len).sum());
    for value in shared.values() {
        all.extend_from_slice(value.as_bytes());
    }
    let mut all = all.freeze();
    let mut own = HeaderMap::with_capacity(shared.len());
    for (name, value) in shared {
        // What was a value is one; what is secret stays so.
        if let Ok(mut copy) = HeaderValue::from_maybe_shared(all.split_to(value.len())) {
            copy.set_sensitive(value.is_sensitive());
            own.append(name.clone(), copy);
        }
    }
    own
}

/// Path and query, as an engine expects them.
#[must_use]
pub fn origin_form(shared: &Uri) -> Uri {
    let path = shared.path_and_query().map_or("/", PathAndQuery::as_str);
    // What was a path is one.
    PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(path.as_bytes()))
        .map_or_else(|_| Uri::from_static("/"), Uri::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_equal_and_hold_nothing_of_the_buffer() {
        let buffer = Bytes::from(b"/v1/completions?a=b one two secret".to_vec());
        let value =
            |range: std::ops::Range<usize>| HeaderValue::from_maybe_shared(buffer.slice(range)).unwrap();
        let mut shared = HeaderMap::new();
        shared.append("x-a", value(20..23));
        shared.append("x-b", value(24..27));
        shared.append("x-a", value(24..27));
        let mut secret = value(28..34);
        secret.set_sensitive(true);
        shared.append("x-c", secret);
        let uri = Uri::from_maybe_shared(buffer.slice(0..19)).unwrap();
        let (own, path) = (headers(&shared), origin_form(&uri));
        assert_eq!((&own, path.to_string().as_str()), (&shared, "/v1/completions?a=b"));
        assert!(own["x-c"].is_sensitive() && !own["x-b"].is_sensitive());
        drop((shared, uri));
        assert!(buffer.is_unique(), "a copy still holds the buffer");
        assert_eq!(origin_form(&Uri::from_static("http://code:8080")).to_string(), "/");
    }
}
