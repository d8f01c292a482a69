//! `--mechanisms`: what this machine offers and what would be used, for a person or a program.
//!
//! The platform looks, without changing anything; here it is only laid out.

#![allow(
    clippy::format_push_string,
    reason = "short texts made once: the reader's time counts"
)]

use super::platform;

mod json;

use json::Json;

/// What the platform has found.
#[derive(Debug)]
pub(super) struct Survey {
    /// The system and its release.
    pub(super) system: String,
    pub(super) process: Vec<Fact>,
    pub(super) mechanisms: Vec<Offer>,
    pub(super) options: Vec<Offer>,
}

/// Something about this process.
#[derive(Debug)]
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) value: Value,
    /// What it means; may be empty.
    pub(super) note: String,
}

/// A fact's value.
#[derive(Debug)]
pub(super) enum Value {
    Number(u32),
    Word(&'static str),
}

/// Something that can be had, or not.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) name: &'static str,
    pub(super) available: bool,
    /// What is used for it; or, if it cannot be had, why not and what happens in its place.
    pub(super) note: String,
}

/// What `run-with --mechanisms` prints.
pub(super) fn report(json: bool) -> String {
    let survey = platform::survey();
    if json {
        format!("{}\n", object(&survey))
    } else {
        table(&survey)
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn object(survey: &Survey) -> Json {
    let process = survey.process.iter().map(|fact| {
        let value = match &fact.value {
            Value::Number(number) => Json::Number(*number),
            Value::Word(word) => Json::text(word),
        };
        let note = ("note", Json::text(&fact.note));
        (fact.name, Json::Object(vec![("value", value), note]))
    });
    Json::Object(vec![
        ("version", Json::text(VERSION)),
        ("system", Json::text(&survey.system)),
        ("process", Json::Object(process.collect())),
        ("mechanisms", offers(&survey.mechanisms)),
        ("options", offers(&survey.options)),
    ])
}

fn offers(offers: &[Offer]) -> Json {
    let members = offers.iter().map(|offer| {
        let available = ("available", Json::Bool(offer.available));
        let note = ("note", Json::text(&offer.note));
        (offer.name, Json::Object(vec![available, note]))
    });
    Json::Object(members.collect())
}

fn table(survey: &Survey) -> String {
    let process = survey.process.iter().map(|fact| {
        let value = match &fact.value {
            Value::Number(number) => number.to_string(),
            Value::Word(word) => (*word).to_owned(),
        };
        [fact.name.to_owned(), value, fact.note.clone()]
    });
    let offers = |offers: &[Offer]| -> Vec<[String; 3]> {
        let rows = offers.iter().map(|offer| {
            let available = if offer.available { "yes" } else { "no" };
            [
                offer.name.to_owned(),
                available.to_owned(),
                offer.note.clone(),
            ]
        });
        rows.collect()
    };
    let sections = [
        ("This process", process.collect()),
        ("Mechanisms", offers(&survey.mechanisms)),
        ("Options", offers(&survey.options)),
    ];
    let widths = [0, 1].map(|column| {
        let cells = sections.iter().flat_map(|(_, rows)| rows.iter());
        let widths = cells.map(|row: &[String; 3]| row.get(column).map_or(0, String::len));
        widths.max().unwrap_or(0)
    });
    let [first, second] = widths;
    let mut text = format!("run-with {VERSION} on {}\n", survey.system);
    for (title, rows) in &sections {
        text += &format!("\n{title}\n");
        for [name, value, note] in rows {
            let line = format!("  {name:<first$}  {value:<second$}  {note}");
            text += line.trim_end();
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey() -> Survey {
        let offer = |name, available, note: &str| Offer {
            name,
            available,
            note: note.to_owned(),
        };
        Survey {
            system: "Unix \"1\"".to_owned(),
            process: vec![Fact {
                name: "pid",
                value: Value::Number(7),
                note: String::new(),
            }],
            mechanisms: vec![offer("longer-name", true, "why")],
            options: vec![offer("chroot", false, "because")],
        }
    }

    #[test]
    fn columns_are_aligned() {
        let text = table(&survey());
        let column = |word| {
            let line = text
                .lines()
                .find(|line| line.contains(word))
                .expect("a line");
            line.find(word)
        };
        assert_eq!(column("yes"), column("no "));
        assert_eq!(column("why"), column("because"));
        assert!(text.lines().all(|line| line.trim_end() == line));
    }

    #[test]
    fn one_object() {
        assert_eq!(
            object(&survey()).to_string(),
            format!(
                r#"{{"version":"{VERSION}","system":"Unix \"1\"","process":{{"pid":{{"value":7,"note":""}}}},"mechanisms":{{"longer-name":{{"available":true,"note":"why"}}}},"options":{{"chroot":{{"available":false,"note":"because"}}}}}}"#
            )
        );
    }
}
