//! The option string, with the real QEMU as oracle.
//!
//! QEMU 7.2 has no `-run-with` yet, but reads other options with the same parser, so a string is
//! tried with its keys renamed: to `-msg`'s (two switches: whether a message begins with the time
//! and with the guest's name; `id` is allowed), and to `-name`'s (two strings, one of them that
//! name, and a switch). `-runas` judges users. Each run ends at a last `-runas :`, whose refusal
//! proves that all before it was taken, and shows the values QEMU stored; no machine is made.
//!
//! Where QEMU takes what is refused here, the difference must be a class of the table in
//! docs/options.md; and each class there must be seen, in its example and in generated strings.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Command, Stdio};

use captive::RunWith;
use captive::privileges::{User, UserError};
use captive::run_with::{KEYS, OptionError, OptionErrorKind};
use libtest_mimic::Trial;

use crate::support::process::{Reaped, bytes};
use crate::support::{Need, Outcome, Witness, test};

const QEMU: &str = "qemu-system-x86_64";
const DOCUMENT: &str = include_str!("../../docs/options.md");
/// Makes the strings; another one makes others.
const SEED: u64 = 0x5eed_0f0b_7105;

/// Classes that each test must see in its generated strings. Together: the table.
const IN_SWITCHES: &[&str] = &["short-on", "short-off", "id"];
const IN_VALUES: &[&str] = &[
    "short-on",
    "short-off",
    "overridden-path",
    "overridden-user",
];
const IN_USERS: &[&str] = &["uid-hex", "uid-octal", "uid-sign", "uid-blank"];

pub fn tests() -> Vec<Trial> {
    const ORACLE: &[Need] = &[Need::Program(QEMU)];
    const LONG: &[Need] = &[Need::Program(QEMU), Need::Long];
    vec![
        test("grammar::the_document_has_the_table_of_keys", &[], || {
            document_keys()
        }),
        test("grammar::each_difference_in_the_document", ORACLE, rows),
        test("grammar::switches_as_qemu", ORACLE, || switches(300)),
        test("grammar::values_as_qemu", ORACLE, || values(220)),
        test("grammar::users_as_qemu", ORACLE, || users(160)),
        test("grammar::merging_as_qemu", ORACLE, || merging(25)),
        test("grammar::long_switches_as_qemu", LONG, || switches(3000)),
        test("grammar::long_values_as_qemu", LONG, || values(1500)),
        test("grammar::long_users_as_qemu", LONG, || users(1500)),
    ]
}

// The oracle.

/// What QEMU says to a string.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    Help,
    UnknownKey(Vec<u8>),
    BadSwitch(Vec<u8>),
    /// The value of `id` is no identifier, which is checked before the other elements are.
    BadId,
    Other(String),
}

#[derive(Clone, Debug)]
struct Answer {
    verdict: Verdict,
    /// QEMU warned that a key stood alone.
    short_form: bool,
    /// What begins the last message: the time and the guest's name, if QEMU was told to show them.
    name: Vec<u8>,
}

const END: &[u8] =
    b"qemu-system-x86_64: -runas :: User \":\" doesn't exist (and is not <uid>:<gid>)\n";

const INSTEAD: &[u8] = b" instead\n";

