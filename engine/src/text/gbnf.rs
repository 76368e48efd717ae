//! Grammars in GBNF, the form that llama.cpp takes, rewritten in Lark's, the form that the grammar library takes.
//!
//! Every character of the text is a terminal of its own. The library reads longest terminals first, so a word as one
//! terminal could hide the beginning of another one, and texts that the grammar allows would be lost.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

/// A grammar that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GbnfError {
    /// Something else was expected.
    #[error("cannot be read as GBNF: expected {expected} at line {line}")]
    Expected {
        /// What would be right.
        expected: &'static str,
        /// Counted from 1.
        line: usize,
    },
    /// A rule is used and not given.
    #[error("uses the rule {name:?}, which it does not give")]
    Unknown {
        /// The rule.
        name: String,
    },
    /// Groups within groups without end.
    #[error("has more than {MAX_DEPTH} groups within each other")]
    Deep,
    /// Nothing to begin with.
    #[error("has no rule \"root\"")]
    NoRoot,
}

/// Groups within each other, since each takes its share of the stack.
const MAX_DEPTH: usize = 100;
/// Characters with a meaning in regular expressions, in and out of classes.
const MEANINGFUL: &str = r"\.+*?()|[]{}^$#&-~/";

/// Rewrites a grammar.
///
/// # Errors
/// It is no GBNF, or names what is not there.
pub fn to_lark(grammar: &str) -> Result<String, GbnfError> {
    let mut reader =
        Reader { rest: grammar, whole: grammar, names: HashMap::new(), used: BTreeSet::new(), depth: 0 };
    let mut rules = String::new();
    let mut given = BTreeSet::new();
    reader.skip(true);
    while !reader.rest.is_empty() {
        let name = reader.name().ok_or_else(|| reader.expected("the name of a rule"))?;
        reader.skip(false);
        reader.take("::=").ok_or_else(|| reader.expected("::="))?;
        reader.skip(true);
        let body = reader.alternatives(false)?;
        let lark = reader.lark_name(&name);
        // Writing to a text cannot fail.
        let _ = writeln!(rules, "{lark}: {body}");
        given.insert(name);
        reader.skip(true);
    }
    if let Some(name) = reader.used.iter().find(|name| !given.contains(*name)) {
        return Err(GbnfError::Unknown { name: name.clone() });
    }
    if !given.contains("root") {
        return Err(GbnfError::NoRoot);
    }
    Ok(format!("start: {}\n{rules}", reader.lark_name("root")))
}

struct Reader<'a> {
    rest: &'a str,
    whole: &'a str,
    /// Lark's names of the rules, which know no hyphens.
    names: HashMap<String, String>,
    used: BTreeSet<String>,
    depth: usize,
}

