//! JSON schemas made fit for grammars, without ever allowing what the schema does not.

use serde_json::{Map, Value};

/// Keywords whose value is an object of schemas.
const NAMED: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];
/// Keywords whose value is a schema.
const SINGLE: &[&str] = &["items", "additionalProperties", "contains", "propertyNames"];
/// Keywords whose value is an array of schemas.
const LISTED: &[&str] = &["anyOf", "oneOf", "allOf", "prefixItems", "items"];
/// Keywords whose value is a number that others are compared with.
const BOUNDS: &[&str] = &["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
/// Keywords that look at an object together with other schemas: closing it for one closes it for all of them.
const COMBINING: &[&str] = &[
    "allOf",
    "not",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "$dynamicRef",
];

/// Points references within a schema to where the schema stands now.
pub fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" && target.starts_with('#') => {
                        target.replace_range(..1, place);
                    }
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| move_references(value, place)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A bound of numbers that 64 bits do not hold.
pub fn huge_bound(schema: &Value) -> Option<&Value> {
    let fields = schema.as_object()?;
    let own = BOUNDS.iter().filter_map(|name| fields.get(*name));
    let huge = |bound: &&Value| bound.as_f64().is_some_and(|bound| bound.abs() >= i64::MAX as f64);
    own.into_iter().find(huge).or_else(|| children(fields).find_map(huge_bound))
}

/// Lets objects have no other properties than those that are named, where the schema leaves it open: models otherwise
/// go on adding what nobody asked for. What is valid then was valid before. A schema that looks at one object from
/// several places stays as it is.
pub fn close_objects(schema: &mut Value) {
    if !combines(schema) {
        close(schema);
    }
}

fn combines(schema: &Value) -> bool {
    let Some(fields) = schema.as_object() else { return false };
    let beside = ["anyOf", "oneOf", "$ref"].iter().any(|name| fields.contains_key(*name));
    fields.keys().any(|name| COMBINING.contains(&name.as_str()))
        || (beside && fields.contains_key("properties"))
        || children(fields).any(combines)
}

fn children(fields: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let named = NAMED.iter().filter_map(|name| fields.get(*name)?.as_object()).flat_map(Map::values);
    let single = SINGLE.iter().filter_map(|name| fields.get(*name));
    let listed = LISTED.iter().filter_map(|name| fields.get(*name)?.as_array()).flatten();
    named.chain(single).chain(listed)
}

fn close(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    if fields.contains_key("properties") && !fields.contains_key("patternProperties") {
        fields.entry("additionalProperties").or_insert(Value::Bool(false));
    }
    for (name, value) in fields {
        let name = name.as_str();
        match value {
            Value::Object(schemas) if NAMED.contains(&name) => schemas.values_mut().for_each(close),
            Value::Array(schemas) if LISTED.contains(&name) => schemas.iter_mut().for_each(close),
            schema if SINGLE.contains(&name) => close(schema),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bound_beyond_64_bits_is_found_wherever_it_stands() {
        let bound = json!(-1e30);
        for (schema, found) in [
            (json!({"minimum": bound}), true),
            (json!({"properties": {"a": {"items": [{"exclusiveMaximum": bound}]}}}), true),
            (json!({"minimum": -5, "maximum": 9_007_199_254_740_993_i64}), false),
            (json!({"properties": {"minimum": {"const": bound}}}), false),
        ] {
            assert_eq!(huge_bound(&schema).is_some(), found, "{schema}");
        }
    }

    #[test]
    fn open_objects_are_closed_where_nothing_else_looks_at_them() {
        let closed = |mut schema: Value| {
            close_objects(&mut schema);
            schema
        };
        assert_eq!(
            closed(json!({"properties": {"not": {"anyOf": [{"properties": {}}, {"type": "null"}]}}})),
            json!({"properties": {"not": {"anyOf": [{"properties": {}, "additionalProperties": false}, {"type": "null"}]}},
                "additionalProperties": false})
        );
        assert_eq!(
            closed(
                json!({"type": "array", "items": {"$ref": "#/$defs/A"}, "$defs": {"A": {"properties": {"x": {}}}}})
            ),
            json!({"type": "array", "items": {"$ref": "#/$defs/A"},
                "$defs": {"A": {"properties": {"x": {}}, "additionalProperties": false}}})
        );
        for open in [
            json!({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            json!({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}),
            json!({"properties": {"a": {}}, "additionalProperties": {"type": "null"}}),
            json!({"properties": {"a": {}}, "patternProperties": {"^x": {}}}),
            json!({"type": "object"}),
        ] {
            assert_eq!(closed(open.clone()), open);
        }
    }
}