/// Runs QEMU up to the end of its option parsing.
fn qemu(arguments: &[&OsStr]) -> Result<Answer, Box<dyn std::error::Error>> {
    let mut child = Reaped(
        Command::new(QEMU)
            .args(arguments)
            .args(["-runas", ":"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?,
    );
    // Its few lines fit in the pipes.
    ensure!(
        Witness::of(i32::try_from(child.0.id())?)?.gone(),
        "QEMU hangs at {arguments:?}"
    );
    let (mut out, mut err) = (Vec::new(), Vec::new());
    child.0.stdout.take().unwrap().read_to_end(&mut out)?;
    child.0.stderr.take().unwrap().read_to_end(&mut err)?;
    let quoted = |before: &[u8]| -> Option<Vec<u8>> {
        let start = find_last(&err, before)? + before.len();
        let end = start + find_last(&err[start..], b"'")?;
        Some(err[start..end].to_vec())
    };
    let mut name = Vec::new();
    let verdict = if let Some(before) = err.strip_suffix(END) {
        // Warnings come first; the last line of one is "Please use KEY=on instead".
        let warned = find_last(before, INSTEAD).map_or(0, |at| at + INSTEAD.len());
        let before = &before[warned..];
        name = before.strip_suffix(b" ").unwrap_or(before).to_vec();
        Verdict::Taken
    } else if find_last(&out, b" options:\n").is_some() {
        Verdict::Help
    } else if find_last(&err, b"Parameter 'id' expects an identifier").is_some() {
        Verdict::BadId
    } else if let Some(key) = quoted(b": Invalid parameter '") {
        Verdict::UnknownKey(key)
    } else if find_last(&err, b"' expects 'on' or 'off'\n").is_some() {
        let key = quoted(b": Parameter '").unwrap();
        let key = &key[..key.len() - b"' expects 'on' or 'off".len()];
        Verdict::BadSwitch(key.to_vec())
    } else {
        Verdict::Other(String::from_utf8_lossy(&err).into_owned())
    };
    Ok(Answer {
        verdict,
        short_form: find_last(&err, b": warning: short-form boolean option '").is_some(),
        name,
    })
}

fn find_last(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).rposition(|window| window == part)
}

/// Our keys, as another option of QEMU's names them.
type Names = &'static [(&'static str, &'static str)];

/// Both switches are what QEMU shows again.
const MSG: Names = &[
    ("async-teardown", "timestamp"),
    ("exit-with-parent", "guest-name"),
];
/// The directory is what QEMU shows again.
const NAME_SHOWS_CHROOT: Names = &[
    ("async-teardown", "debug-threads"),
    ("exit-with-parent", "debug-threads"),
    ("chroot", "guest"),
    ("user", "process"),
];
/// The user is what QEMU shows again.
const NAME_SHOWS_USER: Names = &[
    ("async-teardown", "debug-threads"),
    ("exit-with-parent", "debug-threads"),
    ("chroot", "process"),
    ("user", "guest"),
];

fn renamed(text: &[u8], names: Names) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    'text: while !rest.is_empty() {
        for (ours, theirs) in names {
            if let Some(after) = rest.strip_prefix(ours.as_bytes()) {
                out.extend_from_slice(theirs.as_bytes());
                rest = after;
                continue 'text;
            }
        }
        out.push(rest[0]);
        rest = &rest[1..];
    }
    out
}

fn msg(text: &[u8]) -> Result<Answer, Box<dyn std::error::Error>> {
    let text = renamed(text, MSG);
    let [name, guest, msg] = ["-name", "guest=G", "-msg"].map(OsStr::new);
    qemu(&[name, guest, msg, bytes(&text)])
}

/// Whether the time and the guest's name begin the last message.
fn shown_switches(answer: &Answer) -> (bool, bool) {
    let time = answer.name.first().is_some_and(u8::is_ascii_digit);
    (time, answer.name.ends_with(b"G"))
}

/// `-name` takes a first element without a key for the guest: `texts` must begin with a key.
fn name(texts: &[&[u8]], names: Names) -> Result<Answer, Box<dyn std::error::Error>> {
    let texts: Vec<OsString> = texts
        .iter()
        .map(|text| OsString::from_vec(renamed(text, names)))
        .collect();
    let mut arguments: Vec<&OsStr> = Vec::new();
    for text in &texts {
        arguments.extend([OsStr::new("-name"), text]);
    }
    arguments.extend(["-msg", "guest-name=on"].map(OsStr::new));
    qemu(&arguments)
}

/// Whether QEMU takes a user: each is asked for once.
#[derive(Default)]
struct Runas(BTreeMap<Vec<u8>, bool>);

impl Runas {
    fn takes(&mut self, user: &[u8]) -> Result<bool, Box<dyn std::error::Error>> {
        if let Some(&known) = self.0.get(user) {
            return Ok(known);
        }
        let answer = qemu(&["-runas".as_ref(), bytes(user)])?;
        let takes = match answer.verdict {
            Verdict::Taken => true,
            Verdict::Other(text) if text.contains("doesn't exist (and is not <uid>:<gid>)") => {
                // A name is looked up by QEMU at once, here when the change is prepared.
                !user.is_empty() && !user.contains(&b':')
            }
            other => return Err(format!("-runas {:?}: {other:?}", bytes(user)).into()),
        };
        self.0.insert(user.to_vec(), takes);
        Ok(takes)
    }
}