impl Reader<'_> {
    fn expected(&self, expected: &'static str) -> GbnfError {
        let before = &self.whole[..self.whole.len() - self.rest.len()];
        GbnfError::Expected { expected, line: before.matches('\n').count() + 1 }
    }

    fn lark_name(&mut self, name: &str) -> String {
        let next = self.names.len();
        self.names.entry(name.to_owned()).or_insert_with(|| format!("r{next}")).clone()
    }

    /// Goes on behind white space and comments, to the line's end or further.
    fn skip(&mut self, lines: bool) {
        loop {
            let blank = |character: char| {
                matches!(character, ' ' | '\t') || (lines && matches!(character, '\r' | '\n'))
            };
            self.rest = self.rest.trim_start_matches(blank);
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.find(['\r', '\n']).map_or("", |end| &self.rest[end..]);
        }
    }

    fn take(&mut self, text: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(text)?;
        Some(())
    }

    fn name(&mut self) -> Option<String> {
        let part = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
        let end = self.rest.find(|character| !part(character)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn alternatives(&mut self, nested: bool) -> Result<String, GbnfError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(GbnfError::Deep);
        }
        let mut written = self.sequence(nested)?;
        while self.take("|").is_some() {
            self.skip(true);
            written = format!("{written} | {}", self.sequence(nested)?);
        }
        self.depth -= 1;
        Ok(written)
    }

    fn sequence(&mut self, nested: bool) -> Result<String, GbnfError> {
        let mut parts: Vec<String> = Vec::new();
        loop {
            let part = match self.rest.chars().next() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('(') => {
                    self.rest = &self.rest[1..];
                    self.skip(true);
                    let inner = self.alternatives(true)?;
                    self.take(")").ok_or_else(|| self.expected(")"))?;
                    format!("({inner})")
                }
                Some('.') => {
                    self.rest = &self.rest[1..];
                    "/(?s:.)/".to_owned()
                }
                Some('*' | '+' | '?' | '{') => {
                    let last = parts.pop().ok_or_else(|| self.expected("something to repeat"))?;
                    format!("({last}){}", self.repetition()?)
                }
                Some(character) if character.is_ascii_alphanumeric() || matches!(character, '-' | '_') => {
                    // It begins with a character of names, so there is one.
                    let name = self.name().unwrap_or_default();
                    let lark = self.lark_name(&name);
                    self.used.insert(name);
                    lark
                }
                _ => break,
            };
            parts.push(part);
            self.skip(nested);
        }
        // An empty alternative is the empty text.
        Ok(if parts.is_empty() { "\"\"".to_owned() } else { parts.join(" ") })
    }

    fn repetition(&mut self) -> Result<String, GbnfError> {
        if !self.rest.starts_with('{') {
            let (sign, rest) = self.rest.split_at(1);
            self.rest = rest;
            return Ok(sign.to_owned());
        }
        let expected = || self.expected("{N}, {N,} or {N,M}");
        let end = self.rest.find('}').ok_or_else(expected)?;
        let inside = self.rest[1..end].replace([' ', '\t'], "");
        let (least, most) = inside.split_once(',').unwrap_or((&inside, &inside));
        let number = |text: &str| text.parse::<u16>().ok();
        let least = if least.is_empty() { Some(0) } else { number(least) }.ok_or_else(expected)?;
        let written = if most.is_empty() {
            format!("{{{least},}}")
        } else {
            let most = number(most).filter(|most| *most >= least).ok_or_else(expected)?;
            format!("{{{least},{most}}}")
        };
        self.rest = &self.rest[end + 1..];
        Ok(written)
    }

    fn literal(&mut self) -> Result<String, GbnfError> {
        self.rest = &self.rest[1..];
        let mut terminals = Vec::new();
        loop {
            match self.rest.chars().next() {
                Some('"') => break,
                None | Some('\n') => return Err(self.expected("the text's closing \"")),
                Some(_) => terminals.push(format!("/{}/", written(self.character()?))),
            }
        }
        self.rest = &self.rest[1..];
        Ok(match terminals.as_slice() {
            [] => "\"\"".to_owned(),
            [only] => only.clone(),
            several => format!("({})", several.join(" ")),
        })
    }

    fn class(&mut self) -> Result<String, GbnfError> {
        self.rest = &self.rest[1..];
        let mut class = String::from("[");
        if self.take("^").is_some() {
            class.push('^');
        }
        let mut members = 0;
        loop {
            match self.rest.chars().next() {
                Some(']') => break,
                None | Some('\n') => return Err(self.expected("the class's closing ]")),
                Some(_) => {
                    let from = self.character()?;
                    class.push_str(&written(from));
                    if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                        self.rest = &self.rest[1..];
                        let to = self.character()?;
                        if to < from {
                            return Err(self.expected("a range from a lower to a higher character"));
                        }
                        class.push('-');
                        class.push_str(&written(to));
                    }
                    members += 1;
                }
            }
        }
        if members == 0 {
            return Err(self.expected("a character in the class"));
        }
        self.rest = &self.rest[1..];
        Ok(format!("/{class}]/"))
    }

    /// One character of a text or a class, its escape resolved.
    fn character(&mut self) -> Result<char, GbnfError> {
        let mut characters = self.rest.chars();
        let character = characters.next().ok_or_else(|| self.expected("a character"))?;
        if character != '\\' {
            self.rest = characters.as_str();
            return Ok(character);
        }
        let escape = characters.next();
        let digits = match escape {
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => 0,
        };
        let after = characters.as_str();
        let (resolved, rest) = match escape {
            Some('n') => (Some('\n'), after),
            Some('r') => (Some('\r'), after),
            Some('t') => (Some('\t'), after),
            Some(same @ ('\\' | '"' | '[' | ']' | '-' | '^')) => (Some(same), after),
            _ if digits > 0 => {
                let number = after.get(..digits).and_then(|digits| u32::from_str_radix(digits, 16).ok());
                (number.and_then(char::from_u32), after.get(digits..).unwrap_or_default())
            }
            _ => (None, after),
        };
        let resolved =
            resolved.ok_or_else(|| self.expected("an escape such as \\n, \\\", \\x41 or \\u00e9"))?;
        self.rest = rest;
        Ok(resolved)
    }
}

/// A character as regular expressions write it.
fn written(character: char) -> String {
    match character {
        meaningful if MEANINGFUL.contains(meaningful) => format!("\\{meaningful}"),
        control if control.is_control() || control.is_whitespace() && control != ' ' => {
            format!("\\x{{{:x}}}", u32::from(control))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_rewritten() {
        for (gbnf, lark) in [
            ("root ::= \"ab\"", "start: r0\nr0: (/a/ /b/)\n"),
            (
                "root ::= a-b | [^a-z\\]]{2,} # x\na-b::=(\"\\n\"\n | .)?",
                "start: r1\nr1: r0 | (/[^a-z\\]]/){2,}\nr0: ((/\\x{a}/ | /(?s:.)/))?\n",
            ),
            ("root ::= \"a\" |\n  \"/\"{3} |", "start: r0\nr0: /a/ | (/\\//){3,3} | \"\"\n"),
            ("root ::= [\\x41-\\u00e9-]", "start: r0\nr0: /[A-é\\-]/\n"),
        ] {
            assert_eq!(to_lark(gbnf).as_deref(), Ok(lark), "{gbnf}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let expected = |expected, line| GbnfError::Expected { expected, line };
        for (gbnf, error) in [
            ("", GbnfError::NoRoot),
            ("a ::= \"x\"", GbnfError::NoRoot),
            ("root ::= b", GbnfError::Unknown { name: "b".into() }),
            ("root ::= \"x\"\n= y", expected("the name of a rule", 2)),
            ("root = y", expected("::=", 1)),
            ("root ::= (\"a\"\n", expected(")", 2)),
            ("root ::= \"a", expected("the text's closing \"", 1)),
            ("root ::= [", expected("the class's closing ]", 1)),
            ("root ::= []", expected("a character in the class", 1)),
            ("root ::= [z-a]", expected("a range from a lower to a higher character", 1)),
            ("root ::= *", expected("something to repeat", 1)),
            ("root ::= \"a\"{3,1}", expected("{N}, {N,} or {N,M}", 1)),
            ("root ::= \"\\q\"", expected("an escape such as \\n, \\\", \\x41 or \\u00e9", 1)),
            ("root ::= \"\\xé0\"", expected("an escape such as \\n, \\\", \\x41 or \\u00e9", 1)),
        ] {
            assert_eq!(to_lark(gbnf), Err(error), "{gbnf}");
        }
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(200), ")".repeat(200));
        assert_eq!(to_lark(&deep), Err(GbnfError::Deep));
    }
}
