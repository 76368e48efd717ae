//! Finds where a JSON value ends, byte by byte, without reading what it means.

/// Follows brackets and strings of one object or array.
#[derive(Debug, Clone, Default)]
pub struct JsonScan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonScan {
    /// Looks at more text; the length up to and with the closing bracket, where it is in there.
    ///
    /// The value must begin with a bracket. Brackets of the wrong kind count too: whoever needs more parses it.
    pub fn push(&mut self, text: &str) -> Option<usize> {
        for (index, byte) in text.bytes().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(index + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// The length of a complete JSON string at the beginning of a text, quotes included.
pub fn string_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(index + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_value_is_found_wherever_the_text_is_cut() {
        for text in [r#"{}"#, r#"{"a": [1, {"b": "}]\"{"}], "c": "\\"}"#, r#"[[], {"é": "["}]"#] {
            for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
                let mut scan = JsonScan::default();
                assert_eq!(scan.push(&text[..cut]), None, "{text} at {cut}");
                assert_eq!(scan.push(&format!("{}]}}rest", &text[cut..])), Some(text.len() - cut));
            }
        }
    }

    #[test]
    fn a_strings_end_is_found() {
        assert_eq!(string_length(r#""a\"b\\" x"#), Some(8));
        assert_eq!(string_length(r#""a\""#), None);
    }
}