/// The class of a user that only QEMU takes.
fn user_class(text: &[u8]) -> &'static str {
    if text.iter().any(|b| matches!(b, b'x' | b'X')) {
        "uid-hex"
    } else if text.iter().any(|b| matches!(b, b'+' | b'-')) {
        "uid-sign"
    } else if text.iter().any(|b| b" \t\n\x0b\x0c\r".contains(b)) {
        "uid-blank"
    } else {
        "uid-octal"
    }
}

/// The class of the error of a key that stands alone.
fn short_class(text: &[u8], error: &OptionError) -> &'static str {
    if text[error.position()..].starts_with(b"no") {
        "short-off"
    } else {
        "short-on"
    }
}

/// Judges an error of ours that stands for the same in QEMU's parser: both must say the same.
/// `None` if it is another error.
fn same_error(kind: &OptionErrorKind, qemu: &Answer, names: Names) -> Option<bool> {
    let said = &qemu.verdict;
    // A bad id anywhere is what QEMU finds first; it is refused here at the latest then.
    let bad_id = *said == Verdict::BadId;
    match kind {
        OptionErrorKind::Help => Some(bad_id || *said == Verdict::Help),
        OptionErrorKind::UnknownKey(key) => {
            let key = renamed(key.as_bytes(), names);
            // QEMU names what is left of a key that stands alone without its `no`.
            let short = key.strip_prefix(b"no").unwrap_or(&key);
            let same = matches!(said, Verdict::UnknownKey(k) if *k == key || k == short);
            Some(bad_id || same)
        }
        OptionErrorKind::BadSwitch { key, .. } => {
            let key = renamed(key.as_bytes(), names);
            Some(bad_id || *said == Verdict::BadSwitch(key))
        }
        _ => None,
    }
}

// The strings.

/// xorshift64*: the same strings on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

const GOOD_SWITCH: &[&str] = &["on", "yes", "true", "y", "off", "no", "false", "n"];
const BAD_SWITCH: &[&str] = &["", "ON", "1", "on ", "maybe", "on,,", "=on", "of"];
const ALONE: &[&str] = &[
    "help", "?", "nohelp", "foo", "nofoo", "no", "", "help?", " ",
];
const UNKNOWN: &[&str] = &["foo", "", "help", "On", "noexit-with-parent", "chroot "];

fn switch_element(random: &mut Random) -> Vec<u8> {
    let key = random.pick(&["async-teardown", "exit-with-parent"]);
    match random.below(20) {
        0 => key.to_owned(),
        1 => format!("no{key}"),
        2 => format!("{key}={}", random.pick(BAD_SWITCH)),
        3 if random.one_in(2) => random.pick(ALONE).to_owned(),
        4 if random.one_in(2) => format!("{}=on", random.pick(UNKNOWN)),
        _ => format!("{key}={}", random.pick(GOOD_SWITCH)),
    }
    .into_bytes()
}

fn path_value(random: &mut Random) -> Vec<u8> {
    if random.one_in(10) {
        return Vec::new();
    }
    if random.one_in(3) {
        // Any bytes; a comma twice.
        let mut value = Vec::new();
        for _ in 0..=random.below(6) {
            let byte = u8::try_from(1 + random.below(255)).unwrap();
            value.extend(std::iter::repeat_n(byte, 1 + usize::from(byte == b',')));
        }
        return value;
    }
    let values: &[&[u8]] = &[
        b"/srv",
        b"a,,b",
        b",,",
        b"x,,",
        b",,x",
        b"=",
        b"=x=",
        b"\xff\xfe",
        b" ",
        b"on",
        b"help",
        b"a,,,,b",
        b"chroot=/",
        b"",
    ];
    random.pick(values).to_vec()
}

fn user_value(random: &mut Random) -> Vec<u8> {
    if random.one_in(6) {
        return user_text(random);
    }
    let values: &[&[u8]] = &[
        b"root",
        b"0:0",
        b"1:2",
        b"65534:65534",
        b"nobody",
        b"a,,b",
        b"\xff",
        b"u=v",
    ];
    random.pick(values).to_vec()
}

fn any_element(random: &mut Random) -> Vec<u8> {
    let (key, value) = match random.below(5) {
        0 => return switch_element(random),
        1 | 2 => ("chroot", path_value(random)),
        _ => ("user", user_value(random)),
    };
    match random.below(20) {
        0 => key.as_bytes().to_vec(),
        1 => format!("no{key}").into_bytes(),
        _ => [key.as_bytes(), b"=", &value].concat(),
    }
}

