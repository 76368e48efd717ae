//! Schemas of single fields whose refusal should tell the reader what to write instead.
//!
//! A `pattern` alone is answered with "should match" and the expression; a CEL rule carries a sentence.
//! It deliberately holds no rule between fields: those stand beside the fields they compare.

use schemars::{Schema, SchemaGenerator, json_schema};

/// An amount of memory, as [`crate::quantity::parse_bytes`] reads it, and more than nothing.
pub fn memory(_: &mut SchemaGenerator) -> Schema {
    memory_with(
        "expected an amount of memory above 0, such as 24560Mi, 21Gi or 8000000000",
        "quantity(string(self)).isGreaterThan(quantity('0'))",
    )
}

/// As [`memory`], and zero is one as well.
pub fn memory_or_zero(_: &mut SchemaGenerator) -> Schema {
    memory_with("expected an amount of memory, such as 2560Mi, 2Gi or 0", "true")
}

/// `accepted` is only asked about what has the form of an amount of memory.
fn memory_with(message: &str, accepted: &str) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "nullable": false,
        "maxLength": 32,
        "x-kubernetes-validations": [{
            "rule": format!(
                "string(self).matches('^[0-9]{{1,15}}([.][0-9]{{1,9}})?(Ki|Mi|Gi|Ti|k|M|G|T)?$') && {accepted}"
            ),
            "message": message,
        }],
    })
}

/// A length of time, zero included.
pub fn duration(_: &mut SchemaGenerator) -> Schema {
    duration_with("expected a duration such as 500ms, 60s or 5m", "true")
}

/// A length of time above zero.
pub fn positive_duration(_: &mut SchemaGenerator) -> Schema {
    duration_with("expected a duration above 0, such as 500ms, 60s or 5m", "duration(self) > duration('0s')")
}

/// The digits are bounded so that no accepted text overflows CEL's or Rust's durations.
fn duration_with(message: &str, accepted: &str) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 24,
        "x-kubernetes-validations": [{
            "rule": format!("self.matches('^([0-9]{{1,5}}([.][0-9]{{1,3}})?(ms|s|m|h))+$') && {accepted}"),
            "message": message,
        }],
    })
}

/// The compiler's name of a card's instruction set.
pub fn gfx_target(_: &mut SchemaGenerator) -> Schema {
    worded(16, "^gfx[0-9a-f]{3,5}$", "expected the compiler's name of the instruction set, such as gfx1100")
}

/// Value of the label `amd.com/gpu.vram`.
pub fn vram_class(_: &mut SchemaGenerator) -> Schema {
    worded(16, "^[1-9][0-9]*G$", "expected the value of the node label amd.com/gpu.vram, such as 24G")
}

/// Name of an extended resource.
pub fn resource_name(_: &mut SchemaGenerator) -> Schema {
    worded(253, "^[a-z0-9.-]+/[A-Za-z0-9._-]+$", "expected an extended resource, such as amd.com/gpu")
}

/// Name of a tier, which becomes part of object names.
pub fn tier_name(_: &mut SchemaGenerator) -> Schema {
    worded(
        32,
        "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "expected lower-case letters, digits and '-', beginning and ending with a letter or digit",
    )
}

/// Name of a Secret.
pub fn secret_name(_: &mut SchemaGenerator) -> Schema {
    worded(
        253,
        "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        "expected the name of a Secret: lower-case letters, digits, '-' and '.'",
    )
}

/// Address of a server, without a path.
pub fn endpoint(_: &mut SchemaGenerator) -> Schema {
    worded(
        253,
        "^https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?/?$",
        "expected http(s)://HOST or http(s)://HOST:PORT, without a path",
    )
}

/// Name of a region.
pub fn region(_: &mut SchemaGenerator) -> Schema {
    worded(32, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "expected the name of a region, such as us-east-1")
}

/// Text of one form, refused with a sentence.
fn worded(max_length: u32, pattern: &str, message: &str) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": max_length,
        "x-kubernetes-validations": [{ "rule": format!("self.matches('{pattern}')"), "message": message }],
    })
}
