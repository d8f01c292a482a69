//! Completion for zsh, as an autoloaded function.

use super::{FLAGS, Values, flags_with_values, spellings};
use crate::cli::flags::Flag;
use crate::run_with::{KEYS, Key};

const HEAD: &str = r"#compdef run-with
# zsh completion for run-with. Made by: run-with --generate zsh

# An operand: options, and the command once there are options.
_run-with_operand() {
    _values -s , option \
";

const MIDDLE: &str = r"    [[ -n ${words[(r)[^-]*=*]} ]] && _command_names -e
}

_run-with() {
    local -i i command=0
    local flag=
    for ((i = 2; i < CURRENT; i++)); do
        if [[ -n $flag ]]; then
            flag=
            continue
        fi
        case $words[i] in
            --) command=i+1; break ;;
";

const COMMAND: &str = r"            -*|*=*) ;;
            *) command=i; break ;;
        esac
    done
    if ((command)); then
        shift command-1 words
        ((CURRENT -= command - 1))
        _normal
        return
    fi
    _arguments -s -S \
";

pub(super) fn completions() -> String {
    let mut text = HEAD.to_owned();
    for (index, key) in KEYS.iter().enumerate() {
        let end = if index + 1 == KEYS.len() { "" } else { " \\" };
        text += &format!("        {}{end}\n", operand(key));
    }
    text += MIDDLE;
    let with_values = flags_with_values().join("|");
    text += &format!("            {with_values}) flag=$words[i] ;;\n");
    text += COMMAND;
    for flag in FLAGS {
        text += &format!("        {} \\\n", argument(flag));
    }
    text += "        '*: :_run-with_operand'\n}\n\n_run-with \"$@\"\n";
    text
}

/// A specification of `_values`.
fn operand(key: &Key) -> String {
    let what = Values::of_key(key);
    let action = action(&what);
    let message = escape(key.takes);
    format!("'{}[{}]:{message}:{action}'", key.name, escape(key.summary))
}

/// A specification of `_arguments`.
fn argument(flag: &Flag) -> String {
    let value = match (flag.value, Values::of_flag(flag)) {
        (Some(name), Some(values)) => format!(":{name}:{}", action(&values)),
        _ => String::new(),
    };
    let rest = format!("'[{}]{value}'", escape(flag.help));
    let takes = flag.value.is_some();
    match flag.short {
        Some(letter) => {
            let exclusive = spellings(flag).join(" ");
            let (after_short, after_long) = if takes { ("+", "=") } else { ("", "") };
            let long = flag.long;
            format!("'({exclusive})'{{-{letter}{after_short},--{long}{after_long}}}{rest}")
        }
        None => format!("--{}{}{rest}", flag.long, if takes { "=" } else { "" }),
    }
}

fn action(values: &Values) -> String {
    match values {
        Values::Words(words) => format!("({})", words.join(" ")),
        Values::Files => "_files".to_owned(),
        Values::Directories => "_directories".to_owned(),
        Values::Users => "_users".to_owned(),
        Values::Processes => "_pids".to_owned(),
        // A blank: there is nothing to offer, but the message is shown.
        Values::Free => " ".to_owned(),
    }
}

/// Text within a single-quoted specification.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match letter {
            '\'' => escaped += r"'\''",
            ':' | '[' | ']' | '\\' => escaped.extend(['\\', letter]),
            _ => escaped.push(letter),
        }
    }
    escaped
}