/// Elements with commas between them, with a slip here and there.
fn elements(random: &mut Random, element: fn(&mut Random) -> Vec<u8>) -> Vec<u8> {
    let mut text = Vec::new();
    for n in 0..random.below(6) {
        if n > 0 {
            text.extend_from_slice(if random.one_in(25) { b",," } else { b"," });
        }
        text.extend(element(random));
    }
    if random.one_in(10) {
        text.push(b',');
    }
    text
}

/// The words and signs of the grammar in any order.
fn soup(random: &mut Random, words: &[&str]) -> Vec<u8> {
    let mut text = Vec::new();
    for _ in 0..=random.below(7) {
        let sign = [",", "=", ",,", "on", "no"];
        let word = if random.one_in(2) {
            random.pick(&sign)
        } else {
            random.pick(words)
        };
        text.extend_from_slice(word.as_bytes());
    }
    text
}

/// A number as `strtoul` might take it, or not.
fn number(random: &mut Random) -> String {
    let ids = ["0", "1", "7", "8", "10", "1000", "65534", "4294967294"];
    let not_ids = [
        "4294967295",
        "4294967296",
        "18446744073709551615",
        "18446744073709551616",
        "",
        "f",
        "x",
        "1.0",
        "1e3",
    ];
    let plain = if random.one_in(5) {
        random.pick(&not_ids)
    } else {
        random.pick(&ids)
    };
    if random.one_in(2) {
        return plain.to_owned();
    }
    let before = random.pick(&[
        "0", "00", "0x", "0X", "+", "-", " ", "\t", "\n", " +0", "-0x", "0b", "",
    ]);
    let after = if random.one_in(6) { " " } else { "" };
    format!("{before}{plain}{after}")
}

/// A user with a colon, or something like one.
fn user_text(random: &mut Random) -> Vec<u8> {
    let colon = if random.one_in(12) {
        random.pick(&["", "::", ": ", ":0:"])
    } else {
        ":"
    };
    format!("{}{colon}{}", number(random), number(random)).into_bytes()
}

// The tests.

/// What a test has seen: enough of each, or it proves little.
#[derive(Default)]
struct Seen {
    taken: usize,
    refused: usize,
    classes: BTreeSet<&'static str>,
}

impl Seen {
    fn check(&self, strings: usize, expected: &[&str]) -> Outcome {
        let table: BTreeSet<&str> = table().into_iter().map(|(class, _)| class).collect();
        let not_listed: Vec<_> = self.classes.difference(&table).collect();
        ensure!(
            not_listed.is_empty(),
            "not in docs/options.md: {not_listed:?}"
        );
        for class in expected {
            ensure!(
                self.classes.contains(class),
                "no generated string differs as {class}, which docs/options.md has"
            );
        }
        ensure!(
            self.taken >= strings / 8 && self.refused >= strings / 8,
            "one-sided strings: {} taken, {} refused of {strings}",
            self.taken,
            self.refused
        );
        Ok(())
    }
}

/// Runs `judge` on generated strings; what fails is reported with its seed and string.
fn each(
    count: usize,
    expected: &[&str],
    make: impl Fn(&mut Random) -> Vec<u8>,
    mut judge: impl FnMut(&[u8], &mut Seen) -> Outcome,
) -> Outcome {
    let mut random = Random(SEED);
    let mut seen = Seen::default();
    for n in 0..count {
        let text = make(&mut random);
        judge(&text, &mut seen)
            .map_err(|error| format!("seed {SEED:#x}, string {n}, {:?}: {error}", bytes(&text)))?;
    }
    seen.check(count, expected)
}

fn switches(count: usize) -> Outcome {
    let words = [
        "async-teardown",
        "exit-with-parent",
        "help",
        "?",
        "id",
        "foo",
        "off",
        "y",
        " ",
        "1x",
        "async-teardown=on",
        "exit-with-parent=off,",
        "id=x,",
    ];
    let make = |random: &mut Random| {
        if random.one_in(3) {
            soup(random, &words)
        } else if random.one_in(12) {
            [b"id=x,", &elements(random, switch_element)[..]].concat()
        } else {
            elements(random, switch_element)
        }
    };
    each(count, IN_SWITCHES, make, |text, seen| {
        judge_switches(text, seen).map(|_| ())
    })
}

