//! The rules of the option string, one by one, and what holds for all strings.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::privileges::UserError;

fn ok(text: &str) -> RunWith {
    text.parse()
        .unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn refused(text: &str) -> (usize, OptionErrorKind) {
    match text.parse::<RunWith>() {
        Ok(options) => panic!("{text:?} was taken as {options:?}"),
        Err(error) => (error.position(), error.kind().clone()),
    }
}

fn unknown(key: &str) -> OptionErrorKind {
    OptionErrorKind::UnknownKey(key.into())
}

#[test]
fn nothing_given_is_nothing() {
    assert!(ok("").is_empty());
    assert!(ok("").is_noop());
    assert_eq!(ok("").to_string(), "");
}

#[test]
fn off_is_given_but_is_nothing_to_do() {
    let off = ok("exit-with-parent=off,async-teardown=off");
    assert!(!off.is_empty());
    assert!(off.is_noop());
    for one in [
        "exit-with-parent=on",
        "async-teardown=on",
        "chroot=/",
        "user=x",
    ] {
        assert!(!ok(one).is_noop(), "{one}");
    }
}

#[test]
fn all_keys() {
    let all = ok("async-teardown=on,chroot=/srv,exit-with-parent=off,user=nobody");
    assert_eq!(all.get_async_teardown(), Some(true));
    assert_eq!(all.get_chroot(), Some(Path::new("/srv")));
    assert_eq!(all.get_exit_with_parent(), Some(false));
    assert_eq!(all.get_user(), Some(&User::Name("nobody".into())));
    let ids = ok("user=1:2");
    assert_eq!(ids.get_user(), Some(&User::Ids { uid: 1, gid: 2 }));
}

#[test]
fn the_words_of_a_switch() {
    for on in ["on", "yes", "true", "y"] {
        let options = ok(&format!("exit-with-parent={on}"));
        assert_eq!(options.get_exit_with_parent(), Some(true), "{on}");
    }
    for off in ["off", "no", "false", "n"] {
        let options = ok(&format!("exit-with-parent={off}"));
        assert_eq!(options.get_exit_with_parent(), Some(false), "{off}");
    }
    for bad in ["", "ON", "On", "1", "0", "on ", " on", "=on", "t", "yess"] {
        let kind = OptionErrorKind::BadSwitch {
            key: "async-teardown",
            value: bad.into(),
        };
        assert_eq!(
            refused(&format!("async-teardown={bad}")),
            (15, kind),
            "{bad}"
        );
    }
}

#[test]
fn commas_and_equals_signs() {
    let path = |text| ok(text).get_chroot().unwrap().to_owned();
    assert_eq!(path("chroot=a,,b"), Path::new("a,b"));
    assert_eq!(path("chroot=,,"), Path::new(","));
    assert_eq!(path("chroot=,,,"), Path::new(","));
    assert_eq!(path("chroot=,,,,"), Path::new(",,"));
    assert_eq!(path("chroot==a=b"), Path::new("=a=b"));
    assert_eq!(path("chroot=a,"), Path::new("a"));
    assert_eq!(refused(","), (0, unknown("")));
    assert_eq!(refused(",chroot=a"), (0, unknown("")));
    assert_eq!(refused("=a"), (0, unknown("")));
    // The third comma ends the value, the fourth stands where a key should.
    assert_eq!(refused("exit-with-parent=on, ,"), (20, unknown(" ")));
    assert_eq!(refused("chroot,,=a").0, 0);
}

#[test]
fn the_last_value_wins_but_every_value_is_checked() {
    assert_eq!(
        ok("user=a,user=b").get_user(),
        Some(&User::Name("b".into()))
    );
    let twice = ok("exit-with-parent=on,exit-with-parent=off");
    assert_eq!(twice.get_exit_with_parent(), Some(false));
    let empty = OptionErrorKind::EmptyPath { key: "chroot" };
    assert_eq!(refused("chroot=,chroot=/srv"), (7, empty));
    assert_eq!(refused("user=:,user=nobody").0, 5);
    assert_eq!(refused("exit-with-parent=?,exit-with-parent=on").0, 17);
}

#[test]
fn a_key_alone_lacks_its_value() {
    for key in KEYS {
        let (name, takes) = (key.name, key.takes);
        let missing = OptionErrorKind::MissingValue { key: name, takes };
        assert_eq!(refused(name), (0, missing.clone()));
        assert_eq!(refused(&format!("no{name}")), (0, missing.clone()));
        assert_eq!(refused(&format!("user=x,{name},user=y")), (7, missing));
        let no = format!("no{name}=on");
        assert_eq!(refused(&no), (0, unknown(&format!("no{name}"))));
    }
}

#[test]
fn keys_that_are_none() {
    for (text, key) in [
        ("foo=1", "foo"),
        ("foo", "foo"),
        ("Chroot=/", "Chroot"),
        (" chroot=/", " chroot"),
        ("chroot =/", "chroot "),
        ("exit_with_parent=on", "exit_with_parent"),
        ("help=on", "help"),
        ("nohelp", "nohelp"),
        ("help?", "help?"),
        ("no", "no"),
    ] {
        assert_eq!(refused(text), (0, unknown(key)), "{text}");
    }
    for id in ["id", "id=x", "id=", "noid"] {
        assert_eq!(refused(id), (0, OptionErrorKind::Id), "{id}");
    }
}

#[test]
fn help_is_what_stands_first() {
    for (text, position) in [("help", 0), ("?", 0), ("user=x,help,foo", 7), ("?,foo", 0)] {
        assert_eq!(refused(text), (position, OptionErrorKind::Help), "{text}");
    }
    assert_eq!(refused("foo=1,help"), (0, unknown("foo")));
    assert_eq!(ok("user=help").get_user(), Some(&User::Name("help".into())));
}

#[test]
fn help_names_every_key_with_its_platforms() {
    let error = "help".parse::<RunWith>().unwrap_err();
    assert!(error.is_help());
    let table = error.to_string();
    for key in KEYS {
        let line = table
            .lines()
            .find(|line| line.trim_start().starts_with(&format!("{}=", key.name)))
            .unwrap_or_else(|| panic!("{} is not in {table}", key.name));
        assert!(
            line.contains(key.takes) && line.contains(key.platforms),
            "{line}"
        );
    }
}

#[test]
fn nul_bytes_are_refused() {
    let nul = OptionErrorKind::NulByte { key: "chroot" };
    assert_eq!(refused("chroot=a\0b"), (7, nul));
    let (key, reason) = ("user", UserError::NulByte);
    let bad = OptionErrorKind::BadUser { key, reason };
    assert_eq!(refused("user=a\0b"), (5, bad));
}

#[test]
fn messages_name_key_expectation_and_position() {
    for (text, message) in [
        (
            "user=x,exit-with-parent=maybe",
            "exit-with-parent expects on or off, not \"maybe\" (at byte 24 of the option string)",
        ),
        (
            "foo=1",
            "unknown key \"foo\"; expected async-teardown, chroot, exit-with-parent, user \
             (at byte 0 of the option string)",
        ),
        (
            "chroot",
            "chroot needs a value: chroot=dir (at byte 0 of the option string)",
        ),
        (
            "user=a:b",
            "user: user \"a:b\" cannot exist (a name has no colon) and is not uid:gid (two plain \
             decimal numbers below 4294967295) (at byte 5 of the option string)",
        ),
    ] {
        let error = text.parse::<RunWith>().unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn paths_of_any_bytes() {
    let text = OsStr::from_bytes(b"chroot=/\xff\xfe,,\x80,user=\xc3");
    let options = RunWith::parse(text).unwrap();
    let expected = Path::new(OsStr::from_bytes(b"/\xff\xfe,\x80"));
    assert_eq!(options.get_chroot(), Some(expected));
    assert_eq!(options.to_os_string(), text);
}

#[test]
fn a_later_string_wins_also_with_off() {
    let mut options = ok("exit-with-parent=on,chroot=/a,user=x");
    options.merge(ok("exit-with-parent=off,user=y"));
    assert_eq!(options, ok("exit-with-parent=off,chroot=/a,user=y"));
    options.merge(RunWith::new());
    assert_eq!(options, ok("exit-with-parent=off,chroot=/a,user=y"));
}

/// Bytes that matter to the grammar, and any other.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        2 => prop::sample::select(b",=:0 no?\xff".to_vec()),
        1 => 1..=255u8,
    ]
}

fn path_bytes() -> impl Strategy<Value = OsString> {
    prop::collection::vec(byte(), 1..12).prop_map(OsString::from_vec)
}

fn user() -> impl Strategy<Value = User> {
    prop_oneof![
        (0..u32::MAX, 0..u32::MAX).prop_map(|(uid, gid)| User::Ids { uid, gid }),
        path_bytes()
            .prop_filter("a name has no colon", |name| !name
                .as_bytes()
                .contains(&b':'))
            .prop_map(User::Name),
    ]
}

fn run_with() -> impl Strategy<Value = RunWith> {
    let switch = || prop::option::of(any::<bool>());
    let path = prop::option::of(path_bytes().prop_map(PathBuf::from));
    (switch(), path, switch(), prop::option::of(user())).prop_map(
        |(async_teardown, chroot, exit_with_parent, user)| RunWith {
            async_teardown,
            chroot,
            exit_with_parent,
            user,
        },
    )
}

/// Strings near the grammar: its words and signs, in any order.
fn near() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&[u8]> = vec![
        b"async-teardown",
        b"chroot",
        b"exit-with-parent",
        b"user",
        b"id",
        b"help",
        b"?",
        b"no",
        b"on",
        b"off",
        b"=",
        b"=",
        b"=",
        b",",
        b",",
        b",,",
        b"1:2",
        b"nobody",
        b"/srv",
        b"\xff",
        b"\0",
    ];
    prop::collection::vec(prop::sample::select(words), 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn what_is_written_reads_as_the_same(options in run_with()) {
        prop_assert_eq!(RunWith::parse(&options.to_os_string()), Ok(options));
    }

    #[test]
    fn utf_8_survives_display(options in run_with()) {
        if options.to_os_string().to_str().is_some() {
            prop_assert_eq!(options.to_string().parse(), Ok(options));
        }
    }

    #[test]
    fn any_bytes_are_taken_or_refused_at_a_position(
        text in prop_oneof![near(), prop::collection::vec(any::<u8>(), 0..40)]
    ) {
        let length = text.len();
        match RunWith::parse(&OsString::from_vec(text)) {
            Ok(options) => prop_assert_eq!(RunWith::parse(&options.to_os_string()), Ok(options)),
            Err(error) => prop_assert!(error.position() <= length, "{error:?}"),
        }
    }

    #[test]
    fn merging_is_associative(a in run_with(), b in run_with(), c in run_with()) {
        let merged = |mut first: RunWith, second: &RunWith| {
            first.merge(second.clone());
            first
        };
        let left = merged(merged(a.clone(), &b), &c);
        let right = merged(a, &merged(b, &c));
        prop_assert_eq!(left, right);
    }

    #[test]
    fn merging_is_a_comma(a in run_with(), b in run_with()) {
        let mut text = a.to_os_string();
        if !a.is_empty() {
            text.push(",");
        }
        text.push(b.to_os_string());
        let mut merged = a;
        merged.merge(b);
        prop_assert_eq!(RunWith::parse(&text), Ok(merged));
    }
}
