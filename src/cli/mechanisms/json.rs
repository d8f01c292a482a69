//! As much of JSON (RFC 8259) as is written here.

use std::fmt::{self, Write};

/// A value; its `Display` is JSON, without blanks.
#[derive(Debug)]
pub(super) enum Json {
    Bool(bool),
    Number(u32),
    Text(String),
    /// Members in the order in which they are written; their names are to differ.
    Object(Vec<(&'static str, Json)>),
}

impl Json {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(text) => string(f, text),
            Self::Object(members) => {
                f.write_char('{')?;
                for (index, (name, value)) in members.iter().enumerate() {
                    if index > 0 {
                        f.write_char(',')?;
                    }
                    string(f, name)?;
                    write!(f, ":{value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

fn string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for letter in text.chars() {
        match letter {
            '"' | '\\' => write!(f, "\\{letter}")?,
            '\u{0}'..='\u{1f}' => write!(f, "\\u{:04x}", u32::from(letter))?,
            _ => f.write_char(letter)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_string_must_escape() {
        let json = Json::text("a\"b\\c\n\u{1}\u{7f}\u{e9}/");
        assert_eq!(
            json.to_string(),
            "\"a\\\"b\\\\c\\u000a\\u0001\u{7f}\u{e9}/\""
        );
    }

    #[test]
    fn members_are_separated() {
        let json = Json::Object(vec![
            ("a", Json::Bool(false)),
            ("b", Json::Object(Vec::new())),
            ("c", Json::Number(u32::MAX)),
        ]);
        assert_eq!(json.to_string(), r#"{"a":false,"b":{},"c":4294967295}"#);
    }
}