/// Holds a string without a directory or user against `-msg`; the class if they differ.
fn judge_switches(
    text: &[u8],
    seen: &mut Seen,
) -> Result<Option<&'static str>, Box<dyn std::error::Error>> {
    let qemu = msg(text)?;
    let ours = RunWith::parse(bytes(text));
    let both = format!("{ours:?}; QEMU: {qemu:?}");
    let error = match ours {
        Ok(options) => {
            ensure!(qemu.verdict == Verdict::Taken && !qemu.short_form, "{both}");
            let on = |given: Option<bool>| given == Some(true);
            let switches = (
                on(options.get_async_teardown()),
                on(options.get_exit_with_parent()),
            );
            ensure!(switches == shown_switches(&qemu), "{both}");
            seen.taken += 1;
            return Ok(None);
        }
        Err(error) => error,
    };
    seen.refused += 1;
    let class = match error.kind() {
        OptionErrorKind::MissingValue { .. } => {
            let bad_id = qemu.verdict == Verdict::BadId;
            ensure!(qemu.short_form || bad_id, "{both}");
            short_class(text, &error)
        }
        OptionErrorKind::Id => "id",
        kind => {
            ensure!(same_error(kind, &qemu, MSG) == Some(true), "{both}");
            return Ok(None);
        }
    };
    if qemu.verdict != Verdict::Taken {
        return Ok(None);
    }
    seen.classes.insert(class);
    Ok(Some(class))
}

fn values(count: usize) -> Outcome {
    let words = [
        "chroot",
        "user",
        "chroot=",
        "user=",
        "async-teardown=on",
        "help",
        "foo",
        "/srv",
        "1:2",
        "root",
        " ",
        ":",
    ];
    let make = |random: &mut Random| {
        if random.one_in(4) {
            soup(random, &words)
        } else {
            elements(random, any_element)
        }
    };
    let mut runas = Runas::default();
    each(count, IN_VALUES, make, |text, seen| {
        judge_values(text, &mut runas, seen).map(|_| ())
    })
}

/// Holds any string without `id` against `-name`, with values; the class if they differ.
fn judge_values(
    text: &[u8],
    runas: &mut Runas,
    seen: &mut Seen,
) -> Result<Option<&'static str>, Box<dyn std::error::Error>> {
    // It begins with a key, as `-name` needs; and what the text does not give has a value.
    let text = [b"chroot=/first,user=first,", text].concat();
    let qemu = name(&[&text], NAME_SHOWS_CHROOT)?;
    let qemu_user = name(&[&text], NAME_SHOWS_USER)?;
    let ours = RunWith::parse(bytes(&text));
    let both = format!("{ours:?}; QEMU: {qemu:?}, {qemu_user:?}");
    let error = match ours {
        Ok(options) => {
            let user = options.get_user().ok_or("no user")?.to_os_string();
            let chroot = options.get_chroot().ok_or("no directory")?;
            for (answer, names, value) in [
                (&qemu, NAME_SHOWS_CHROOT, chroot.as_os_str()),
                (&qemu_user, NAME_SHOWS_USER, &user),
            ] {
                ensure!(answer.verdict == Verdict::Taken, "{both}");
                // A key's name in a value was renamed with the rest.
                ensure!(
                    renamed(value.as_bytes(), names) == answer.name,
                    "{value:?} is {:?} for QEMU",
                    bytes(&answer.name)
                );
            }
            ensure!(runas.takes(user.as_bytes())?, "QEMU refuses user {user:?}");
            seen.taken += 1;
            return Ok(None);
        }
        Err(error) => error,
    };
    seen.refused += 1;
    let class = match error.kind() {
        OptionErrorKind::MissingValue { .. } => {
            ensure!(qemu.short_form, "{both}");
            short_class(&text, &error)
        }
        OptionErrorKind::EmptyPath { .. } => "overridden-path",
        OptionErrorKind::BadUser { reason, .. } => {
            let user = match reason {
                UserError::NotIds(user) => user.as_bytes(),
                _ => b"",
            };
            if runas.takes(user)? {
                user_class(user)
            } else {
                "overridden-user"
            }
        }
        kind => {
            let same = same_error(kind, &qemu, NAME_SHOWS_CHROOT);
            ensure!(same == Some(true), "{both}");
            return Ok(None);
        }
    };
    // QEMU takes the string if its parser does, and chroot(2) and the user's look-up can take the
    // last values; `rows` shows that it refuses the empty directory.
    if qemu.verdict != Verdict::Taken || qemu.name.is_empty() || !runas.takes(&qemu_user.name)? {
        return Ok(None);
    }
    seen.classes.insert(class);
    Ok(Some(class))
}

