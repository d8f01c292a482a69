//! Completion for fish.

use super::{FLAGS, Values, flags_with_values};
use crate::run_with::KEYS;

const HEAD: &str = r"# fish completion for run-with. Made by: run-with --generate fish

# Prints where the command begins among the words before the cursor, if it does.
function __run_with_command
    set -l words (commandline -opc)
    set -l flag
    for i in (seq 2 (count $words))
        if set -q flag[1]
            set -e flag
            continue
        end
        switch $words[$i]
            case --
                math $i + 1
                return 0
";

const TAIL: &str = r"                set flag $words[$i]
            case '-*' '*=*'
            case '*'
                echo $i
                return 0
        end
    end
    return 1
end

# Completes the command and its arguments as if run-with were not there.
function __run_with_complete_command
    set -l words (commandline -opc)
    set -l command (__run_with_command)
    set -l line (string escape -- $words[$command..-1]) (commandline -ct | string collect)
    complete -C (string join ' ' -- $line)
end

# The operands: options, and the command once there are options.
function __run_with_operands
    set -l before (commandline -ct | string replace -r '[^,]*$' '')
    set -l element (commandline -ct | string replace -r '^.*,' '')
    switch $element
";

const OPERANDS: &str = r"        case '*=*'
        case '*'
";

const END: &str = r"            if string match -q -- '*=*' (commandline -opc)
                __fish_complete_command
            end
    end
end

complete -c run-with -f
complete -c run-with -n '__run_with_command >/dev/null' -a '(__run_with_complete_command)'
complete -c run-with -n 'not __run_with_command >/dev/null' -a '(__run_with_operands)'
";

pub(super) fn completions() -> String {
    let mut text = HEAD.to_owned();
    let with_values = flags_with_values().join(" ");
    text += &format!("            case {with_values}\n");
    text += TAIL;
    for key in KEYS {
        let name = key.name;
        let offered = match Values::of_key(key) {
            Values::Words(words) => {
                format!("printf '%s\\n' {{$before}}{name}={{{}}}", words.join(","))
            }
            Values::Directories => directories(name),
            Values::Users => format!(
                "printf '%s\\n' {{$before}}{name}=(__fish_complete_users | string split -f 1 \\t)"
            ),
            Values::Files | Values::Processes | Values::Free => continue,
        };
        text += &format!("        case '{name}=*'\n            {offered}\n");
    }
    text += OPERANDS;
    for key in KEYS {
        let (name, summary) = (key.name, escape(key.summary));
        text += &format!("            printf '%s\\t%s\\n' {{$before}}{name}= '{summary}'\n");
    }
    text += END;
    for flag in FLAGS {
        let mut line = String::from("complete -c run-with -n 'not __run_with_command >/dev/null'");
        if let Some(letter) = flag.short {
            line += &format!(" -s {letter}");
        }
        line += &format!(" -l {}", flag.long);
        if let Some(values) = Values::of_flag(flag) {
            line += &match values {
                Values::Words(words) => format!(" -x -a '{}'", words.join(" ")),
                Values::Files => " -r -F".to_owned(),
                Values::Processes => " -x -a '(__fish_complete_pids)'".to_owned(),
                _ => " -x".to_owned(),
            };
        }
        text += &format!("{line} -d '{}'\n", escape(flag.help));
    }
    text
}

fn directories(name: &str) -> String {
    format!(
        "printf '%s\\n' {{$before}}{name}=(__fish_complete_directories \
         (string replace -r '^[^=]*=' '' -- $element) | string split -f 1 \\t)"
    )
}

/// Text within single quotes.
fn escape(text: &str) -> String {
    text.replace('\\', r"\\").replace('\'', r"\'")
}