fn users(count: usize) -> Outcome {
    let mut runas = Runas::default();
    each(count, IN_USERS, user_text, |text, seen| {
        let ours = User::parse(bytes(text));
        let takes = runas.takes(text)?;
        match ours {
            Ok(user) => {
                ensure!(takes, "taken as {user:?}; QEMU refuses it");
                ensure!(user.to_os_string().as_bytes() == text, "read as {user:?}");
                seen.taken += 1;
            }
            Err(_) => {
                seen.refused += 1;
                if takes {
                    seen.classes.insert(user_class(text));
                }
            }
        }
        Ok(())
    })
}

/// `-name` merges what is given twice: the later string wins, key by key.
fn merging(count: usize) -> Outcome {
    let mut random = Random(SEED);
    for _ in 0..count {
        let given = |random: &mut Random| loop {
            let text = elements(random, any_element);
            if RunWith::parse(bytes(&text)).is_ok_and(|options| !options.is_empty()) {
                return text;
            }
        };
        let (first, later) = (given(&mut random), given(&mut random));
        let mut options = RunWith::new().chroot("/first");
        options.merge(RunWith::parse(bytes(&first))?);
        options.merge(RunWith::parse(bytes(&later))?);
        let answer = name(&[b"chroot=/first", &first, &later], NAME_SHOWS_CHROOT)?;
        let chroot = options.get_chroot().ok_or("no directory")?.as_os_str();
        ensure!(
            answer.verdict == Verdict::Taken
                && answer.name == renamed(chroot.as_bytes(), NAME_SHOWS_CHROOT),
            "seed {SEED:#x}, {:?} then {:?}: {chroot:?}; QEMU: {answer:?}",
            bytes(&first),
            bytes(&later)
        );
    }
    Ok(())
}

/// The table of differences: class and example.
fn table() -> Vec<(&'static str, &'static str)> {
    let (_, section) = DOCUMENT
        .split_once("## Differences from QEMU")
        .expect("the section is there");
    section
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split("` | `");
            let class = cells.next()?;
            let (example, _) = cells.next()?.split_once("` |")?;
            Some((class, example))
        })
        .collect()
}

fn rows() -> Outcome {
    let classes: BTreeSet<&str> = table().into_iter().map(|(class, _)| class).collect();
    let looked_for: BTreeSet<&str> = [IN_SWITCHES, IN_VALUES, IN_USERS]
        .concat()
        .into_iter()
        .collect();
    ensure!(
        classes == looked_for,
        "docs/options.md has {classes:?}, the tests look for {looked_for:?}"
    );
    let mut runas = Runas::default();
    for (class, example) in table() {
        let mut seen = Seen::default();
        let text = example.as_bytes();
        let differs = if text.contains(&b':') || text.starts_with(b"chroot") {
            judge_values(text, &mut runas, &mut seen)
        } else {
            judge_switches(text, &mut seen)
        };
        let differs = differs.map_err(|error| format!("{example:?}: {error}"))?;
        ensure!(
            differs == Some(class),
            "{example:?} differs as {differs:?}, docs/options.md has it as {class}"
        );
    }
    // The one refusal that is not the parser's: QEMU's chroot(2) makes it.
    let empty = qemu_with_empty_chroot()?;
    ensure!(empty.contains("chroot failed"), "QEMU: {empty}");
    Ok(())
}

/// What QEMU says to an empty directory, which it finds out once its machine is made.
fn qemu_with_empty_chroot() -> Result<String, Box<dyn std::error::Error>> {
    let mut child = Reaped(
        Command::new(QEMU)
            .args([
                "-M", "none", "-display", "none", "-monitor", "none", "-S", "-chroot", "",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?,
    );
    ensure!(
        Witness::of(i32::try_from(child.0.id())?)?.gone(),
        "QEMU runs with an empty chroot"
    );
    let mut text = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut text)?;
    Ok(text)
}

fn document_keys() -> Outcome {
    for key in KEYS {
        let row = format!(
            "| `{}` | `{}` | {} | {} |",
            key.name,
            key.takes.replace('|', "\\|"),
            key.platforms,
            key.summary
        );
        ensure!(
            DOCUMENT.contains(&row),
            "docs/options.md lacks this row: {row}"
        );
    }
    Ok(())
}
